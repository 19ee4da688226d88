"""One piece of memory for a run, which outlives the run.

A plan says where in it each activation lies, above what ops take for themselves.  Pages that the system gives are
expensive: a kernel fills them with zeros, and a virtual machine may first have to ask its host.  So up to half a
GiB stays with the process, for the next run, unless the system is short of memory and takes it;
:func:`.device_memory.release_memory` gives it back.
What stays never lies beside another run's memory: there is one arena, a
run inside a run gets one of its own, and pages that nothing lives in go as soon as the plan's peak wants their
room.
"""

from __future__ import annotations

import math
import mmap
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import torch

from ..planning.footprint import ALIGNMENT
from .device_memory import MAPPED_FROM_BYTES, allocate, map_pages, on_release

#: What stays with the process at most.
_KEPT_BYTES = 512 * 2**20


class Arena:
    """So many bytes, their numbers undefined."""

    def __init__(self, nbytes: int) -> None:
        """Raises MemoryError when the system has no room."""
        self.nbytes = nbytes
        self._mapped = map_pages(nbytes)

    def numbers(self, like: torch.Tensor, offset: int, *shape: int) -> torch.Tensor:
        """Contiguous, of ``like``'s dtype, from byte ``offset`` on."""
        count = math.prod(shape)
        return torch.frombuffer(self._mapped, dtype=like.dtype, offset=offset, count=count).view(shape)

    def picture(self, like: torch.Tensor, offset: int, channels: int, height: int, width: int) -> torch.Tensor:
        """(1, channels, height, width), channels-last, of ``like``'s dtype, from byte ``offset`` on."""
        return self.numbers(like, offset, 1, height, width, channels).permute(0, 3, 1, 2)

    def forget(self, first: int, end: int) -> None:
        """Gives the pages within bytes [first, end) back to the system."""
        first, end = (
            -(-first // mmap.PAGESIZE) * mmap.PAGESIZE,
            min(end, self.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE,
        )
        if first < end and hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED, first, end - first)

    def offer(self) -> None:
        """Lets the system have the pages when it is short of them; those that it did not take are as they were."""
        if hasattr(mmap, "MADV_FREE"):
            with suppress(OSError):  # a kernel that has none
                self._mapped.madvise(mmap.MADV_FREE)

    def forget_beside(self, living: Iterable[tuple[int, int]], spare_bytes: int) -> None:
        """Gives back what is more than ``spare_bytes`` of the pages outside of the ranges that live."""
        gaps, before = [], 0
        for first, end in sorted(living):
            gaps.append((before, first))
            before = max(before, end)
        gaps.append((before, self.nbytes))
        excess = sum(max(0, end - first) for first, end in gaps) - spare_bytes
        for first, end in reversed(gaps):
            if excess > 0 and end > first:
                self.forget(max(first, end - excess), end)
                excess -= end - first


class Scratch:
    """What ops take for themselves while they run: windows, tiles, keys and values.

    Piece after piece from the beginning of an arena, and all of them are free again when the op is done.  An
    allocator, which does not know that, would put them beside each other: they are of ever other sizes.  What finds
    no room comes from it.

    Args:
        like: Of the dtype to compute in, on the device to run on.
        arena: Where they lie; None for the allocator's memory.
        nbytes: Of the arena that are for this.

    Attributes:
        like: The same.
    """

    def __init__(self, like: torch.Tensor, arena: Arena | None = None, nbytes: int = 0) -> None:
        self.like, self._arena, self._nbytes, self._used = like, arena, nbytes, 0

    def take(self, *shape: int) -> torch.Tensor:
        """Memory of ``like``'s dtype and device, contiguous, its numbers undefined.

        Raises:
            MemoryError: when the system has no room.
        """
        first = -(-self._used // ALIGNMENT) * ALIGNMENT
        end = first + math.prod(shape) * self.like.itemsize
        if self._arena is None or end > self._nbytes or first == end:
            return allocate(self.like, *shape)
        self._used = end
        return self._arena.numbers(self.like, first, *shape)

    def picture(self, channels: int, height: int, width: int) -> torch.Tensor:
        """The same for (1, channels, height, width), channels-last."""
        return self.take(1, height, width, channels).permute(0, 3, 1, 2)

    def clear(self) -> None:
        """All of it is free: nobody uses any more what was taken."""
        self._used = 0


class ArenaPool:
    """The arena that nobody uses.

    Attributes:
        kept: None if there is none.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.kept: Arena | None = None
        self._lent = 0

    def take(self, nbytes: int) -> Arena:
        with self._lock:
            kept, self.kept = self.kept, None
            self._lent += 1
        if kept is not None and kept.nbytes >= nbytes:
            kept.forget(nbytes, kept.nbytes)
            return kept
        del kept  # before another one is taken
        return Arena(nbytes)

    def put(self, arena: Arena | None) -> None:
        with self._lock:
            self._lent -= 1
            if self._lent == 0 and arena is not None:
                arena.forget(_KEPT_BYTES, arena.nbytes)
                arena.offer()
                self.kept = arena

    def drop(self) -> None:
        with self._lock:
            self.kept = None


#: The only one.
pool = ArenaPool()
on_release(pool.drop)


@contextmanager
def borrow(like: torch.Tensor, nbytes: int) -> Iterator[Arena | None]:
    """An arena for one run; None where activations are better taken one by one: other devices, small pictures.

    Raises:
        MemoryError: when the system has no room.
    """
    if like.device.type != "cpu" or nbytes < MAPPED_FROM_BYTES:
        yield None
        return
    arena = None
    try:
        arena = pool.take(nbytes)
        yield arena
    finally:
        pool.put(arena)
