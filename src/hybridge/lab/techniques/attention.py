"""Attention: which kernel computes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from .evidence import watching
from .pipeline_context import PipelineContext
from .technique import Proof, Undo, Watch


def processors(context: PipelineContext, undo: Undo, name: str) -> Watch:
    """One of diffusers' processors for every attention."""
    from diffusers.models import attention_processor

    kind = getattr(attention_processor, name)
    return _by_processors(context, undo, lambda: context.denoiser.set_attn_processor(kind()))


def slicing(context: PipelineContext, undo: Undo) -> Watch:
    """One head at a time."""
    return _by_processors(context, undo, lambda: context.pipe.enable_attention_slicing("max"))


def xformers(context: PipelineContext, undo: Undo) -> Watch:
    """The kernels of another library."""
    return _by_processors(context, undo, context.pipe.enable_xformers_memory_efficient_attention)


def _by_processors(context: PipelineContext, undo: Undo, change: Callable[[], object]) -> Watch:
    """For what shows in the processors' classes, and is undone by putting the former processors back."""
    module = context.denoiser
    before = dict(module.attn_processors)
    undo.by(lambda: module.set_attn_processor(dict(before)))  # which the call empties
    change()
    classes = {name: type(processor) for name, processor in before.items()}

    def look() -> Proof:
        now = module.attn_processors
        changed = sum(type(processor) is not classes.get(name) for name, processor in now.items())
        return Proof(changed > 0, f"{_named(now)} in the denoiser; {_named(before)} before")

    return watching(look)


def _named(processors: dict[str, Any]) -> str:
    counts = Counter(type(processor).__name__ for processor in processors.values())
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def backend(context: PipelineContext, undo: Undo) -> Watch:
    """diffusers' dispatcher told which kernel to take."""
    from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

    module = context.denoiser
    name = _backend_for(context.device, module.dtype)
    before = {key: _backend_of(processor) for key, processor in module.attn_processors.items()}

    def put_back() -> None:
        for key, processor in module.attn_processors.items():
            if hasattr(processor, "_attention_backend"):
                processor._attention_backend = before[key]

    undo.by(put_back)
    # The call also turns the default of the whole process; this puts that back as soon as it returns.
    with attention_backend(AttentionBackendName.NATIVE):
        module.set_attention_backend(name)

    def look() -> Proof:
        processors = module.attn_processors
        chosen = [_backend_of(processor) == name for processor in processors.values()]
        evidence = f"{sum(chosen)} of {len(chosen)} attention processors take {name}"
        return Proof(any(chosen), evidence if any(chosen) else f"{evidence}: {_named(processors)} cannot")

    return watching(look)


def _backend_of(processor: Any) -> Any:
    return getattr(processor, "_attention_backend", None)


def _backend_for(device: torch.device, dtype: torch.dtype) -> str:
    """One that computes there: cuDNN's and the flash kernel know no float32 on a GPU."""
    if device.type != "cuda":
        return "_native_flash"
    return "_native_cudnn" if dtype.itemsize == 2 else "_native_efficient"
