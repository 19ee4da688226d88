"""The refiner: as an ensemble of experts, and as image to image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import extra_models
from .evidence import CallLog, watching
from .pipeline_context import Generate, PipelineContext
from .technique import Change, Missing, Proof, Technique, Undo, Witness, row

#: How much of its steps the refiner does for a finished picture, unless told otherwise: diffusers' default, which
#: the guide left as it is.
_STRENGTH = 0.3

#: Arguments of the base's call that the refiner's knows as well, size and callbacks aside: it takes the size from
#: the latents, and what listens to the steps knows the base.
_SHARED = ("num_inference_steps", "guidance_scale", "negative_prompt", "num_images_per_prompt")


def _refined(make: Callable[[Any], Generate], expected: Callable[[int], tuple[int, int]]) -> Change:
    """A technique that lets the refiner finish what the base began.

    Args:
        make: From the refiner's pipeline to how pictures are made.
        expected: From the base's steps, as asked for, to the forwards of base and refiner.
    """

    def apply(context: PipelineContext, undo: Undo) -> Callable[[], Witness]:
        refiner = _load(context)
        undo.set(context, "generate", make(refiner))

        def judge(base: CallLog, refined: CallLog) -> Proof:
            seen, wanted = (len(base), len(refined)), expected(context.pipe.scheduler.num_inference_steps)
            planned = "as planned" if seen == wanted else f"where {wanted} were planned"
            evidence = f"{seen[0]} forwards of the base and {seen[1]} of the refiner, {planned}"
            return Proof(seen[1] > 0, evidence)

        return watching(judge, lambda: CallLog(context.denoiser), lambda: CallLog(refiner.unet))

    return apply


def _load(context: PipelineContext) -> Any:
    """The refiner, which reads and decodes with the base's parts."""
    from diffusers import StableDiffusionXLImg2ImgPipeline

    shared = {"text_encoder_2": context.pipe.text_encoder_2, "tokenizer_2": context.pipe.tokenizer_2}
    found = extra_models.source(context, extra_models.REFINER)
    refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(found, add_watermarker=False, vae=None, **shared)
    refiner.vae = context.pipe.vae  # which may be a stand-in: from_pretrained takes diffusers' own classes alone
    refiner.unet.to(device=context.device, dtype=context.denoiser.dtype)
    refiner.set_progress_bar_config(disable=True)
    return refiner


def _ensemble(share: float) -> Callable[[Any], Generate]:
    begun = {"denoising_end": share}
    return lambda refiner: _finished_by(refiner, begun, {"denoising_start": share})


def _image_to_image(steps: int) -> Callable[[Any], Generate]:
    return lambda refiner: _finished_by(refiner, {}, {"num_inference_steps": steps, "strength": _STRENGTH})


def _finished_by(refiner: Any, begun: dict[str, Any], finished: dict[str, Any]) -> Generate:
    """Pictures whose latents the refiner gets; ``begun`` and ``finished`` are for the calls of base and refiner."""

    def generate(
        context: PipelineContext, prompt: str, generator: torch.Generator, arguments: dict[str, Any]
    ) -> Any:
        latents = context.pipe(prompt, generator=generator, output_type="latent", **begun, **arguments).images
        rest = {**_shared(arguments), **finished, "output_type": "np"}
        return refiner(prompt, generator=generator, image=latents, **rest).images

    return generate


def _shared(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: arguments[name] for name in _SHARED if name in arguments}


def _why_no_refiner(context: PipelineContext) -> Missing | None:
    return extra_models.why_missing(context, extra_models.REFINER)


def _expert(percent: int) -> Technique:
    share = percent / 100

    def expected(steps: int) -> tuple[int, int]:
        return round(steps * share), steps - round(steps * share)

    return row(f"refiner-ensemble-{percent}", _refined(_ensemble(share), expected), _why_no_refiner)


def _painter(steps: int) -> Technique:
    def expected(base_steps: int) -> tuple[int, int]:
        return base_steps, int(steps * _STRENGTH)

    return row(f"refiner-img2img-{steps}", _refined(_image_to_image(steps), expected), _why_no_refiner)


ROWS: tuple[Technique, ...] = (_expert(80), _expert(90), _painter(10), _painter(20))
