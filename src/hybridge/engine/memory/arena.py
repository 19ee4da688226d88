"""One block of memory for a run, which the next run reuses.

A plan assigns each activation an offset in it, above the ops' scratch memory.  New pages from the system are
expensive: the kernel fills them with zeros, and a virtual machine may first have to request them from its host.  So
    the process
keeps up to half a GiB for the next run, unless the system is short of memory and takes it back;
:func:`.device_memory.release_memory` returns it to the system.
The kept memory never adds to a run's peak: there is one arena, a run inside a run gets its own, and unused pages
are returned as soon as the plan's peak needs their room.
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

#: Most bytes that the process keeps.
_KEPT_BYTES = 512 * 2**20


class Arena:
    """A block of memory with undefined contents."""

    def __init__(self, nbytes: int) -> None:
        """Allocate the block.

        Raises:
            MemoryError: when the system has too little memory.
        """
        self.nbytes = nbytes
        self._mapped = map_pages(nbytes)

    def numbers(self, like: torch.Tensor, offset: int, *shape: int) -> torch.Tensor:
        """Return a contiguous tensor of ``like``'s dtype from byte ``offset`` on."""
        count = math.prod(shape)
        return torch.frombuffer(self._mapped, dtype=like.dtype, offset=offset, count=count).view(shape)

    def picture(self, like: torch.Tensor, offset: int, channels: int, height: int, width: int) -> torch.Tensor:
        """Return (1, channels, height, width), channels-last, of ``like``'s dtype, from byte ``offset`` on."""
        return self.numbers(like, offset, 1, height, width, channels).permute(0, 3, 1, 2)

    def forget(self, first: int, end: int) -> None:
        """Return the pages within bytes [first, end) to the system."""
        first, end = (
            -(-first // mmap.PAGESIZE) * mmap.PAGESIZE,
            min(end, self.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE,
        )
        if first < end and hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED, first, end - first)

    def offer(self) -> None:
        """Allow the system to take the pages when it is short of memory; the other pages stay unchanged."""
        if hasattr(mmap, "MADV_FREE"):
            with suppress(OSError):  # the kernel does not support it
                self._mapped.madvise(mmap.MADV_FREE)

    def forget_beside(self, living: Iterable[tuple[int, int]], spare_bytes: int) -> None:
        """Return pages outside of the ranges ``living`` to the system, except for ``spare_bytes`` of them."""
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
    """Memory that ops use only while they run: windows, tiles, keys and values.

    Pieces are taken one after another from the beginning of an arena, and all are freed when the op ends.  A
    general allocator would not reuse the memory, because the sizes differ from op to op.  A piece that finds no
    room in the arena comes from the allocator.

    Args:
        like: A tensor of the dtype to compute in, on the device to run on.
        arena: The arena; None to use the allocator.
        nbytes: Bytes at the beginning of the arena that are reserved for scratch.

    Attributes:
        like: The tensor ``like``.
    """

    def __init__(self, like: torch.Tensor, arena: Arena | None = None, nbytes: int = 0) -> None:
        self.like, self._arena, self._nbytes, self._used = like, arena, nbytes, 0

    def take(self, *shape: int) -> torch.Tensor:
        """Return contiguous memory of ``like``'s dtype and device, with undefined contents.

        Raises:
            MemoryError: when the system has too little memory.
        """
        first = -(-self._used // ALIGNMENT) * ALIGNMENT
        end = first + math.prod(shape) * self.like.itemsize
        if self._arena is None or end > self._nbytes or first == end:
            return allocate(self.like, *shape)
        self._used = end
        return self._arena.numbers(self.like, first, *shape)

    def picture(self, channels: int, height: int, width: int) -> torch.Tensor:
        """Return memory for (1, channels, height, width), channels-last, as :meth:`take` does."""
        return self.take(1, height, width, channels).permute(0, 3, 1, 2)

    def clear(self) -> None:
        """Free all pieces; none of them may be used any more."""
        self._used = 0


class ArenaPool:
    """The arena that is kept for the next run.

    Attributes:
        kept: The idle arena; None if there is none.
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
        del kept  # before another arena is allocated
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


#: The process's only pool.
pool = ArenaPool()
on_release(pool.drop)


@contextmanager
def borrow(like: torch.Tensor, nbytes: int) -> Iterator[Arena | None]:
    """Yield an arena for one run; None for other devices and small pictures, which allocate each activation.

    Raises:
        MemoryError: when the system has too little memory.
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
