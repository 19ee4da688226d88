"""Why a row cannot run, where that can be told without trying: no such library, a pipeline of another make."""

from __future__ import annotations

import shutil
from pathlib import Path

from ...units import format_bytes
from ..harness.environment import version
from .facts import Missing
from .pipeline_context import PipelineContext


def not_installed(*distributions: str, instead: str | None = None) -> Missing | None:
    """What of these is not installed; None where everything is.

    Args:
        *distributions: As ``pip install`` takes them, without versions.
        instead: What lives in its place.
    """
    absent = [name for name in distributions if version(name) is None]
    if not absent:
        return None
    return Missing("unavailable", f"not installed: {', '.join(absent)}", instead)


def no_unet(context: PipelineContext, *, instead: str | None = None) -> Missing | None:
    """Why a technique for UNets cannot run, or None."""
    if getattr(context.pipe, "unet", None) is not None:
        return None
    return Missing(
        "unavailable", f"it works on a UNet, and this pipeline has a {type(context.denoiser).__name__}", instead
    )


def no_room(folder: Path, needed_bytes: int) -> Missing | None:
    """What to say when a disk has less room than what will be written there; None where it has enough."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes >= needed_bytes:
        return None
    needed, free = format_bytes(needed_bytes, decimal=True, up=True), format_bytes(free_bytes, decimal=True)
    return Missing("unavailable", f"{needed} would go to {folder}, where {free} are free")
