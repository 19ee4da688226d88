"""Stacks for a purpose, from ``presets.json``: what to take when this machine was not measured.

They follow the guide (see :data:`..techniques.facts.GUIDE`) where its recipes still hold, and leave it where
they do not: OneDiff is dead, half precision on a CPU is bfloat16, and there only what goes to a disk saves memory.
The sizes are SDXL's at 1024×1024, weights and activations; a CUDA context comes on top.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..harness.names import look_up
from ..harness.typed import parse

#: What a stack is for.  Other accelerators take the stacks of CUDA; what they cannot run says so.
Kind = Literal["cuda", "cpu"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Techniques in the order in which they are applied.

    Attributes:
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
        recipes: By the kind of device that computes.
    """

    name: str
    promise: str
    recipes: dict[Kind, Recipe]


#: By name.
PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in parse(
        tuple[Preset, ...],
        json.loads(Path(__file__).with_name("presets.json").read_text(encoding="utf-8")),
    )
}


def preset_named(name: str) -> Preset:
    """The preset of this name.

    Raises:
        RequestError: when there is none.
    """
    return look_up("preset", name, PRESETS)


def kind_of(device_type: str) -> Kind:
    """Which recipe a device takes, from its type as torch names it."""
    return "cpu" if device_type == "cpu" else "cuda"
