"""The VAE: another one, the same in parts, or one that a hybridge server runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...client.pipelines import connect
from ...client.remote_vae import RemoteVAE
from ...engine.exact import exact
from ...engine.reference import without_tiling
from ...errors import TooLarge
from ..harness.memory import storage_bytes
from . import extra_models
from .evidence import watching
from .pipeline_context import PipelineContext
from .technique import Missing, Proof, Undo, Watch


class DecodeLog:
    """Decodes of a pipeline's VAE while it is on.

    ``decode`` is no forward, so no hook sees it: it is wrapped in the instance.

    Attributes:
        vae: The VAE, as it was when the watching began.
        asked: Shapes of the latents that ``decode`` was given.
        given: Shapes of what the decoder inside of the VAE was given; less or more often than asked, or never.
        dtypes: Of that.
        finite: Whether everything that came out of the decoder is a number.
        strips: How many strips an exact VAE has made.  Its decoder gets no hook, with which it would run plain.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.strips = 0
        self.asked: list[tuple[int, ...]] = []
        self.given: list[tuple[int, ...]] = []
        self.dtypes: list[torch.dtype] = []
        self.finite = True
        self._hook: Any = None

    def __enter__(self) -> DecodeLog:
        self._former = vars(self.vae).get("decode")
        decode, is_exact = self.vae.decode, hasattr(self.vae, "why_plain")

        def noted(z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.asked.append(tuple(z.shape))
            return decode(z, *args, **kwargs, **({"progress": self._count} if is_exact else {}))

        self.vae.decode = noted
        decoder = None if is_exact else getattr(self.vae, "decoder", None)
        if isinstance(decoder, torch.nn.Module):
            self._hook = decoder.register_forward_hook(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._former is None:
            del self.vae.decode
        else:
            self.vae.decode = self._former
        if self._hook is not None:
            self._hook.remove()

    def _count(self, done: int, total: int) -> None:
        self.strips += 1

    def _note(self, _module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        self.given.append(tuple(args[0].shape))
        self.dtypes.append(args[0].dtype)
        self.finite = self.finite and bool(torch.isfinite(output).all())


def _decoded(context: PipelineContext, judge: Callable[[DecodeLog], Proof]) -> Watch:
    """A witness that watches the VAE which the pipeline has when the watching begins."""
    return watching(judge, lambda: DecodeLog(context.pipe.vae))


def _swap(context: PipelineContext, undo: Undo, vae: Any) -> None:
    """Another VAE in the place of the pipeline's, which waits where it takes no room of the device's."""
    former = context.pipe.vae
    if former.device.type == "cuda":
        undo.by(former.to, former.device)
    undo.set(context.pipe, "vae", vae.to(device=context.device).eval().requires_grad_(False))
    if former.device.type == "cuda":
        former.to("cpu")


# ----------------------------------------------------------------------------------------------- another VAE


def fp16_fix(context: PipelineContext, undo: Undo) -> Watch:
    """SDXL's, with weights that survive float16."""
    from diffusers import AutoencoderKL

    widened = bool(context.pipe.vae.config.force_upcast)
    found = extra_models.source(context, "vae-fp16-fix")

    def judge(log: DecodeLog) -> Proof:
        dtypes = ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in log.dtypes})) or "nothing"
        if torch.float16 not in log.dtypes:
            return Proof(False, f"decoded in {dtypes}, where nothing overflows: for pipelines in float16")
        before = "float32" if widened else "float16"
        numbers = "every one a number" if log.finite else "not all of them numbers"
        return Proof(widened and log.finite, f"decoded in {dtypes} instead of {before}, {numbers}")

    _swap(context, undo, AutoencoderKL.from_pretrained(found).to(dtype=context.denoiser.dtype))
    return _decoded(context, judge)


def tiny(context: PipelineContext, undo: Undo) -> Watch:
    """A distilled one."""
    from diffusers import AutoencoderTiny

    before = type(context.pipe.vae).__name__, storage_bytes(context.pipe.vae)

    def judge(log: DecodeLog) -> Proof:
        name, now_bytes = type(log.vae).__name__, storage_bytes(log.vae)
        decodes = f"{len(log.given)} decodes by {name} instead of {before[0]}"
        took_effect = bool(log.given) and name == "AutoencoderTiny" != before[0]
        return Proof(took_effect, f"{decodes}, {now_bytes} bytes instead of {before[1]}")

    found = extra_models.source(context, "tiny-vae")
    _swap(context, undo, AutoencoderTiny.from_pretrained(found).to(dtype=context.denoiser.dtype))
    return _decoded(context, judge)


# ------------------------------------------------------------------------------------------ the same, in parts


def slicing(context: PipelineContext, undo: Undo) -> Watch:
    """The pictures of a batch one by one."""
    vae = context.pipe.vae
    undo.by(setattr, vae, "use_slicing", vae.use_slicing)
    vae.enable_slicing()

    def judge(log: DecodeLog) -> Proof:
        asked, given = [shape[0] for shape in log.asked], [shape[0] for shape in log.given]
        evidence = f"the decoder took {given} pictures for {asked} asked"
        return Proof(max(asked, default=0) > 1 and set(given) == {1}, evidence)

    return _decoded(context, judge)


def tiling(context: PipelineContext, undo: Undo) -> Watch:
    """Tiles with blended seams."""
    vae = context.pipe.vae
    undo.by(setattr, vae, "use_tiling", vae.use_tiling)
    vae.enable_tiling()

    def judge(log: DecodeLog) -> Proof:
        asked = sorted({shape[2:] for shape in log.asked})
        tiles = sum(shape[2:] not in asked for shape in log.given)
        sizes = ", ".join("×".join(map(str, size)) for size in asked)
        if tiles:
            return Proof(True, f"{len(log.given)} decodes of tiles for latents of {sizes}")
        return Proof(False, f"latents of {sizes} were decoded whole: tiles begin above the size of training")

    return _decoded(context, judge)


# ------------------------------------------------------------------------------------------------ our own


def exact_vae(context: PipelineContext, undo: Undo) -> Watch:
    """In strips, with twice the least memory that the latents can be decoded in."""
    former = context.pipe.vae
    undo.by(setattr, former, "use_tiling", former.use_tiling)  # which is turned off by what follows
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

    return _decoded(context, judge)


def _budget(vae: Any, shape: Sequence[int]) -> int:
    """Twice the least that these latents can be decoded in: below the plain forward, not the slowest way."""
    try:
        least = exact(vae, 1).plan("decode", shape[0], shape[2], shape[3]).peak_bytes
    except TooLarge as error:  # which says what would have been enough
        least = error.least_bytes or 0
    return 2 * least


def why_not_exact(context: PipelineContext) -> Missing | None:
    """A VAE that the engine can only run plain."""
    with without_tiling(context.pipe.vae):  # so that it is on again afterwards
        reason = exact(context.pipe.vae).why_plain("decode")
    return None if reason is None else Missing("unavailable", reason, instead="vae-tiling")


def remote(context: PipelineContext, undo: Undo) -> Watch:
    """A server's."""
    former = context.pipe.vae
    connection = connect(context.pipe, str(context.server))
    place = former.device
    if place.type == "cuda":
        former.to("cpu")  # the connection keeps it for later; not where it would be in the way
        undo.by(former.to, place)
    undo.by(connection.undo)

    def judge(log: DecodeLog) -> Proof:
        is_remote = isinstance(log.vae, RemoteVAE)
        return Proof(is_remote and bool(log.asked), f"{len(log.asked)} decodes elsewhere: {connection}")

    return _decoded(context, judge)
