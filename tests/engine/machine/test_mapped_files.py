"""Pages of mapped files leave the process's memory, and come back with the same contents."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hybridge.engine.machine import mapped_files
from hybridge.engine.machine.mapped_files import drop_pages, without_pages_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc and madvise")

MIB = 2**20


def resident(path: Path) -> int:
    """Bytes of a file that are mapped and in this process's memory."""
    total, is_its = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()
        if "-" in head[0]:
            is_its = line.endswith(str(path))
        elif is_its and head[0] == "Rss:":
            total += int(head[1]) * 1024
    return total


def mapped(path: Path) -> torch.Tensor:
    save_file({"weight": torch.arange(MIB, dtype=torch.float32)}, path)
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("weight")


def test_pages_leave_and_come_back(tmp_path: Path) -> None:
    path, other = tmp_path / "weights.safetensors", tmp_path / "other.safetensors"
    weight, kept = mapped(path), mapped(other)
    total = weight.sum(), kept.sum()
    assert resident(path) >= 4 * MIB
    link = tmp_path / "link"
    link.symlink_to(path)  # as in the hub's cache
    drop_pages([link])
    assert resident(path) < MIB
    assert resident(other) >= 4 * MIB
    assert (weight.sum(), kept.sum()) == total


def test_they_leave_while_a_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.safetensors"
    weight = mapped(path)
    dropped = threading.Event()

    def drop(files: list[Path]) -> None:
        drop_pages(files)
        dropped.set()

    monkeypatch.setattr(mapped_files, "drop_pages", drop)
    with without_pages_of([path]):
        total = weight.sum()
        for _ in range(2):  # the first may have begun before the sum ended
            dropped.clear()
            assert dropped.wait(30)
    assert resident(path) < MIB
    assert weight.sum() == total
    with without_pages_of([]):
        weight.sum()
    assert resident(path) >= 4 * MIB
