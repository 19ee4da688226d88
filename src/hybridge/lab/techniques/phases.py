"""One component at a time: text encoders, denoiser and VAE are never there together.

The guide builds a pipeline for each phase.  Here the modules stay and their weights come and go (see
:mod:`.weights`), so that whatever other techniques left on them is still there: dtype, layout, hooks, another VAE.
The VAE stays: it is small, and it decodes when everything else is gone.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from . import extra_models
from .evidence import watching
from .pipeline_context import PipelineContext, default_side, modules
from .technique import Missing, Proof, Undo, Watch
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


#: For each phase of a picture, the part, and how many of how many weights outlived it.
_Stayed = list[tuple[str, int, int]]


def batch_processing(context: PipelineContext, undo: Undo) -> Watch:
    """Text encoders and denoiser have their weights while they compute, and not otherwise."""
    texts = _texts(context)
    names = [*texts, context.denoiser_name]
    stayed: _Stayed = []
    for name in names:
        check_same(getattr(context.pipe, name), getattr(context.loaded_anew(name), name))

    def bring(names: list[str]) -> None:
        fresh = context.loaded_anew(*names)
        for name in names:
            bring_back(getattr(context.pipe, name), getattr(fresh, name), context.device)

    @contextmanager
    def there(names: list[str]) -> Iterator[None]:
        bring(names)
        try:
            yield
        finally:
            for name in names:
                references = send_away(getattr(context.pipe, name))
                alive = sum(reference() is not None for reference in references)
                stayed.append((name, alive, len(references)))

    def generate(_: object, prompt: str, generator: torch.Generator, arguments: dict[str, Any]) -> Any:
        stayed.clear()
        with there(texts):
            read, rest = _read(context, prompt, arguments)
        with there([context.denoiser_name]), _without(context.pipe, texts):
            latents = context.pipe(generator=generator, output_type="latent", **read, **rest).images
        return _picture(context.pipe, latents, rest)

    def watched() -> AbstractContextManager[_Stayed]:
        stayed.clear()
        return nullcontext(stayed)

    undo.by(bring, names)
    for name in names:
        send_away(getattr(context.pipe, name))
    undo.set(context, "generate", generate)
    return watching(_judge, watched)


def _judge(stayed: _Stayed) -> Proof:
    told = ", ".join(f"{alive} of {count} of the {name}'s" for name, alive, count in stayed)
    gone = bool(stayed) and all(alive == 0 for _, alive, _ in stayed)
    return Proof(gone, f"weights that outlived their phase: {told or 'no phase was seen'}")


def why_whole(context: PipelineContext) -> Missing | None:
    """Weights that are not as on the disk."""
    for name in (*_texts(context), context.denoiser_name):
        if not are_plain(getattr(context.pipe, name)):
            reason = f"the weights of the {name} are offloaded or quantised, not as on the disk"
            return Missing("unavailable", reason)
    return None


def _texts(context: PipelineContext) -> list[str]:
    return [name for name in modules(context.pipe) if name.startswith("text_encoder")]


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
