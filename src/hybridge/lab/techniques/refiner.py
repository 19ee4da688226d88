"""The refiner: as an ensemble of experts, and as image to image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import extra_models
from .evidence import CallLog, watching
from .pipeline_context import PipelineContext
from .technique import Proof, Undo, Watch

#: How much of its steps the refiner does for a finished picture, unless told otherwise: diffusers' default, which
#: the guide left as it is.
_STRENGTH = 0.3

#: Arguments of the base's call that the refiner's knows as well, size and callbacks aside: it takes the size from
#: the latents, and what listens to the steps knows the base.
_SHARED = ("num_inference_steps", "guidance_scale", "negative_prompt", "num_images_per_prompt")


def ensemble(context: PipelineContext, undo: Undo, percent: int) -> Watch:
    """The base makes so many percent of the steps, the refiner the others."""
    share = percent / 100
    begun, finished = {"denoising_end": share}, {"denoising_start": share}
    return _refined(context, undo, begun, finished, lambda n: (round(n * share), n - round(n * share)))


def image_to_image(context: PipelineContext, undo: Undo, steps: int) -> Watch:
    """The refiner paints the finished picture once more, in a part of these steps."""
    finished = {"num_inference_steps": steps, "strength": _STRENGTH}
    return _refined(context, undo, {}, finished, lambda base_steps: (base_steps, int(steps * _STRENGTH)))


def _refined(
    context: PipelineContext,
    undo: Undo,
    begun: dict[str, Any],
    finished: dict[str, Any],
    expected: Callable[[int], tuple[int, int]],
) -> Watch:
    """The refiner finishes what the base began.

    Args:
        begun: Arguments of the base's call.
        finished: Arguments of the refiner's.
        expected: From the steps of the base, as asked for, to the forwards of base and refiner.
    """
    refiner = _load(context)

    def generate(_: object, prompt: str, generator: torch.Generator, arguments: dict[str, Any]) -> Any:
        latents = context.pipe(prompt, generator=generator, output_type="latent", **begun, **arguments).images
        shared = {name: arguments[name] for name in _SHARED if name in arguments}
        rest = {**shared, **finished, "output_type": "np"}
        return refiner(prompt, generator=generator, image=latents, **rest).images

    def judge(base: CallLog, refined: CallLog) -> Proof:
        seen, wanted = (len(base), len(refined)), expected(context.pipe.scheduler.num_inference_steps)
        planned = "as planned" if seen == wanted else f"where {wanted} were planned"
        return Proof(seen[1] > 0, f"{seen[0]} forwards of the base and {seen[1]} of the refiner, {planned}")

    undo.set(context, "generate", generate)
    return watching(judge, lambda: CallLog(context.denoiser), lambda: CallLog(refiner.unet))


def _load(context: PipelineContext) -> Any:
    """The refiner, which reads and decodes with the base's parts."""
    from diffusers import StableDiffusionXLImg2ImgPipeline

    shared = {"text_encoder_2": context.pipe.text_encoder_2, "tokenizer_2": context.pipe.tokenizer_2}
    found = extra_models.source(context, "refiner")
    refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(found, add_watermarker=False, vae=None, **shared)
    refiner.vae = context.pipe.vae  # which may be a stand-in: from_pretrained takes diffusers' own classes alone
    refiner.unet.to(device=context.device, dtype=context.denoiser.dtype)
    refiner.set_progress_bar_config(disable=True)
    return refiner
