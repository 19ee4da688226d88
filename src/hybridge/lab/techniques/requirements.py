"""Why a row cannot run, where that can be told without trying: no such library, a pipeline of another make."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...units import format_bytes
from ..harness.environment import version
from .extra_models import family
from .facts import Facts, Missing
from .pipeline_context import PipelineContext, plainly


def unmet(facts: Facts, context: PipelineContext) -> Missing | None:
    """The first requirement of a row that a context does not meet, or None.

    Where the row says what lives instead, its ``needs`` are looked for as well.
    """
    for required in facts.requires:
        name, *arguments = required.that.split()
        if not CONDITIONS[name](context, *arguments):
            instead = required.instead and _filled(required.instead, context)
            return Missing(required.outcome, _filled(required.reason, context), instead)
    absent = [name for name in facts.needs if version(name) is None] if facts.instead else []
    return Missing("unavailable", f"not installed: {', '.join(absent)}", facts.instead) if absent else None


def no_room(folder: Path, needed_bytes: int) -> Missing | None:
    """What to say when a disk has less room than what will be written there; None where it has enough."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes >= needed_bytes:
        return None
    needed, free = format_bytes(needed_bytes, decimal=True, up=True), format_bytes(free_bytes, decimal=True)
    return Missing("unavailable", f"{needed} would go to {folder}, where {free} are free")


def _filled(text: str, context: PipelineContext) -> str:
    """A text of the catalogue with its words; only those are asked for, as not every pipeline has all."""
    names = [name for _, name, _, _ in string.Formatter().parse(text) if name]
    return text.format(**{name: WORDS[name](context) for name in names})


def _has_unet(context: PipelineContext) -> bool:
    return getattr(context.pipe, "unet", None) is not None


def _can_be_exported(context: PipelineContext) -> bool:
    dtype = context.denoiser.dtype
    return dtype == torch.float32 or (dtype == torch.float16 and context.device.type == "cuda")


def _is_there(_: PipelineContext, kind: str, plugin: str) -> bool:
    """Whether torch has a device of this kind once its plugin is loaded."""
    importlib.import_module(plugin)
    module = getattr(torch, kind, None)
    return module is not None and bool(module.is_available())


def _can_decode_in_parts(context: PipelineContext, method: str) -> bool:
    vae = context.pipe.vae
    return hasattr(vae, method) and isinstance(getattr(vae, "decoder", None), torch.nn.Module)


#: What reasons in the catalogue may name.
WORDS: dict[str, Callable[[PipelineContext], str]] = {
    "pipe": lambda context: type(context.pipe).__name__,
    "denoiser": lambda context: type(context.denoiser).__name__,
    "dtype": lambda context: str(context.denoiser.dtype).removeprefix("torch."),
    "vae": lambda context: type(context.pipe.vae).__name__,
    "device": lambda context: str(context.device),
    "kind": lambda context: context.device.type,
    "cache": lambda context: "taylorseer" if _has_unet(context) else "first-block-cache",
    "torch": lambda _: torch.__version__,
    "platform": lambda _: platform.platform(),
}

#: What a row of the catalogue may require: from the context, and the words that follow the name there.
CONDITIONS: dict[str, Callable[..., Any]] = {
    "unet": _has_unet,
    "device": lambda context, *kinds: context.device.type in kinds,
    "float32": lambda context: context.denoiser.dtype == torch.float32,
    "exportable": _can_be_exported,
    "pipeline": lambda context, *names: type(context.pipe).__name__ in names,
    "family": lambda context, *names: family(context.pipe) in names,
    "pipeline-has": lambda context, name: hasattr(type(context.pipe), name),
    "denoiser-has": lambda context, name: hasattr(context.denoiser, name),
    "vae-has": _can_decode_in_parts,
    "plain-call": lambda context: context.generate is plainly,
    "server": lambda context: context.server is not None,
    "installed": lambda _, *names: all(version(name) is not None for name in names),
    "importable": lambda _, module: importlib.util.find_spec(module) is not None,
    "accelerator": _is_there,
    "mps-built": lambda _: torch.backends.mps.is_built(),
    "mps-available": lambda _: torch.backends.mps.is_available(),
    "dynamic-quantisation": lambda _: hasattr(torch.ao.quantization, "quantize_dynamic"),
}
