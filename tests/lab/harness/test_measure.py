from __future__ import annotations

import sys

import pytest
import torch

from hybridge.lab.harness.measure import growth

CPU = torch.device("cpu")
MIB = 2**20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def ones(mib: int) -> torch.Tensor:
    return torch.ones(mib * MIB, dtype=torch.uint8)


def test_what_a_call_takes_and_gives_back_is_counted_once_more() -> None:
    def run() -> torch.Tensor:
        ones(96)
        return ones(32)

    counts = []
    for _ in range(4):
        given, grown = growth(run, CPU)
        assert given.numel() == 32 * MIB
        assert grown is not None
        counts.append(grown)
    # A second call is not flattered by what an allocator kept of the first.  The kernel counts pages in batches.
    assert min(counts) > 94 * MIB
    # Threads that earlier tests left may take memory meanwhile: that makes a count larger, never smaller.
    assert min(counts) < 104 * MIB


def test_what_was_there_before_does_not_count() -> None:
    held = ones(64)
    _, grown = growth(lambda: held[:1] + 1, CPU)
    assert grown is not None
    assert grown < 8 * MIB


def test_small_pieces_that_an_allocator_keeps_are_seen_again() -> None:
    def run() -> torch.Tensor:
        pieces = [torch.ones(16 * 1024, dtype=torch.uint8) for _ in range(2048)]
        return pieces[0]

    run()
    _, grown = growth(run, CPU)
    assert grown is not None
    assert grown > 24 * MIB


def test_nothing_is_claimed_of_other_devices() -> None:
    given, grown = growth(lambda: torch.ones(1, device="meta"), torch.device("meta"))
    assert grown is None
    assert given.shape == (1,)
