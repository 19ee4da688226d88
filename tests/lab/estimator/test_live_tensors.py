"""Counting on the meta device, against torch's own counter and against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from hybridge.lab.estimator.live_tensors import cost


def empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def test_what_is_freed_does_not_count() -> None:
    def call() -> torch.Tensor:
        value = empty(1000)
        for _ in range(5):
            value = value + 1  # two at a time
        return value

    assert cost([], call).peak_bytes == 2 * 4000


def test_weights_do_not_count_and_views_cost_nothing() -> None:
    layer = nn.Linear(100, 50, device="meta")
    counted = cost([layer], lambda: layer(empty(10, 100)).view(5, 100).t())
    assert counted.peak_bytes == 4 * (10 * 100 + 10 * 50)
    assert counted.flops == 2 * 10 * 100 * 50


def test_fused_attention_has_no_matrix_of_all_pairs() -> None:
    def attend() -> torch.Tensor:
        query = empty(2, 4, 256, 8)
        joined: torch.Tensor = functional.scaled_dot_product_attention(query, key=query, value=query)
        return joined.transpose(1, 2).reshape(2, 256, 32)

    matrix = 4 * 2 * 4 * 256 * 256
    assert cost([], attend).peak_bytes == 2 * 4 * 2 * 4 * 256 * 8  # what goes in and what comes out
    assert cost([], attend, fused_attention=False).peak_bytes > matrix


@pytest.mark.parametrize("fused", [True, False])
def test_flops_are_those_of_torchs_counter(fused: bool) -> None:
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, stride=2)).to("meta")

    def call() -> torch.Tensor:
        pixels = layers(empty(2, 3, 32, 32)).flatten(2).transpose(1, 2).unsqueeze(1)
        attended: torch.Tensor = functional.scaled_dot_product_attention(pixels, pixels, pixels)
        return attended

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    assert cost([layers], call, fused_attention=fused).flops == counter.get_total_flops()
