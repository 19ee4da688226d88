"""What techniques work on: a pipeline, the arguments of its call, and how a picture is made with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

#: Makes pictures: (context, prompt, generator, further arguments of the call) → (B, H, W, 3) float array in [0, 1].
Generate = Callable[["PipelineContext", str, torch.Generator, dict[str, Any]], Any]

#: Tensors of the steps' callback that have an unwanted and a wanted half under guidance.
DOUBLED = ("prompt_embeds", "add_text_embeds", "add_time_ids", "pooled_prompt_embeds")


def plainly(context: PipelineContext, prompt: str, generator: torch.Generator, arguments: dict[str, Any]) -> Any:
    """One call of the pipeline, as its documentation shows it."""
    return context.pipe(prompt, generator=generator, output_type="np", **arguments).images


def modules(pipe: Any) -> dict[str, torch.nn.Module]:
    """A pipeline's parts that have weights, by name."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def default_side(pipe: Any) -> int:
    """Side in pixels of the pictures that a pipeline makes unless told otherwise.

    Pipelines of SD 1.5 say it in the UNet's config alone, as one number or as (height, width); without either it is
    what diffusers' UNet is made for, 64 latents.
    """
    size = getattr(pipe, "default_sample_size", None)
    if size is None:
        denoiser = pipe.unet if getattr(pipe, "unet", None) is not None else pipe.transformer
        size = denoiser.config.get("sample_size")
    size = 64 if size is None else max(size) if isinstance(size, (list, tuple)) else size
    return int(size) * int(pipe.vae_scale_factor)


@dataclass(slots=True, eq=False)
class PipelineContext:
    """A pipeline on the bench.  Techniques change it, and put back what they changed.

    Attributes:
        pipe: A diffusers text-to-image pipeline.
        arguments: Of its call: ``num_inference_steps``, ``guidance_scale``, ``height``, ``width``, …
        folder: For what must lie on a disk: offloaded weights, exported engines.  The context's owner empties it.
        device: Where the pipeline computes.
        reload: Loads the same pipeline anew, with these arguments of ``from_pretrained`` (``unet=None``), on the
            CPU; for techniques that load in another way.
        is_kept: Whether techniques keep what their way back needs, where that takes time and room on the disk; not
            where the process ends with the picture.
        origin: Where the pipeline was loaded from, a folder or a hub id; see :mod:`.extra_models`.
        server: Address of a hybridge server that may be used, or None.
        generate: How a picture is made; replaced by techniques that make it in another way.
        before_picture: Called before every picture: what keeps state between steps is reset here.
        after_step: Called after every denoising step with (context, index of the step, the callback's tensors); a
            callback may change the tensors in place of the mapping, as ``callback_on_step_end`` may.
        guidance_ended: Called with the index of the last step under guidance, when a technique ends guidance early:
            from the next step on the batch is half as large, so whoever keeps features of earlier steps must drop
            them.
    """

    pipe: Any
    arguments: dict[str, Any]
    folder: Path
    device: torch.device
    reload: Callable[..., Any]
    is_kept: bool = True
    origin: str = ""
    server: str | None = None
    generate: Generate = plainly
    before_picture: list[Callable[[], None]] = field(default_factory=list)
    after_step: list[Callable[[PipelineContext, int, dict[str, Any]], None]] = field(default_factory=list)
    guidance_ended: list[Callable[[int], None]] = field(default_factory=list)

    def picture(self, prompt: str, seed: int, **arguments: Any) -> Any:
        """Makes the pictures of one call: (B, H, W, 3), float in [0, 1].

        Args:
            prompt: What is asked for.
            seed: Of a CPU generator, so that the noise is the same on every device.
            **arguments: Of the call, above the context's own.
        """
        whole = self.call_arguments(**arguments)
        with torch.inference_mode(False), torch.no_grad():
            return self.generate(self, prompt, torch.Generator("cpu").manual_seed(seed), whole)

    def call_arguments(self, **arguments: Any) -> dict[str, Any]:
        """The arguments of the next call: the context's own, those given above them, and the callback.

        What techniques keep between steps is reset when this is asked.
        """
        for prepare in self.before_picture:
            prepare()
        whole = {**self.arguments, **arguments}
        if self.after_step:
            whole["callback_on_step_end"] = self._stepped
            whole["callback_on_step_end_tensor_inputs"] = self._tensor_inputs()
        return whole

    @property
    def denoiser_name(self) -> str:
        """Of the part of the pipeline that is called at every step."""
        return "unet" if getattr(self.pipe, "unet", None) is not None else "transformer"

    @property
    def denoiser(self) -> Any:
        """The UNet or the transformer: what is called at every step."""
        return getattr(self.pipe, self.denoiser_name)

    def loaded_anew(self, *names: str) -> Any:
        """A pipeline with these parts, as they are on the disk, and without the others that have weights."""
        return self.reload(**{name: None for name in modules(self.pipe) if name not in names})

    def _tensor_inputs(self) -> list[str]:
        # Pipelines name different ones, and refuse names that they do not know.
        return [name for name in DOUBLED if name in self.pipe._callback_tensor_inputs]

    def _stepped(self, _pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        for callback in self.after_step:
            callback(self, step, tensors)
        return tensors
