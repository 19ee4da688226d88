"""The VAE: another one, or the same in parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...errors import TooLarge
from ..harness.memory import storage_bytes
from . import extra_models
from .decoding import DecodeLog, decoded
from .pipeline_context import PipelineContext
from .technique import Missing, Proof, Technique, Undo, Witness, row


def _swap(context: PipelineContext, undo: Undo, vae: Any) -> None:
    """Another VAE in the place of the pipeline's, which waits where it takes no room of the device's."""
    former = context.pipe.vae
    if former.device.type == "cuda":
        undo.by(former.to, former.device)
    undo.set(context.pipe, "vae", vae.to(device=context.device).eval().requires_grad_(False))
    if former.device.type == "cuda":
        former.to("cpu")


# ----------------------------------------------------------------------------------------------- another VAE


def _fp16_fix(context: PipelineContext, undo: Undo) -> Callable[[], Witness]:
    from diffusers import AutoencoderKL

    widened = bool(context.pipe.vae.config.force_upcast)
    found = extra_models.source(context, extra_models.FP16_VAE)

    def judge(log: DecodeLog) -> Proof:
        dtypes = ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in log.dtypes})) or "nothing"
        if torch.float16 not in log.dtypes:
            return Proof(False, f"decoded in {dtypes}, where nothing overflows: for pipelines in float16")
        before = "float32" if widened else "float16"
        numbers = "every one a number" if log.finite else "not all of them numbers"
        return Proof(widened and log.finite, f"decoded in {dtypes} instead of {before}, {numbers}")

    _swap(context, undo, AutoencoderKL.from_pretrained(found).to(dtype=context.denoiser.dtype))
    return decoded(context, judge)


def _tiny_vae(context: PipelineContext, undo: Undo) -> Callable[[], Witness]:
    from diffusers import AutoencoderTiny

    before = type(context.pipe.vae).__name__, storage_bytes(context.pipe.vae)

    def judge(log: DecodeLog) -> Proof:
        name, now_bytes = type(log.vae).__name__, storage_bytes(log.vae)
        evidence = (
            f"{len(log.given)} decodes by {name} instead of {before[0]}, {now_bytes} bytes instead of {before[1]}"
        )
        return Proof(bool(log.given) and name == "AutoencoderTiny" != before[0], evidence)

    found = extra_models.source(context, extra_models.TINY_VAE)
    _swap(context, undo, AutoencoderTiny.from_pretrained(found).to(dtype=context.denoiser.dtype))
    return decoded(context, judge)


# ------------------------------------------------------------------------------------------ the same, in parts


def _slicing(context: PipelineContext, undo: Undo) -> Callable[[], Witness]:
    context.pipe.vae.enable_slicing()
    undo.by(context.pipe.vae.disable_slicing)

    def judge(log: DecodeLog) -> Proof:
        asked, given = [shape[0] for shape in log.asked], [shape[0] for shape in log.given]
        evidence = f"the decoder took {given} pictures for {asked} asked"
        return Proof(max(asked, default=0) > 1 and set(given) == {1}, evidence)

    return decoded(context, judge)


def _tiling(context: PipelineContext, undo: Undo) -> Callable[[], Witness]:
    context.pipe.vae.enable_tiling()
    undo.by(context.pipe.vae.disable_tiling)

    def judge(log: DecodeLog) -> Proof:
        asked = sorted({shape[2:] for shape in log.asked})
        tiles = sum(shape[2:] not in asked for shape in log.given)
        sizes = ", ".join("×".join(map(str, size)) for size in asked)
        if tiles:
            return Proof(True, f"{len(log.given)} decodes of tiles for latents of {sizes}")
        return Proof(False, f"latents of {sizes} were decoded whole: tiles begin above the size of training")

    return decoded(context, judge)


# ------------------------------------------------------------------------------------------------ our own


def _exact(context: PipelineContext, undo: Undo) -> Callable[[], Witness]:
    from ...engine.exact import exact

    former = context.pipe.vae
    vae = exact(former)
    plain = vae.decode

    def decode(z: torch.Tensor, *more: Any, **named: Any) -> Any:
        # For every size anew: a budget for one size would refuse a larger one, after all its denoising.
        vae.budget_bytes = _budget(former, z.shape)
        return plain(z, *more, **named)

    vae.decode = decode
    undo.set(context.pipe, "vae", vae)

    def judge(log: DecodeLog) -> Proof:
        plans = [vae.plan("decode", shape[0], *shape[2:]) for shape in log.asked]
        reasons = "; ".join(sorted({f"{plan.mode}, {plan.reason}" for plan in plans}))
        in_strips = bool(plans) and all(plan.mode not in ("whole", "tiles") for plan in plans)
        return Proof(in_strips and log.strips > 0, f"{log.strips} strips; {reasons}")

    return decoded(context, judge)


def _budget(vae: Any, shape: Sequence[int]) -> int:
    """Twice the least that these latents can be decoded in: below the plain forward, not the slowest way."""
    from ...engine.exact import exact

    try:
        least = exact(vae, 1).plan("decode", shape[0], shape[2], shape[3]).peak_bytes
    except TooLarge as error:  # which says what would have been enough
        least = error.least_bytes or 0
    return 2 * least


def _why_not_exact(context: PipelineContext) -> Missing | None:
    from ...engine.exact import exact

    reason = exact(context.pipe.vae).why_plain("decode")
    return None if reason is None else Missing("unavailable", reason, instead="vae-tiling")


def _needs(wanted: extra_models.ExtraModel) -> Callable[[PipelineContext], Missing | None]:
    return lambda context: extra_models.why_missing(context, wanted)


ROWS: tuple[Technique, ...] = (
    row("vae-fp16-fix", _fp16_fix, _needs(extra_models.FP16_VAE)),
    row("tiny-vae", _tiny_vae, _needs(extra_models.TINY_VAE)),
    row("vae-slicing", _slicing),
    row("vae-tiling", _tiling),
    row("exact-vae", _exact, _why_not_exact),
)
