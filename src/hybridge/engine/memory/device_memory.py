"""Taking memory, giving it back, and running out of it, on whatever device."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from ...errors import EngineFailure, OutOfMemory
from ..machine.cgroups import granted_bytes


@contextmanager
def map_torch_errors(what: str, device: torch.device) -> Iterator[None]:
    """Turns the errors of a forward into ours: OutOfMemory where the device had no room, else EngineFailure."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_short_of_memory(error):
            raise EngineFailure(f"{what} failed", saw=str(error).splitlines()[0]) from error
        if device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemory(
            f"{what} does not fit in the memory of {device}", hint="a smaller picture or batch"
        ) from None


def is_short_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python says that there was no room."""
    # A CPU allocator raises a plain RuntimeError, and mapping a file an OSError.
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)


def free_bytes(device: torch.device) -> int | None:
    """What a device has left, None where nothing bounds it.

    Of a GPU that is what nobody has, and what torch keeps of what it was given; of a CPU what control groups and
    the process's own limits leave.
    """
    if device.type == "cpu":
        return granted_bytes()
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


_givers: list[Callable[[], None]] = []


def on_release(giver: Callable[[], None]) -> None:
    """Has :func:`release_memory` call it."""
    _givers.append(giver)


def release_memory() -> None:
    """Gives the system what is kept of memory that was freed, here and in the C library.

    glibc keeps it for every thread apart, and models are loaded by threads that come and go.  Other libraries give
    it back by themselves.
    """
    for giver in _givers:
        giver()
    trim()


def trim() -> None:
    """Has the C library give back the pages of what was freed; takes some 10 ms where there are many."""
    trim_heaps = _of_glibc("malloc_trim")
    if trim_heaps is not None:
        trim_heaps(0)


#: Smaller pieces are the allocator's, which keeps them for the next: fresh pages cost more than small strips take.
#: See benchmarks/LOG.md.
MAPPED_FROM_BYTES = 32 * 2**20

#: What the allocator may keep; pieces that one plan has at a time are together smaller.
_KEPT_BYTES = 256 * 2**20

# From malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def keep_pieces() -> None:
    """Has the C library keep the pieces that are freed, for all threads together.

    By itself glibc gives each thread a heap of its own, and soon gives its pages back: where the engine does not
    run in the first thread, a third of its time went into taking them again.  This is for a process that is ours,
    before it has threads; whoever has set malloc's own variables is left alone.
    """
    tune = _of_glibc("mallopt")
    if tune is None or "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return
    tune(_M_ARENA_MAX, 1)
    tune(_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
    tune(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def _of_glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


#: Python shares a mapping with processes to come unless it is told not to, and what is shared gets no huge pages.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def allocate(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """Memory of ``like``'s dtype and device, contiguous, its numbers undefined.

    On a CPU it is mapped from the system, in huge pages where there are any, and goes back there with the tensor.
    A C library's allocator would keep what is freed for requests of the same size; strips ask for ever other sizes,
    and more than the plan's memory would stay with the process.

    Raises:
        MemoryError: when the system has no room.
    """
    nbytes = math.prod(shape) * like.itemsize
    if like.device.type != "cpu" or nbytes < MAPPED_FROM_BYTES:
        return like.new_empty(shape)
    return torch.frombuffer(map_pages(nbytes), dtype=like.dtype).view(shape)


def map_pages(nbytes: int) -> mmap.mmap:
    """Memory from the system, in huge pages where there are any.

    Raises:
        MemoryError: when the system has no room.
    """
    try:
        mapped = mmap.mmap(-1, nbytes, **_PRIVATE)
    except OSError as error:
        raise MemoryError(f"{nbytes} bytes: {error.strerror}") from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel that has none
            mapped.madvise(mmap.MADV_HUGEPAGE)
    return mapped


def allocate_picture(like: torch.Tensor, channels: int, height: int, width: int) -> torch.Tensor:
    """The same for (1, channels, height, width), channels-last."""
    return allocate(like, 1, height, width, channels).permute(0, 3, 1, 2)
