"""Bytes of live tensors, counted by hand and by the mode."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hybridge.lab.harness.memory import PeakBytes

MIB = 2**20


def zeros(mib: int, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(mib * MIB, dtype=torch.uint8, device=device)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_most_that_lived_at_one_time(device: str) -> None:
    with PeakBytes() as counted:
        held = zeros(2, device)
        zeros(5, device)  # gone at once
        zeros(3, device)
        assert counted.live_bytes == 2 * MIB
        held[:10].view(2, 5)  # no memory of its own
        del held
        assert counted.live_bytes == 0
    assert counted.peak_bytes == 7 * MIB


def test_weights_do_not_count_nor_what_was_there_before() -> None:
    layer, before = nn.Linear(1024, 1024, bias=False), torch.zeros(1, 1024)
    with PeakBytes(leaving_out=[layer]) as counted, torch.no_grad():
        for _ in range(3):
            layer(before)
        layer.weight.t().contiguous().sum()
    assert counted.peak_bytes == 4 * MIB + 4  # the copy, and the sum


def test_a_weight_that_is_replaced_gives_its_address_back() -> None:
    layer = nn.Linear(1024, 1024, bias=False)
    with PeakBytes(leaving_out=[layer]) as counted:
        for _ in range(4):
            layer.weight = nn.Parameter(torch.zeros(1024, 1024), requires_grad=False)
    assert counted.peak_bytes == 8 * MIB  # the new one is made before the old one goes
    assert counted.live_bytes == 4 * MIB


def test_a_picture_takes_as_much_every_time() -> None:
    layer = nn.Conv2d(3, 8, 3)
    peaks = set()
    for _ in range(2):
        with PeakBytes(leaving_out=[layer]) as counted, torch.no_grad():
            layer(torch.zeros(1, 3, 64, 64)).relu_().add(1)
        peaks.add(counted.peak_bytes)
    assert len(peaks) == 1


@pytest.mark.quantisers
def test_a_quantised_weight_is_what_it_is_made_of() -> None:
    from torchao import quantization

    layer = nn.Linear(1024, 1024, bias=False)
    quantization.quantize_(layer, quantization.Int8WeightOnlyConfig())
    given = torch.zeros(1, 1024)
    with PeakBytes(leaving_out=[layer]) as counted, torch.no_grad():
        layer(given)
        layer.weight.detach()
    assert counted.peak_bytes < 5 * MIB
