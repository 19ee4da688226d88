"""One component at a time: text encoders, denoiser and VAE are never there together.

The guide builds a pipeline for each phase.  Here the modules stay and their weights come and go (see
:mod:`.weights`), so that whatever other techniques left on them is still there: dtype, layout, hooks, another VAE.
The VAE stays: it is small, and it decodes when everything else is gone.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from . import extra_models
from .evidence import watching
from .pipeline_context import PipelineContext, default_side, modules
from .technique import Missing, Proof, Technique, Undo, Witness, row
from .weights import are_plain, bring_back, check_same, send_away

_FOUR = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")

#: What ``encode_prompt`` returns, by the names that the call takes it under; what it returns beyond, the call makes
#: again.
_READ = {
    "sd-v1": ("prompt_embeds", "negative_prompt_embeds"),
    "sdxl": _FOUR,
    "sd3": _FOUR,
    "flux": ("prompt_embeds", "pooled_prompt_embeds"),
}


class _Phases:
    """Pictures in three phases.

    Args:
        context: Whose text encoders and denoiser have their weights while they compute, and not otherwise.

    Attributes:
        stayed: For each phase of the last picture, the part, and how many of how many weights outlived it.
    """

    def __init__(self, context: PipelineContext) -> None:
        self._context = context
        self.stayed: list[tuple[str, int, int]] = []

    def generate(
        self, context: PipelineContext, prompt: str, generator: torch.Generator, arguments: dict[str, Any]
    ) -> Any:
        """Takes the place of :func:`.pipeline_context.plainly`."""
        self.stayed.clear()
        texts, (denoiser,) = _parts(context.pipe)
        with self._there(texts):
            read, rest = _read(context, prompt, arguments)
        with self._there([denoiser]), _without(context.pipe, texts):
            latents = context.pipe(generator=generator, output_type="latent", **read, **rest).images
        return _picture(context.pipe, latents, rest)

    @property
    def names(self) -> list[str]:
        """Of the parts that come and go."""
        return [name for part in _parts(self._context.pipe) for name in part]

    @contextmanager
    def watched(self) -> Iterator[list[tuple[str, int, int]]]:
        """:attr:`stayed`, of pictures from now on."""
        self.stayed.clear()
        yield self.stayed

    def check(self) -> None:
        """Raises :class:`RequestError` unless the disk has the weights of every part; asked one by one."""
        for name in self.names:
            check_same(getattr(self._context.pipe, name), getattr(self._context.loaded_anew(name), name))

    def bring_all(self) -> None:
        """All weights back."""
        self._bring(self.names)

    @contextmanager
    def _there(self, names: list[str]) -> Iterator[None]:
        self._bring(names)
        try:
            yield
        finally:
            for name in names:
                references = send_away(getattr(self._context.pipe, name))
                self.stayed.append((name, _alive(references), len(references)))

    def _bring(self, names: list[str]) -> None:
        fresh = self._context.loaded_anew(*names)
        for name in names:
            bring_back(getattr(self._context.pipe, name), getattr(fresh, name), self._context.device)


def _parts(pipe: Any) -> tuple[list[str], list[str]]:
    """Names of the text encoders, and of the denoiser."""
    names = modules(pipe)
    texts = [name for name in names if name.startswith("text_encoder")]
    return texts, ["unet" if "unet" in names else "transformer"]


def _alive(references: list[weakref.ref[torch.Tensor]]) -> int:
    return sum(reference() is not None for reference in references)


def _read(
    context: PipelineContext, prompt: str, arguments: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The prompt as embeddings, by the names of the call's arguments; and the arguments that are left."""
    known = inspect.signature(context.pipe.encode_prompt).parameters
    scale = arguments.get(
        "guidance_scale", inspect.signature(context.pipe.__call__).parameters["guidance_scale"].default
    )
    given = {
        "prompt_2": None,
        "prompt_3": None,
        "device": context.device,
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": scale > 1,
        **arguments,
    }
    encoded = context.pipe.encode_prompt(prompt, **{name: given[name] for name in known if name in given})
    names = _READ[str(extra_models.family(context.pipe))]
    rest = {name: value for name, value in arguments.items() if name not in known}
    return dict(zip(names, encoded, strict=False)), rest


@contextmanager
def _without(pipe: Any, names: list[str]) -> Iterator[None]:
    # Pipelines compute where their first module is, and one that is away is nowhere.  Past diffusers' __setattr__,
    # which would also forget the parts' classes in the pipeline's config.
    parts = {name: vars(pipe)[name] for name in names}
    vars(pipe).update(dict.fromkeys(names))
    try:
        yield
    finally:
        vars(pipe).update(parts)


def _picture(pipe: Any, latents: torch.Tensor, arguments: dict[str, Any]) -> Any:
    """What the pipeline itself does with its last latents."""
    vae, config = pipe.vae, pipe.vae.config
    if hasattr(pipe, "_unpack_latents"):
        default = default_side(pipe)
        sides = (arguments.get("height") or default, arguments.get("width") or default)
        latents = pipe._unpack_latents(latents, *sides, pipe.vae_scale_factor)
    is_widened = extra_models.family(pipe) == "sdxl" and vae.dtype == torch.float16 and config.force_upcast
    if is_widened:
        vae.to(dtype=torch.float32)
        latents = latents.to(torch.float32)
    latents = latents / config.scaling_factor + (config.get("shift_factor") or 0)
    image = vae.decode(latents, return_dict=False)[0]
    if is_widened:
        vae.to(dtype=torch.float16)
    return pipe.image_processor.postprocess(image, output_type="np")


def _batch_processing(context: PipelineContext, undo: Undo) -> Callable[[], Witness]:
    phases = _Phases(context)
    phases.check()
    undo.by(phases.bring_all)
    for name in phases.names:
        send_away(getattr(context.pipe, name))
    undo.set(context, "generate", phases.generate)

    def judge(stayed: list[tuple[str, int, int]]) -> Proof:
        told = ", ".join(f"{alive} of {count} of the {name}'s" for name, alive, count in stayed)
        gone = bool(stayed) and all(alive == 0 for _, alive, _ in stayed)
        return Proof(gone, f"weights that outlived their phase: {told or 'no phase was seen'}")

    return watching(judge, phases.watched)


def _why_whole(context: PipelineContext) -> Missing | None:
    for name in (name for part in _parts(context.pipe) for name in part):
        if not are_plain(getattr(context.pipe, name)):
            return Missing(
                "unavailable", f"the weights of the {name} are offloaded or quantised, not as on the disk"
            )
    return None


ROWS: tuple[Technique, ...] = (row("batch-processing", _batch_processing, _why_whole),)
