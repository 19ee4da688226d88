"""Stacks for a purpose, as data: what to take when no measurements of this very machine are at hand.

They follow the guide (see :data:`..techniques.technique.GUIDE`) where its recipes still hold, and leave it where
they do not: OneDiff is dead, half precision on a CPU is bfloat16, and there only what goes to a disk saves memory.
The sizes are SDXL's at 1024×1024, weights and activations; a CUDA context comes on top.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ...errors import RequestError

#: What a stack is for.  Other accelerators take the stacks of CUDA; what they cannot run says so.
Kind = Literal["cuda", "cpu"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Techniques in the order in which they are applied.

    Attributes:
        techniques: Names of rows.
        reason: Why these.
        essential: Those of them without which the preset's promise is empty; the others may be missing.
    """

    techniques: tuple[str, ...]
    reason: str
    essential: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Preset:
    """A purpose.

    Attributes:
        name: On the command line and in calls: ``under-6gb``.
        promise: What it is for, as a sentence.
        recipes: By the kind of device that computes.
    """

    name: str
    promise: str
    recipes: Mapping[Kind, Recipe]


_ROWS = (
    Preset(
        "fastest",
        "The shortest time for a picture, at a loss that few will see.",
        {
            "cuda": Recipe(
                ("fp16", "tiny-vae", "channels-last", "fused-qkv", "compile", "steps-30", "cfg-cutoff-75"),
                "the guide's fastest stack with torch.compile in OneDiff's place, which is dead; the first picture"
                " waits for the compiler",
            ),
            "cpu": Recipe(
                ("tiny-vae", "openvino", "steps-30", "cfg-cutoff-75"),
                "on a CPU the UNet is fastest in OpenVINO, whose engine takes both batch sizes, so guidance may end"
                " early",
            ),
        },
    ),
    Preset(
        "under-4gb",
        "A picture at all, in 4 GB.",
        {
            "cuda": Recipe(
                ("fp16", "tiny-vae", "sequential-offload"),
                "weights come one layer at a time; then the decoder is what takes most, and a tiny one takes little"
                " (the guide: 0.68 GB, and a test of patience)",
                essential=("sequential-offload",),
            ),
            "cpu": Recipe(
                ("bf16", "tiny-vae", "disk-offload"),
                "on a CPU weights that wait must wait on a disk, or nothing is saved; group-offload-disk is faster"
                " and has no way back",
                essential=("disk-offload",),
            ),
        },
    ),
    Preset(
        "under-6gb",
        "In 6 GB, at little cost in time.",
        {
            "cuda": Recipe(
                ("fp16", "tiny-vae", "model-offload"),
                "one component on the card at a time; the UNet, the largest, takes 5.5 GB with what it computes",
                essential=("model-offload",),
            ),
            "cpu": Recipe(
                ("bf16", "tiny-vae", "torchao-int8"),
                "bfloat16 is the half type that CPUs can compute in; with a UNet in eight bits everything stays in"
                " memory",
                essential=("bf16", "torchao-int8"),
            ),
        },
    ),
    Preset(
        "under-8gb",
        "In 8 GB, as fast as that goes.",
        {
            "cuda": Recipe(
                ("fp16", "tiny-vae", "compile-regional"),
                "with a tiny decoder all weights stay on the card: 7.2 GB; compiled block by block, the first"
                " picture comes soon",
                essential=("tiny-vae",),
            ),
            "cpu": Recipe(
                ("bf16", "tiny-vae", "channels-last"),
                "half the bytes of float32, in the half type that CPUs can compute in, and a tiny decoder",
                essential=("bf16",),
            ),
        },
    ),
    Preset(
        "best-quality",
        "The best picture: nothing is approximated, and the refiner finishes it.",
        {
            "cuda": Recipe(
                ("fp16", "exact-vae", "refiner-ensemble-90"),
                "a loss from float16 that nobody sees, the untiled picture of the full decoder within bounded"
                " memory, and the refiner where the guide found it best, from 90 % on",
            ),
            "cpu": Recipe(
                ("exact-vae", "channels-last", "refiner-ensemble-90"),
                "float32 as it is, the untiled picture of the full decoder in strips, which is faster on a CPU too,"
                " and the refiner from 90 % on",
            ),
        },
    ),
    Preset(
        "hybrid",
        "The full decoder's picture on a small machine: a server decodes.",
        {
            "cuda": Recipe(
                ("fp16", "remote-vae", "model-offload"),
                "the decoder with its 3 GB of activations is elsewhere, and of the rest one component at a time is"
                " on the card: 5.5 GB",
                essential=("remote-vae",),
            ),
            "cpu": Recipe(
                ("bf16", "remote-vae", "channels-last"),
                "decoding costs a CPU about as much as a step with guidance does; the network takes less",
                essential=("remote-vae",),
            ),
        },
    ),
)

#: By name.
PRESETS: Mapping[str, Preset] = {preset.name: preset for preset in _ROWS}


def preset_named(name: str) -> Preset:
    """The preset of this name.

    Raises:
        RequestError: when there is none.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, n=1)
        raise RequestError(
            "unknown preset",
            saw=repr(name),
            expected="one of " + ", ".join(PRESETS),
            hint=near[0] if near else None,
        )
    return PRESETS[name]


def kind_of(device_type: str) -> Kind:
    """Which recipe a device takes, from its type as torch names it."""
    return "cpu" if device_type == "cpu" else "cuda"
