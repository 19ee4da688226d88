"""Taking memory, giving it back, and running out of it, on whatever device."""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import EngineFailure, OutOfMemory


@contextmanager
def failures_named(what: str, device: torch.device) -> Iterator[None]:
    """Turns the errors of a forward into ours: OutOfMemory where the device had no room, else EngineFailure."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # A CPU allocator raises a plain RuntimeError.
        if not isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) and "allocate memory" not in str(
            error
        ):
            raise EngineFailure(f"{what} failed", saw=str(error).splitlines()[0]) from error
        if device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemory(
            f"{what} does not fit in the memory of {device}", hint="a smaller picture or batch"
        ) from None


def give_back() -> None:
    """Gives the system what the C library keeps of memory that was freed.

    glibc keeps it for every thread apart, and models are loaded by threads that come and go.  Other libraries give
    it back by themselves.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


#: Smaller pieces are the allocator's, which keeps them for the next: fresh pages cost more than small strips take.
#: See benchmarks/LOG.md.
_MAPPED_FROM_BYTES = 32 * 2**20


def allocate(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """Memory of ``like``'s dtype and device, contiguous, its numbers undefined.

    On a CPU it is mapped from the system and goes back there with the tensor.  A C library's allocator would keep
    what is freed for requests of the same size; strips ask for ever other sizes, and more than the plan's memory
    would stay with the process.

    Raises:
        MemoryError: when the system has no room.
    """
    nbytes = math.prod(shape) * like.itemsize
    if like.device.type != "cpu" or nbytes < _MAPPED_FROM_BYTES:
        return like.new_empty(shape)
    try:
        mapped = mmap.mmap(-1, nbytes)
    except OSError as error:
        raise MemoryError(f"{nbytes} bytes: {error.strerror}") from None
    return torch.frombuffer(mapped, dtype=like.dtype).view(shape)


def allocate_picture(like: torch.Tensor, channels: int, height: int, width: int) -> torch.Tensor:
    """The same for (1, channels, height, width), channels-last."""
    return allocate(like, 1, height, width, channels).permute(0, 3, 1, 2)
