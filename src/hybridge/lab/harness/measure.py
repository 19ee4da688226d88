"""How long a call takes, and how much memory on top of what is there already.

Memory on CUDA: what torch's allocator handed out at most, less what it had handed out before.  On a CPU: how far
the process's resident set grew at most, which the kernel counts itself (``VmHWM``, set back through
``clear_refs``), so what libraries take inside an operator is in it.  Memory that an allocator had kept for itself
is returned first, else a second call would seem to need less than the first.
"""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from ...engine.memory.device_memory import release_memory

Made = TypeVar("Made")

_PROCESS = Path("/proc/self")

#: What makes the kernel forget the highest resident set; see proc_pid_clear_refs(5).
_FORGET_PEAK = "5"


def growth(run: Callable[[], Made], device: torch.device, *, above: int | None = None) -> tuple[Made, int | None]:
    """(what ``run`` gave, the bytes that existed at most while it ran, less those before it).

    Args:
        run: What is watched.
        device: Whose memory.
        above: Bytes to count from instead of what exists now; see :func:`resident_bytes`.

    None where it cannot be known: on other devices than CUDA's and the CPU, and where the kernel does not tell.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) if above is None else above
        given = run()
        torch.cuda.synchronize(device)
        return given, torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu" or not _forget_peak():
        return run(), None
    before = _status_bytes("VmRSS") if above is None else above
    given = run()
    return given, max(0, _status_bytes("VmHWM") - before)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Of one call, until the device has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def resident_bytes() -> int | None:
    """Of this process, now, less what an allocator only keeps; None where the kernel does not tell."""
    gc.collect()
    return _status_bytes("VmRSS") if _forget_peak() else None


def _forget_peak() -> bool:
    release_memory()
    try:
        (_PROCESS / "clear_refs").write_text(_FORGET_PEAK, encoding="ascii")
        # A sandbox may take the write and have no such line.
        return "VmHWM:" in (_PROCESS / "status").read_text(encoding="ascii")
    except OSError:
        return False


def _status_bytes(line: str) -> int:
    found = re.search(rf"^{line}:\s+(\d+) kB$", (_PROCESS / "status").read_text(encoding="ascii"), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0
