"""The estimate: what each phase of making a picture has on the device, and how much it computes.

A phase takes the weights that are there, the activations at their peak, and a *workspace*: what libraries take
inside of their calls, which no counting of tensors sees.  Weights are exact, activations are exact for eager
torch, and the workspace is an allowance, read off the guide's figures (an RTX 3090, PyTorch 2, FP16 and 1024
pixels), which are above the bare count by:

========================================  =====================  =============
what                                      guide - weights and     so
                                          activations, in GB
========================================  =====================  =============
VAE in float32, everything on the device  11.24 - 10.33 = 0.91
VAE in float16, everything on the device   9.55 -  8.55 = 1.00
VAE in float16, layer by layer             2.56 -  1.61 = 0.95   0.95 with a decoded 1024² picture
UNet, component by component               5.77 -  5.63 = 0.14
the same with Tiny VAE                     5.60 -  5.47 = 0.13   0.135 elsewhere
========================================  =====================  =============

The decoder's looks like cuDNN's: the guide got rid of 7 % of 11.24 by forbidding it TF32.  It is taken to grow with
the pixels that are decoded at a time, and the other one to be constant.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from ...errors import RequestError
from ..techniques.facts import last_guided_step
from .cost_table import cost_of, weights_of
from .effects import Effect, effect_of
from .shapes import LATENT_PIXELS, Part, PipelineShape, shape_named
from .types import Correction, Estimate, Phase, PhaseName, Setup

if TYPE_CHECKING:
    from ...engine.planning.plan import Plan
    from ...engine.program.program import Program

#: See the table above.
DECODING_WORKSPACE_BYTES_PER_PIXEL = 0.95e9 / 1024**2
WORKSPACE_BYTES = 0.135e9

#: Sides of pictures are multiples of it: transformers take 2×2 latents for a token.
_MULTIPLE = 2 * LATENT_PIXELS

#: More than anybody decodes at once; the meta device would take minutes for what is absurd.
_MOST_PIXELS, _MOST_ITEMS = 8192**2, 64

#: Pinned memory is handed out in powers of two: up to twice what a tensor takes.
_PINNED = 2

_ITEMSIZES = {None: 4, "float16": 2, "bfloat16": 2}


def estimate(setup: Setup, *, correction: Correction | None = None) -> Estimate:
    """What a pipeline with a stack of techniques takes.

    Raises:
        RequestError: for names that are none, sizes that cannot be, techniques that exclude each other or that this
            pipeline does not have.
        TooLarge: when the exact decoder does not fit its budget.
    """
    shape, effect = shape_named(setup.pipeline), effect_of(setup.stack)
    steps = effect.steps or shape.steps
    setup = replace(
        setup,
        pipeline=shape.name,
        height=setup.height or shape.size,
        width=setup.width or shape.size,
        steps=steps if setup.steps is None else setup.steps,
        refiner=setup.refiner or effect.base is not None,
    )
    _check(setup, shape, effect)
    return _Arithmetic(setup, shape, effect).estimate(correction)


def _check(setup: Setup, shape: PipelineShape, effect: Effect) -> None:
    for side in (setup.height, setup.width):
        if side % _MULTIPLE or side < 0:
            raise RequestError("not a size of pictures", saw=side, expected=f"a multiple of {_MULTIPLE}")
    if setup.height * setup.width > _MOST_PIXELS or setup.batch > _MOST_ITEMS:
        raise RequestError(
            "more than is estimated",
            saw=f"{setup.batch} × {setup.height}×{setup.width}",
            expected=f"at most {_MOST_ITEMS} pictures of {_MOST_PIXELS / 1e6:.0f} megapixels",
        )
    for name, number in (("batch", setup.batch), ("steps", setup.steps)):
        if number is not None and number < 1:
            raise RequestError(f"not a number of {name}", saw=number, expected="at least 1")
    if setup.refiner and shape.refiner is None:
        raise RequestError(f"{shape.title} has no refiner", saw=setup.pipeline, expected="sdxl")
    if effect.attention in ("matrix", "sliced") and not shape.denoiser.call.startswith("unet"):
        raise RequestError(
            "these attention processors are a UNet's",
            saw=shape.title,
            expected="sd15 or sdxl, or the stack without",
        )
    if effect.guided is not None and not shape.is_guided:
        raise RequestError(f"{shape.title} has no guidance to end", saw="cfg-cutoff", hint="the stack without it")


class _Arithmetic:
    """One setup, read."""

    def __init__(self, setup: Setup, shape: PipelineShape, effect: Effect) -> None:
        self._setup, self._shape, self._effect = setup, shape, effect
        self._itemsize = _ITEMSIZES[effect.half]
        self._resident = effect.resident or "all"
        self._decoder = effect.decoder or "full"
        self._narrow_text = effect.text_linear_bytes is not None
        upcasts = shape.upcasts and effect.half == "float16" and not effect.fixes_vae
        self._decoding_itemsize = 4 if upcasts and self._decoder != "tiny" else self._itemsize
        self._plan = None
        if self._decoder == "exact":
            size = (setup.batch, setup.height, setup.width)
            self._plan = _exact_plan(shape.vae, self._decoding_itemsize, *size, setup.decode_budget_bytes)

    def estimate(self, correction: Correction | None) -> Estimate:
        phases = [self._encode(), *self._denoise(), self._decode()]
        if correction is not None:
            phases = [correction.applied(phase) for phase in phases]
        return Estimate(
            setup=self._setup,
            phases=tuple(phases),
            files=tuple((part.title, self._stored(part)) for part in self._parts()),
            moved_bytes=self._moved(),
            host_bytes=self._host(),
            is_lower_bound=self._resident == "layers",
            left_out=tuple(self._left_out(correction)),
            correction=correction,
            plan=self._plan,
        )

    # ------------------------------------------------------------------------------------------- phases

    def _encode(self) -> Phase:
        costs = [(part, cost_of(part, self._itemsize, self._setup.batch, 0, 0)) for part in self._shape.texts]
        flops = sum(cost.flops for _, cost in costs)
        if self._resident == "one" and not self._narrow_text:
            part, cost = max(costs, key=lambda row: self._stored(row[0]) + row[1].peak_bytes)
            return self._phase("encode prompt", [part], cost.peak_bytes, flops)
        return self._phase(
            "encode prompt", list(self._shape.texts), max(cost.peak_bytes for _, cost in costs), flops
        )

    def _denoise(self) -> list[Phase]:
        setup, effect, steps = self._setup, self._effect, self._setup.steps or 1
        base = steps if effect.base is None and not setup.refiner else int(steps * (effect.base or 0.8))
        refined = effect.refiner_calls if effect.refiner_calls is not None else steps - base
        phases = [self._steps("denoise", self._shape.denoiser, 0, base)]
        if setup.refiner and self._shape.refiner is not None:
            phases.append(self._steps("refine", self._shape.refiner, base, base + refined))
        return phases

    def _steps(self, name: PhaseName, part: Part, first: int, end: int) -> Phase:
        setup, effect, shape = self._setup, self._effect, self._shape
        items = setup.batch * (2 if shape.is_guided else 1)
        way = effect.attention or "fused"
        cost = cost_of(part, self._itemsize, items, setup.height, setup.width, way)
        steps = setup.steps or 1
        under = end if effect.guided is None else min(end, last_guided_step(effect.guided, steps) + 1)
        forwards = max(0, under - first) + (end - max(first, under)) / 2
        cheap = (effect.cheap or {}).get(shape.name)
        if cheap is not None and effect.full_every and part is shape.denoiser and end > first:
            whole = math.ceil((end - first) / effect.full_every)
            forwards *= (whole + (end - first - whole) * cheap) / (end - first)
        forwards *= (effect.work or {}).get(shape.name, 1.0) if part is shape.denoiser else 1.0
        return self._phase(name, [part], cost.peak_bytes, round(cost.flops * forwards))

    def _decode(self) -> Phase:
        setup, shape = self._setup, self._shape
        pixels = setup.height * setup.width
        picture = 3 * pixels * self._decoding_itemsize
        if self._decoder == "remote":
            return self._phase("decode", [], setup.batch * picture, 0, workspace_bytes=0)
        at_once = 1 if self._effect.slices else setup.batch
        others = (setup.batch - at_once) * picture
        workspace = DECODING_WORKSPACE_BYTES_PER_PIXEL * at_once * pixels
        if self._plan is not None:
            # Its strips are smaller convolutions: their workspace is taken to shrink as their activations do.
            whole = cost_of(shape.vae, self._decoding_itemsize, setup.batch, setup.height, setup.width)
            part_of = min(1.0, self._plan.peak_bytes / whole.peak_bytes)
            return self._phase(
                "decode",
                [shape.vae],
                self._plan.peak_bytes,
                self._plan.flops,
                workspace_bytes=round(workspace * part_of),
            )
        if self._decoder == "tiny":
            cost = cost_of(shape.tiny, self._itemsize, at_once, setup.height, setup.width)
            return self._phase("decode", [shape.tiny], cost.peak_bytes + others, self._times(cost.flops, at_once))
        tiles = self._decoder == "tiled" and max(setup.height, setup.width) > shape.tile
        size = (setup.height, setup.width)
        cost = cost_of(shape.vae, self._decoding_itemsize, at_once, *size, "tiled" if tiles else "fused")
        if tiles:
            workspace *= shape.tile**2 / pixels
        return self._phase(
            "decode",
            [shape.vae],
            cost.peak_bytes + others,
            self._times(cost.flops, at_once),
            workspace_bytes=round(workspace),
        )

    def _times(self, flops: int, at_once: int) -> int:
        return flops * self._setup.batch // at_once

    def _phase(
        self,
        name: PhaseName,
        running: list[Part],
        activations: int,
        flops: int,
        *,
        workspace_bytes: int = round(WORKSPACE_BYTES),
    ) -> Phase:
        there = [(part.title, self._at(part, name)) for part in self._there(name, running)]
        return Phase(name, tuple(there), activations, workspace_bytes, flops)

    # ------------------------------------------------------------------------------------------- weights

    def _there(self, name: PhaseName, running: list[Part]) -> list[Part]:
        """The parts on the device in a phase."""
        if name == "encode prompt" and self._narrow_text and self._resident != "all":
            return running  # they are narrowed on the device and stay there
        if self._resident == "layers":
            return []
        if self._resident == "one" or (self._resident == "phase" and name in ("encode prompt", "decode")):
            return running
        decoder = [part for part in (self._decoding_part(),) if part is not None and part not in running]
        if self._resident == "phase":
            return [*running, *decoder]
        if self._effect.prompts_first:
            return self._stages()[name != "encode prompt"]
        return self._parts()

    def _stages(self) -> list[list[Part]]:
        """The parts that are loaded together, stage by stage."""
        parts, texts = self._parts(), list(self._shape.texts)
        return [texts, parts[len(texts) :]] if self._effect.prompts_first else [parts]

    def _parts(self) -> list[Part]:
        """Every part that is loaded, once for each copy."""
        shape, decoder = self._shape, self._decoding_part()
        ends = [] if decoder is None else [decoder]
        refiner = []
        if self._setup.refiner and shape.refiner is not None:
            refiner = [shape.refiner]
            if not self._setup.shares_refiner:
                refiner += [replace(part, title=f"{part.title}, again") for part in (shape.texts[-1], *ends)]
        return [*shape.texts, shape.denoiser, *refiner, *ends]

    def _decoding_part(self) -> Part | None:
        return {"remote": None, "tiny": self._shape.tiny}.get(self._decoder, self._shape.vae)

    def _at(self, part: Part, name: PhaseName) -> int:
        """Bytes of a part while a phase runs; the VAE leaves float16 while it decodes, and not before."""
        if part is self._shape.vae and name == "decode":
            return weights_of(part).numbers * self._decoding_itemsize
        return self._stored(part)

    def _stored(self, part: Part) -> int:
        found, effect, itemsize = weights_of(part), self._effect, self._itemsize
        if part.call == "t5" and effect.text_linear_bytes is not None:
            # What is kept from being narrowed stays in float32 under transformers 4, whatever the half type.
            narrow = found.linear - found.float32
            return round(narrow * effect.text_linear_bytes) + found.float32 * 4 + found.other * itemsize
        if part is not self._shape.denoiser:
            return self._wide(part)
        linear = found.linear * (effect.linear_bytes or itemsize)
        convolution = found.convolution * (effect.convolution_bytes or itemsize)
        fused = found.fused * itemsize if effect.fuses else 0
        return round(linear + convolution) + found.other * itemsize + fused

    def _wide(self, part: Part) -> int:
        """Bytes of a part before anything narrows it."""
        found = weights_of(part)
        kept = found.float32 * (4 - self._itemsize) if self._effect.half == "float16" else 0
        return found.numbers * self._itemsize + kept

    def _host(self) -> int:
        """Weights in the host's memory: what is loaded together passes through it, and what is offloaded waits."""
        return max(max(self._loaded(stage), self._waiting(stage)) for stage in self._stages())

    def _loaded(self, parts: list[Part]) -> int:
        return sum(self._wide(part) for part in parts if not self._is_narrowed_on_device(part))

    def _waiting(self, parts: list[Part]) -> int:
        if self._resident not in ("one", "layers"):
            return 0
        # A text encoder that was narrowed on the device stays there.
        waiting = [part for part in parts if part.call != "t5" or not self._narrow_text]
        return sum(self._stored(part) for part in waiting) * (_PINNED if self._effect.pins else 1)

    def _is_narrowed_on_device(self, part: Part) -> bool:
        if part is self._shape.denoiser:
            return bool(self._effect.loads_narrow)
        return part.call == "t5" and self._narrow_text

    def _moved(self) -> int:
        """Weights that are brought to the device for one call."""
        is_kept = self._resident in ("all", "phase")
        if is_kept and not self._effect.prompts_first:
            return 0
        stored = sum(self._stored(part) for part in self._parts())
        if is_kept or self._resident == "one":
            return stored
        again = (self._setup.steps or 1) - 1
        return stored + again * self._stored(self._shape.denoiser)

    # ------------------------------------------------------------------------------------------- words

    def _left_out(self, correction: Correction | None) -> list[str]:
        said = [
            "the CUDA context, 0.3 to 0.5 GB of a card, and what its allocator holds above what it has given out"
        ]
        if correction is None or not correction.has_workspace:
            said.append(
                "the workspace of cuDNN and cuBLAS is an allowance taken from one card's figures (an RTX 3090);"
                " a record of yours replaces it"
            )
        if self._resident == "layers":
            said.append("layers come and go: weights are not counted, so this is a lower bound")
        said.append(
            "what Python, torch and CUDA themselves take of the host's memory, and the files it keeps cached"
        )
        if self._effect.linear_bytes is not None and not self._effect.loads_narrow:
            said.append("weights that are narrowed after loading exist in their first dtype before that")
        said.append("the prompt is counted once; what pipelines encode for an empty one beside it is not")
        return [*said, *self._effect.unknown]


@lru_cache(64)
def _exact_plan(vae: Part, itemsize: int, batch: int, height: int, width: int, budget_bytes: int | None) -> Plan:
    """The engine's own, on CUDA."""
    import torch

    from ...engine.device_profile import device_profile_for
    from ...engine.planning.plan import IN_MEMORY, plan

    return plan(
        _lowered(vae),
        batch=batch,
        height=height // LATENT_PIXELS,
        width=width // LATENT_PIXELS,
        arithmetic=device_profile_for("cuda", torch.float32 if itemsize == 4 else torch.float16),
        budget_bytes=budget_bytes,
        modes=IN_MEMORY,  # what a copy to the host and back takes is not in the estimate
    )


@lru_cache(8)
def _lowered(vae: Part) -> Program:
    from ...engine.program.folding import folded
    from ...engine.program.lowering import lower, skeleton

    return folded(lower(skeleton(vae.class_name, vae.config), "decode"))
