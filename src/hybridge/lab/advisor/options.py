"""What can be switched on, and what each option would take: the adviser's candidates.

An option is a way to keep the weights (all on the device, one part at a time, layer by layer, narrowed), a way to
encode prompts (with all else, or first, with T5 narrowed) and a way to decode (the pipeline's own VAE, the exact
engine within a budget, the VAE's own tiles, a tiny VAE, a server).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ...errors import RequestError, TooLarge
from ..estimator.phases import estimate
from ..estimator.shapes import PipelineShape, shape_named
from ..estimator.types import Correction, Estimate, Phase, Setup
from .network import Link

#: How far a picture is from the pipeline's own.  *own*: the same code and weights.  *rounding*: the same up to
#: rounding.  *twin*: other weights, made to give the same picture.  *approximate*: another picture.
Closeness = Literal["own", "rounding", "twin", "approximate"]

CLOSENESS: tuple[Closeness, ...] = ("own", "rounding", "twin", "approximate")

#: What is on top of the weights may be so much more than estimated: another card's libraries choose other
#: algorithms.
MARGIN = 1.25

#: Where nothing was measured: 50 steps of SDXL and a decode, 686.6 TFLOP, in the guide's 14 s on an RTX 3090 …
GUIDE_FLOPS_PER_S = 49e12

#: … and weights that come over PCIe 3.0 ×16, of whose 16 GB/s copies from pinned memory reach three quarters.
PCIE_BYTES_PER_S = 12e9

#: Layers that are there at a time where they come and go, the next one included; the largest of these pipelines,
#: the embedding of T5's 32128 tokens in half precision, has 263 MB.
_LAYERS_BYTES = 300_000_000

#: With less than this part of what the plain decode takes, the exact decoder makes most values over and over.
_LEAST_PART = 0.25

#: Budgets are said in steps of so much.
_BUDGET_STEP = 32 * 2**20

_PLACES = ((), ("model-offload",), ("group-offload",))
_WIDTHS = ((), ("fp8-storage",))
_NF4 = "bitsandbytes-nf4"

#: Ways to encode prompts.  Encoders that are freed must be loaded again for the next prompt, so the first way is
#: the pipeline's own; the others are for pipelines with a T5, which is as large as many denoisers.
_TEXTS = ((), ("prompts-first",))
_NARROW_TEXTS = (("prompts-first", "text-int8"), ("prompts-first", "text-nf4"))

#: What bitsandbytes narrows: on CUDA, and never layer by layer, because its weights have a state beside them that
#: diffusers' group offload does not move.
BITSANDBYTES = frozenset({_NF4, "text-int8", "text-nf4"})

#: How coarsely techniques round weights: eight bits, four bits.
_COARSENESS = {"fp8-storage": 1, "text-int8": 1, _NF4: 2, "text-nf4": 2}


@dataclass(frozen=True, slots=True)
class Option:
    """A way to make the picture, weighed.

    Attributes:
        decoder: ``local``, ``exact``, ``tiled``, ``tiny`` or ``remote``.
        needs_bytes: The largest phase with its margin, which must fit.
        closeness: Of the decoded picture to the pipeline's own.
        narrowed: How coarsely weights are rounded, which makes another picture before it is decoded: 0 where they
            are not, 1 for eight bits, 2 for four, the denoiser's and T5's added.
        measured: Whether seconds and memory are those of a record.
    """

    decoder: str
    estimate: Estimate
    needs_bytes: int
    seconds: float
    closeness: Closeness
    narrowed: int = 0
    measured: bool = False

    @property
    def stack(self) -> tuple[str, ...]:
        """Its techniques."""
        return self.estimate.setup.stack

    @property
    def departures(self) -> int:
        """How many of its techniques make another picture."""
        return bool(self.narrowed) + (self.closeness == "approximate")

    @property
    def later_bytes(self) -> int:
        """What the decode takes alone, for options that are equal before it."""
        return needed(self.estimate.phases[-1])


def needed(phase: Phase) -> int:
    """Bytes of a phase, what is on top of its weights with a margin."""
    return phase.weights_bytes + round(MARGIN * (phase.activations_bytes + phase.workspace_bytes))


def options(
    setup: Setup,
    vram_bytes: int,
    *,
    link: Link | None = None,
    correction: Correction | None = None,
    device: str = "cuda",
) -> Iterator[Option]:
    """Every option, those that do not fit among them.

    Args:
        setup: Pipeline, size, steps; its stack is what all options have in common.
        vram_bytes: What torch may have, for the exact decoder's budget, and to see whether four bits are needed.
        link: To a server; without one there is no remote option.
        correction: Of the estimates and of the speed.
    """
    shape = shape_named(setup.pipeline)
    half = "bf16" if shape.half == "bfloat16" else "fp16"
    is_cuda = device_named(device).type == "cuda"
    widths, texts = _widths(setup, half, vram_bytes, correction, is_cuda=is_cuda), _texts(shape, is_cuda=is_cuda)
    ways = itertools.product(texts, widths, _PLACES, _decoders(shape, setup, link))
    for text, width, place, (decoder, vae) in ways:
        if _NF4 in width and "group-offload" in place:
            continue
        stack = (half, *vae, *width, *text, *place, *setup.stack)
        one = replace(setup, stack=stack)
        if decoder == "exact":
            budget = _budget(one, vram_bytes, correction)
            if budget is None:
                continue
            one = replace(one, decode_budget_bytes=budget)
        try:
            made = estimate(one, correction=correction)
        except TooLarge:
            continue  # the exact decoder has no plan that is small enough
        yield _option(decoder, made, shape, link, correction)


def device_named(device: str | torch.device) -> torch.device:
    """A device of torch, whether it is here or not; raises :class:`RequestError` for what is none."""
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise RequestError("not a device", saw=device, expected="such as cpu or cuda:0") from error


def seconds_of(made: Estimate, shape: PipelineShape, link: Link | None, flops_per_s: float) -> float:
    """Computing, bringing weights to the device, and the way to a server and back, one after the other."""
    seconds = made.flops / flops_per_s + made.moved_bytes / PCIE_BYTES_PER_S
    if link is not None and "remote-vae" in made.setup.stack:
        pixels = made.setup.height * made.setup.width
        seconds += made.setup.batch * link.seconds(shape, pixels)
    return seconds


def _widths(
    setup: Setup, half: str, vram_bytes: int, correction: Correction | None, *, is_cuda: bool
) -> tuple[tuple[str, ...], ...]:
    """Four bits only where the denoiser, alone on the device, does not fit as it is."""
    alone = estimate(replace(setup, stack=(half, "model-offload", *setup.stack)), correction=correction)
    is_too_large = any(needed(phase) > vram_bytes for phase in alone.phases if phase.name in ("denoise", "refine"))
    return (*_WIDTHS, (_NF4,)) if is_cuda and is_too_large else _WIDTHS


def _texts(shape: PipelineShape, *, is_cuda: bool) -> tuple[tuple[str, ...], ...]:
    if not any(part.call == "t5" for part in shape.texts):
        return _TEXTS[:1]
    return (*_TEXTS, *_NARROW_TEXTS) if is_cuda else _TEXTS


def _decoders(shape: PipelineShape, setup: Setup, link: Link | None) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield "local", ()
    yield "exact", ("exact-vae",)
    if shape.fixed_source:
        yield "local", ("vae-fp16-fix",)
        yield "exact", ("vae-fp16-fix", "exact-vae")
    if max(setup.height or shape.size, setup.width or shape.size) > shape.tile:
        yield "tiled", ("vae-tiling",)
    yield "tiny", ("tiny-vae",)
    if link is not None:
        yield "remote", ("remote-vae",)


def _budget(setup: Setup, vram_bytes: int, correction: Correction | None) -> int | None:
    """What the exact decoder may take where a whole decode does not fit; None where it does, or nothing is left."""
    plain = replace(setup, stack=tuple(name for name in setup.stack if name != "exact-vae"))
    decode = estimate(plain, correction=correction).phases[-1]
    room = vram_bytes - decode.weights_bytes
    if needed(decode) <= vram_bytes or room <= 0:
        return None
    # The workspace shrinks as the activations do, so both get the same part of the room.
    part = decode.activations_bytes / (decode.activations_bytes + decode.workspace_bytes)
    budget = int(room / MARGIN * part) // _BUDGET_STEP * _BUDGET_STEP
    return budget if budget >= _LEAST_PART * decode.activations_bytes else None


def _option(
    decoder: str, made: Estimate, shape: PipelineShape, link: Link | None, correction: Correction | None
) -> Option:
    needs = max(needed(phase) for phase in made.phases) + (_LAYERS_BYTES if made.is_lower_bound else 0)
    flops_per_s = (correction.flops_per_s if correction else None) or GUIDE_FLOPS_PER_S
    seconds = seconds_of(made, shape, link, flops_per_s)
    same = correction.of(made.setup) if correction else None
    if same is not None:
        needs = same.peak_bytes or needs
        seconds = same.seconds or seconds
    return Option(
        decoder=decoder,
        estimate=made,
        needs_bytes=needs,
        seconds=seconds,
        closeness=_closeness(made.setup.stack, link),
        narrowed=sum(_COARSENESS.get(name, 0) for name in made.setup.stack),
        measured=same is not None,
    )


def _closeness(stack: tuple[str, ...], link: Link | None) -> Closeness:
    if {"tiny-vae", "vae-tiling"} & set(stack):
        return "approximate"
    if "vae-fp16-fix" in stack or ("remote-vae" in stack and link is not None and not link.own_weights):
        return "twin"
    return "rounding" if {"exact-vae", "remote-vae"} & set(stack) else "own"
