"""Pages of mapped files, which count as the process's memory although the system could drop them at any time."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

#: Seconds between two times: at two gigabytes a second a reader touches 40 MB in between.
_INTERVAL_S = 0.02

_MADV_DONTNEED = 4

_MAPS = Path("/proc/self/maps")


def drop_pages(files: Sequence[Path]) -> None:
    """Drop the pages of files that are mapped in this process; whoever reads them next gets them from the cache.

    Nothing may have been written to the mappings, because private changes would be lost.  Only on Linux; elsewhere
    nothing is done.
    """
    if sys.platform != "linux":
        return
    names = {os.path.realpath(file) for file in files}
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        place, _, rest = line.partition(" ")
        name = rest.split(maxsplit=4)[4:]
        if name and name[0] in names:
            begin, end = (int(address, 16) for address in place.split("-"))
            madvise(begin, end - begin, _MADV_DONTNEED)


@contextmanager
def without_pages_of(files: Sequence[Path]) -> Iterator[None]:
    """Drop the pages of files again and again, while a block reads the files and copies what it reads.

    No files: nothing is done.

    Without this, a file stays in memory beside the copy until its mapping is closed, which is when all is loaded.
    """
    if not files:
        yield
        return
    is_done = threading.Event()

    def drop() -> None:
        while not is_done.wait(_INTERVAL_S):
            drop_pages(files)

    dropping = threading.Thread(target=drop, name="hybridge-pages", daemon=True)
    dropping.start()
    try:
        yield
    finally:
        is_done.set()
        dropping.join()
