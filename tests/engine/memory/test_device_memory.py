"""The C library's allocator, as a server sets it; in processes of their own, because it is for good."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

#: Pages that a thread has to be given while it takes and frees what a decode does, once it has done so before.
_TAKING_AND_FREEING = """
import ctypes, resource, sys, threading, torch
from hybridge.engine import keep_pieces

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: huge pages would hide most of the faults
if "keep" in sys.argv:
    keep_pieces()

def decode():
    for mebibytes in (3, 20, 9, 14, 20, 5):
        pieces = [torch.ones(mebibytes * 2**18), torch.ones(mebibytes * 2**17)]

def thread():
    decode(), decode()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        decode()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

worker = threading.Thread(target=thread)
worker.start()
worker.join()
"""

#: Pages that it takes to write 64 MiB of an activation.
_TOUCHING = """
import resource, torch
from hybridge.engine.memory.device_memory import allocate

picture = allocate(torch.empty(0), 16, 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
picture.zero_()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives pages back so soon")


def faults(*arguments: str, **environment: str) -> int:
    """With one thread; which of several is the first to touch a page is never the same."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    ran = subprocess.run(
        [sys.executable, "-c", _TAKING_AND_FREEING, *arguments],
        env=clean | {"OMP_NUM_THREADS": "1"} | environment, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return int(ran.stdout)


def test_pieces_that_were_freed_are_kept_for_the_next() -> None:
    # Mostly none at all; in one process of five or so, one piece of twelve is not kept.
    freed = faults()
    assert any(4 * faults("keep") < freed for _ in range(4))


def test_whoever_has_set_malloc_is_left_alone() -> None:
    freed = faults()
    # Now and then the allocator keeps pieces by itself, depending on where they happen to lie.
    assert any(10 * faults("keep", MALLOC_ARENA_MAX="3") > freed for _ in range(4))


def test_activations_lie_in_huge_pages_where_the_kernel_gives_them() -> None:
    choices = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not choices.is_file() or "[never]" in choices.read_text():
        pytest.skip("no huge pages here")
    ran = subprocess.run([sys.executable, "-c", _TOUCHING], capture_output=True, text=True, check=True, timeout=120)
    assert int(ran.stdout) < 4000  # of 16 384 small ones
