"""Attention of both kinds against its definition, in float64."""

from __future__ import annotations

import pytest
import torch

from hybridge.engine.execution import attention
from hybridge.engine.kernels.compiled import multiplies_bfloat16
from hybridge.engine.memory.arena import Scratch
from hybridge.engine.planning.conv_algorithms import DeviceProfile, queries_padded
from hybridge.engine.program.layers import Norm, Weights
from hybridge.engine.program.ops import Attend

#: How far from float64 each may be: a few roundings of what it keeps keys and values in.
WITHIN = {torch.float32: 3e-6, torch.bfloat16: 1e-2}

needs_bfloat16 = pytest.mark.skipif(
    not multiplies_bfloat16(), reason="this processor has no products of bfloat16 (AVX512_BF16)"
)


def defined(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, heads: int) -> torch.Tensor:
    """softmax(q·kᵀ/√d)·v of (n, C), head by head."""
    q, k, v = (x.double().view(len(x), heads, -1).transpose(0, 1) for x in (queries, keys, values))
    weights = (q @ k.transpose(1, 2) / q.shape[2] ** 0.5).softmax(2)
    return (weights @ v).transpose(0, 1).flatten(1)


def check(
    positions: int, channels: int, *, heads: int = 1, dtype: torch.dtype = torch.float32, grows: bool = False
) -> attention.Attention:
    noise = torch.Generator().manual_seed(0)
    queries, keys, values = (3 * torch.randn(positions, channels, generator=noise) for _ in range(3))
    if grows:  # every block of keys has the largest score so far
        keys += 0.05 * torch.arange(positions).view(-1, 1) * queries.mean(0)
    layers = [Weights(name, channels, channels) for name in ("q", "k", "v", "out")]
    arithmetic = DeviceProfile(4, 4, multiplies_bfloat16=dtype == torch.bfloat16)
    op = Attend(0, 1, Norm("norm", 1, 1e-6), heads, *layers)
    scratch = Scratch(torch.empty(0))
    begun = attention.begin(op, arithmetic, scratch, positions)
    begun.keys[:] = keys
    half = positions // 2
    begun.keep_values(0, values[:half])
    begun.keep_values(half, values[half:])
    padded = queries_padded(positions)
    spare = scratch.take(padded, channels).fill_(torch.nan), scratch.take(padded, channels).fill_(torch.nan)
    out = torch.full_like(queries, torch.nan)
    begun.attend(queries, out, positions, spare)
    expected = defined(queries, keys, values, heads)
    assert (out - expected).norm() <= WITHIN[dtype] * expected.norm()
    return begun


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)], ids=str)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("channels", [32, 96])
@pytest.mark.parametrize("positions", [1, 2, 31, 33, 127, 128, 129, 257, 700])
def test_it_is_its_definition(positions, channels, threads, dtype) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check(positions, channels, dtype=dtype)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("channels", [64, 20])
@pytest.mark.parametrize("positions", [1, 90, 128, 150])
def test_a_frame_sees_those_before_it_and_not_the_memory_after_it(positions, channels) -> None:
    noise = torch.Generator().manual_seed(0)
    layers = [Weights(name, channels, channels) for name in ("q", "k", "v", "out")]
    op = Attend(0, 1, Norm("norm", 1, 1e-6), 1, *layers, sees="frames before")
    scratch, frames = Scratch(torch.empty(0)), 4
    begun = attention.begin(op, DeviceProfile(4, 4), scratch, frames * positions)
    begun.keys.fill_(torch.nan)
    begun._values.fill_(torch.nan)
    queries, keys, values = (torch.randn(frames * positions, channels, generator=noise) for _ in range(3))
    padded = queries_padded(positions)
    spare = scratch.take(padded, channels), scratch.take(padded, channels)
    for first in range(0, frames * positions, positions):
        end = first + positions
        begun.keys[first:end] = keys[first:end]
        begun.keep_values(first, values[first:end])
        out = torch.full_like(queries[first:end], torch.nan)
        begun.attend(queries[first:end], out, end, spare)
        expected = defined(queries[first:end], keys[:end], values[:end], 1)
        assert (out - expected).norm() <= 3e-6 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)], ids=str)
def test_scores_that_grow_from_block_to_block(dtype) -> None:
    check(700, 64, dtype=dtype, grows=True)


@pytest.mark.parametrize(("channels", "heads"), [(64, 2), (48, 1), (20, 1)])
def test_what_the_loops_do_not_take_is_torchs(channels, heads) -> None:
    assert isinstance(check(129, channels, heads=heads), attention._TorchAttention)


@needs_bfloat16
def test_keys_and_values_in_bfloat16_are_counted_as_such() -> None:
    op = Attend(0, 1, Norm("norm", 1, 1e-6), 1, *(Weights(name, 64, 64) for name in ("q", "k", "v", "out")))
    rounding, plain = DeviceProfile(2, 4, multiplies_bfloat16=True), DeviceProfile(2, 4)
    assert 2 * rounding.attention_bytes(op, 700) == plain.attention_bytes(op, 700)
    begun = attention.begin(op, rounding, Scratch(torch.empty(0)), 700)
    assert begun.keys.dtype == torch.bfloat16
    assert isinstance(begun, attention._CompiledAttention)
    kept = begun.keys.nbytes + begun._values.nbytes
    assert kept <= rounding.attention_bytes(op, 700)
