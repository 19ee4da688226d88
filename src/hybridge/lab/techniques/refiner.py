"""The refiner: as an ensemble of experts, and as image to image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from . import companions
from .evidence import CallLog
from .rig import Generate, Rig, plainly
from .technique import GUIDE, Applied, Missing, Proof, Technique

#: How much of its steps the refiner does for a finished picture, unless told otherwise: diffusers' default, which
#: the guide left as it is.
_STRENGTH = 0.3

#: Arguments of the base's call that the refiner's knows as well, size and callbacks aside: it takes the size from
#: the latents, and what listens to the steps knows the base.
_SHARED = ("num_inference_steps", "guidance_scale", "negative_prompt", "num_images_per_prompt")


def _refined(
    make: Callable[[Any], Generate], expected: Callable[[int], tuple[int, int]]
) -> Callable[[Rig], Applied]:
    """A technique that lets the refiner finish what the base began.

    Args:
        make: From the refiner's pipeline to how pictures are made.
        expected: From the base's steps, as asked for, to the forwards of base and refiner.
    """

    def apply(rig: Rig) -> Applied:
        refiner, former = _load(rig), rig.generate
        rig.generate = make(refiner)

        @contextmanager
        def witness() -> Iterator[Callable[[], Proof]]:
            with CallLog(rig.denoiser) as base, CallLog(refiner.unet) as refined:
                yield lambda: judge(base, refined)

        def judge(base: CallLog, refined: CallLog) -> Proof:
            seen, wanted = (len(base), len(refined)), expected(rig.pipe.scheduler.num_inference_steps)
            planned = "as planned" if seen == wanted else f"where {wanted} were planned"
            evidence = f"{seen[0]} forwards of the base and {seen[1]} of the refiner, {planned}"
            return Proof(seen[1] > 0, evidence)

        def undo() -> None:
            rig.generate = former

        return Applied(witness, undo)

    return apply


def _load(rig: Rig) -> Any:
    """The refiner, which reads and decodes with the base's parts."""
    from diffusers import StableDiffusionXLImg2ImgPipeline

    shared = {"text_encoder_2": rig.pipe.text_encoder_2, "tokenizer_2": rig.pipe.tokenizer_2}
    found = companions.source(rig, companions.REFINER)
    refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(found, add_watermarker=False, vae=None, **shared)
    refiner.vae = rig.pipe.vae  # which may be a stand-in: from_pretrained takes diffusers' own classes alone
    refiner.unet.to(device=rig.device, dtype=rig.denoiser.dtype)
    refiner.set_progress_bar_config(disable=True)
    return refiner


def _ensemble(share: float) -> Callable[[Any], Generate]:
    def make(refiner: Any) -> Generate:
        def generate(rig: Rig, prompt: str, generator: torch.Generator, arguments: dict[str, Any]) -> Any:
            begun = {"denoising_end": share, "output_type": "latent"}
            latents = rig.pipe(prompt, generator=generator, **begun, **arguments).images
            rest = {"image": latents, "denoising_start": share, "output_type": "np", **_shared(arguments)}
            return refiner(prompt, generator=generator, **rest).images

        return generate

    return make


def _image_to_image(steps: int) -> Callable[[Any], Generate]:
    def make(refiner: Any) -> Generate:
        def generate(rig: Rig, prompt: str, generator: torch.Generator, arguments: dict[str, Any]) -> Any:
            latents = rig.pipe(prompt, generator=generator, output_type="latent", **arguments).images
            rest = {**_shared(arguments), "num_inference_steps": steps, "strength": _STRENGTH, "output_type": "np"}
            return refiner(prompt, generator=generator, image=latents, **rest).images

        return generate

    return make


def _shared(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: arguments[name] for name in _SHARED if name in arguments}


def _why_no_refiner(rig: Rig) -> Missing | None:
    if companions.family(rig.pipe) != "sdxl":
        return Missing("unavailable", f"the refiner finishes SDXL's latents, not a {type(rig.pipe).__name__}'s")
    if rig.generate is not plainly:
        return Missing("unavailable", "another technique of this stack makes the pictures in its own way already")
    return companions.why_missing(rig, companions.REFINER)


def _row(name: str, title: str, claim: str, apply: Callable[[Rig], Applied]) -> Technique:
    return Technique(
        name=f"refiner-{name}",
        title=f"Refiner, {title}",
        claim=claim,
        source=GUIDE,
        exactness="approximate",
        stage="call",
        apply=apply,
        why_missing=_why_no_refiner,
        group="refiner",
    )


def _expert(percent: int) -> Technique:
    share = percent / 100

    def expected(steps: int) -> tuple[int, int]:
        return round(steps * share), steps - round(steps * share)

    claim = f"The base does {percent} % of the steps, an expert for the last ones the rest: clearly better."
    return _row(f"ensemble-{percent}", f"ensemble at {percent} %", claim, _refined(_ensemble(share), expected))


def _painter(steps: int) -> Technique:
    def expected(base_steps: int) -> tuple[int, int]:
        return base_steps, int(steps * _STRENGTH)

    claim = (
        f"{steps} steps over the finished picture, of which the default strength runs three in ten: disappointing."
    )
    return _row(
        f"img2img-{steps}", f"image to image, {steps} steps", claim, _refined(_image_to_image(steps), expected)
    )


ROWS: tuple[Technique, ...] = (_expert(80), _expert(90), _painter(10), _painter(20))
