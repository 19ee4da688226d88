"""Is what a technique stands on here?  Looked for, not imported: importing some of these takes seconds."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from .technique import Missing


def not_installed(module: str, distribution: str, *, instead: str | None = None) -> Missing | None:
    """What to say when a module cannot be found; None where it can."""
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        found = False
    return None if found else Missing("unavailable", f"{distribution} is not installed", instead)


def no_room(folder: Path, needed_bytes: int) -> Missing | None:
    """What to say when a disk has less room than what will be written there; None where it has enough."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes >= needed_bytes:
        return None
    gigabytes = f"{needed_bytes / 1e9:.2f} GB would go to {folder}, where {free_bytes / 1e9:.2f} GB are free"
    return Missing("unavailable", gigabytes)
