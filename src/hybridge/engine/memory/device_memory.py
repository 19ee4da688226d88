"""Allocate memory, release it, and recognise its shortage, on any device."""

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
    """Convert errors of a forward: to OutOfMemory if the device had too little memory, else to EngineFailure."""
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
    """Return whether an error of torch or Python means that there was too little memory."""
    # torch's CPU allocator raises a plain RuntimeError, and mapping a file an OSError.
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)


def free_bytes(device: torch.device) -> int | None:
    """Return a device's free bytes, or None where nothing bounds them.

    On a GPU this is the unallocated memory plus the unused part of torch's own reserve; on a CPU it is what control
    groups and the process's own limits leave.
    """
    if device.type == "cpu":
        return granted_bytes()
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


_givers: list[Callable[[], None]] = []


def on_release(giver: Callable[[], None]) -> None:
    """Register a function that :func:`release_memory` calls."""
    _givers.append(giver)


def release_memory() -> None:
    """Return freed memory that is still kept, here and in the C library, to the system.

    glibc keeps freed memory for each thread separately, and models are loaded by short-lived threads.  Other C
    libraries return it by themselves.
    """
    for giver in _givers:
        giver()
    trim()


def trim() -> None:
    """Make the C library return the pages of freed memory; this takes about 10 ms if there are many."""
    trim_heaps = _of_glibc("malloc_trim")
    if trim_heaps is not None:
        trim_heaps(0)


#: Smaller pieces come from the allocator, which reuses them: new pages would take longer than small strips.
#: See benchmarks/LOG.md.
MAPPED_FROM_BYTES = 32 * 2**20

#: Most bytes that the allocator may keep; the pieces that one plan uses at a time are smaller in total.
_KEPT_BYTES = 256 * 2**20

# From malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def keep_pieces() -> None:
    """Make the C library keep freed pieces, in one heap for all threads.

    By default glibc gives each thread its own heap and soon returns its pages to the system: when the engine did
    not run in the first thread, a third of its time went into allocating them again.  Only a process that hybridge
    starts calls this, before it has threads; it does nothing if malloc's own environment variables are set.
    """
    tune = _of_glibc("mallopt")
    if tune is None or "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return
    tune(_M_ARENA_MAX, 1)
    tune(_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
    tune(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def _of_glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


#: By default Python shares a mapping with child processes, and shared mappings get no huge pages.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def allocate(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """Return contiguous memory of ``like``'s dtype and device, with undefined contents.

    On a CPU it is mapped from the system, in huge pages if possible, and returned together with the tensor.  The C
    library's allocator would keep freed memory for requests of the same size; strips request many different sizes,
    so the process would keep more than the plan's memory.

    Raises:
        MemoryError: when the system has no room.
    """
    nbytes = math.prod(shape) * like.itemsize
    if like.device.type != "cpu" or nbytes < MAPPED_FROM_BYTES:
        return like.new_empty(shape)
    return torch.frombuffer(map_pages(nbytes), dtype=like.dtype).view(shape)


def map_pages(nbytes: int) -> mmap.mmap:
    """Return memory from the system, in huge pages if possible.

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
    """Return memory for (1, channels, height, width), channels-last, as :func:`allocate` does."""
    return allocate(like, 1, height, width, channels).permute(0, 3, 1, 2)
