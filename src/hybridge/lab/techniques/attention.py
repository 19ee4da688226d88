"""Attention: which kernel computes it."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from .evidence import looked_at
from .pipeline_context import PipelineContext
from .technique import Applied, Missing, Proof, Technique, row


def _named(processors: dict[str, Any]) -> str:
    counts = Counter(type(processor).__name__ for processor in processors.values())
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _by_processors(change: Callable[[PipelineContext], None]) -> Callable[[PipelineContext], Applied]:
    """For what shows in the processors' classes, and is undone by putting the former processors back."""

    def apply(context: PipelineContext) -> Applied:
        module = context.denoiser
        before = dict(module.attn_processors)
        try:
            change(context)
        except Exception:
            module.set_attn_processor(dict(before))  # emptied by the call
            raise
        classes = {name: type(processor) for name, processor in before.items()}

        def look() -> Proof:
            now = module.attn_processors
            changed = sum(type(processor) is not classes.get(name) for name, processor in now.items())
            evidence = f"{_named(now)} in the denoiser; {_named(before)} before"
            return Proof(changed > 0, evidence)

        return Applied(looked_at(look), lambda: module.set_attn_processor(dict(before)))

    return apply


def _vanilla(context: PipelineContext) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    context.denoiser.set_attn_processor(AttnProcessor())


def _sdpa(context: PipelineContext) -> None:
    from diffusers.models.attention_processor import AttnProcessor2_0

    context.denoiser.set_attn_processor(AttnProcessor2_0())


def _needs_unet(context: PipelineContext) -> Missing | None:
    if getattr(context.pipe, "unet", None) is not None:
        return None
    reason = f"{type(context.denoiser).__name__} has processors of its own, and they all call SDPA"
    return Missing("unavailable", reason, instead="nothing: SDPA is what it has")


def _backend(context: PipelineContext) -> Applied:
    from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

    module = context.denoiser
    name = _backend_for(context.device, module.dtype)
    before = {key: _backend_of(processor) for key, processor in module.attn_processors.items()}
    # The call also turns the default of the whole process; this puts that back as soon as it returns.
    with attention_backend(AttentionBackendName.NATIVE):
        module.set_attention_backend(name)

    def look() -> Proof:
        chosen = [_backend_of(processor) == name for processor in module.attn_processors.values()]
        evidence = f"{sum(chosen)} of {len(chosen)} attention processors take {name}"
        return Proof(
            any(chosen), evidence if any(chosen) else f"{evidence}: {_named(module.attn_processors)} cannot"
        )

    def undo() -> None:
        for key, processor in module.attn_processors.items():
            if hasattr(processor, "_attention_backend"):
                processor._attention_backend = before[key]

    return Applied(looked_at(look), undo)


def _backend_of(processor: Any) -> Any:
    return getattr(processor, "_attention_backend", None)


def _backend_for(device: torch.device, dtype: torch.dtype) -> str:
    """One that computes there: cuDNN's and the flash kernel know no float32 on a GPU."""
    if device.type != "cuda":
        return "_native_flash"
    return "_native_cudnn" if dtype.itemsize == 2 else "_native_efficient"


def _why_no_backend(context: PipelineContext) -> Missing | None:
    if hasattr(context.denoiser, "set_attention_backend"):
        return None
    return Missing("unavailable", "this diffusers has no set_attention_backend", instead="diffusers 0.35 or later")


def _why_no_xformers(context: PipelineContext) -> Missing | None:
    instead = "SDPA, the default since PyTorch 2.0"
    if context.device.type != "cuda":
        return Missing("unavailable", f"xFormers computes on a GPU, not on a {context.device.type}", instead)
    if importlib.util.find_spec("xformers") is None:
        return Missing("unavailable", "xformers is not installed; it needs a build for this very torch", instead)
    return None


ROWS: tuple[Technique, ...] = (
    row("attention-vanilla", _by_processors(_vanilla), _needs_unet),
    row("attention-sdpa", _by_processors(_sdpa), _needs_unet),
    row("attention-slicing", _by_processors(lambda context: context.pipe.enable_attention_slicing("max"))),
    row("attention-backend", _backend, _why_no_backend),
    row(
        "xformers",
        _by_processors(lambda context: context.pipe.enable_xformers_memory_efficient_attention()),
        _why_no_xformers,
    ),
)
