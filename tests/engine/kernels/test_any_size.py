"""The C kernels at any size that they take, for AddressSanitizer to watch: they write all of their output, no more.

``make asan`` runs these.  Without a sanitizer they would show little that other tests do not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridge.engine.kernels.compiled import _load
from hybridge.engine.planning.conv_algorithms import queries_padded

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16

loops: Any = _load()
pytestmark = [
    pytest.mark.skipif(loops is None, reason="nothing was compiled"),
    pytest.mark.skipif("ASAN_OPTIONS" not in os.environ, reason="`make asan` runs these"),
]

#: (height, width) of what a tile reads: (outputs, steps) of each.
TILES = {(6, 6): ((4, 4), (4, 4)), (6, 4): ((4, 2), (4, 2)), (5, 5): ((2, 2), (4, 4)), (4, 4): ((2, 2), (2, 2)),
         (3, 3): ((2, 2), (1, 1))}  # fmt: skip


class Sizes:
    """What hypothesis draws, by what it is for."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data

    def number(self, least: int, most: int) -> int:
        return self.data.draw(st.integers(least, most))

    def channels(self, step: int = 8, most: int = 9) -> int:
        """A multiple; now and then more than any loop takes at once."""
        return step * self.data.draw(st.one_of(st.integers(1, most), st.sampled_from([-(-520 // step)])))

    def one_of(self, *values: Any) -> Any:
        return self.data.draw(st.sampled_from(values))

    def dtype(self) -> torch.dtype:
        return self.one_of(FLOAT32, BFLOAT16)

    def multiplied(self) -> torch.dtype:
        """A dtype that there are products for on this processor."""
        return self.one_of(*(dtype for dtype in (FLOAT32, BFLOAT16) if loops.multiplies(dtype)))

    def noise(self, *shape: int, dtype: torch.dtype = FLOAT32) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)

    def picture(self, channels: int, rows: int, columns: int, dtype: torch.dtype = FLOAT32) -> torch.Tensor:
        """Channels-last, in memory of its own, or the last columns of the last rows of a larger picture."""
        above, before = self.one_of((0, 0), (2, 0), (1, 3))
        memory = self.noise(1, above + rows, before + columns, channels, dtype=dtype)
        return memory.permute(0, 3, 1, 2)[:, :, above:, before:]

    def ends(self, channels: int, rows: int, columns: int) -> tuple[Any, Any, torch.Tensor]:
        """Bias, residual and output."""
        bias = self.one_of(None, self.noise(channels))
        residual = self.picture(channels, rows, columns, self.dtype()) if self.one_of(True, False) else None
        return bias, residual, self.picture(channels, rows, columns, self.dtype()).fill_(torch.nan)

    def places(self, output: torch.Tensor) -> Any:
        """Where the output's moments go, if they are wanted."""
        return self.one_of(None, loops.places_of_moments(output, self.number(1, output.shape[2] + 1)))

    def tiles(self) -> tuple[int, int, tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Rows and columns of tiles, the tile, the size of the input that they read, and of an output."""
        tile = self.one_of(*TILES)
        outputs, steps = TILES[tile]
        rows, columns = self.number(1, 3), self.number(1, 30)
        read = (rows - 1) * steps[0] + tile[0], (columns - 1) * steps[1] + tile[1]
        made = rows * outputs[0] - self.number(0, outputs[0] - 1), columns * outputs[1] - self.number(0, 1)
        return rows, columns, tile, read, made


def check_written(output: torch.Tensor, places: Any) -> None:
    assert output.isfinite().all()
    if places is not None:
        measured = loops.channel_moments(output, places.row_block)
        assert torch.equal(places.means, measured[0])
        assert torch.equal(places.variances, measured[1])


def input_transform(size: Sizes) -> None:
    rows, columns, tile, read, _ = size.tiles()
    channels = size.channels()
    made = torch.full((tile[0] * tile[1], rows * columns, channels), torch.nan, dtype=size.dtype())
    loops.input_transform(size.picture(channels, *read), made, rows, columns, tile)
    assert made.isfinite().all()


def output_transform(size: Sizes) -> None:
    rows, columns, tile, _, made = size.tiles()
    channels = size.channels()
    ends = size.ends(channels, *made)
    places = size.places(ends[-1])
    products = size.noise(tile[0] * tile[1], rows * columns, channels)
    loops.output_transform(products, *ends, rows, columns, tile, places)
    check_written(ends[-1], places)


def conv_winograd(size: Sizes) -> None:
    rows, columns, tile, read, made = size.tiles()
    into, out, products = size.channels(32, 3), size.channels(32, 3), tile[0] * tile[1]
    ends = size.ends(out, *made)
    filters = loops.pack_filters(size.noise(products, into, out), size.multiplied())
    workspace = size.noise(12 * products * (into + out) * torch.get_num_threads())
    block, places = size.one_of(1, 16, 128), size.places(ends[-1])
    window = size.picture(into, *read)
    if loops.conv_winograd(
        window, filters, *ends, workspace, rows, columns, tile, k_block=block, moments=places
    ):  # not done: filters that are larger than the cache
        check_written(ends[-1], places)


def conv_direct(size: Sizes) -> None:
    rows, columns, kernel, stride = size.number(1, 5), size.number(1, 110), size.number(1, 5), size.number(1, 3)
    into, out, dtype = size.channels(), size.channels(), size.multiplied()
    filters = loops.pack_direct_filters(size.noise(out, into, kernel, kernel), dtype)
    ends = size.ends(out, rows, columns)
    read = (rows - 1) * stride + kernel, (columns - 1) * stride + kernel
    block, places = size.one_of(1, 16, 128), size.places(ends[-1])
    loops.conv_direct(size.picture(into, *read, dtype), filters, *ends, stride, k_block=block, moments=places)
    check_written(ends[-1], places)


def conv_dot(size: Sizes) -> None:
    rows, columns, kernel, stride = size.number(1, 5), size.number(1, 30), size.number(1, 5), size.number(1, 3)
    into, out = size.channels(), size.number(1, 17)
    bias, output = size.one_of(None, size.noise(out)), torch.full((1, out, rows, columns), torch.nan)
    read = (rows - 1) * stride + kernel, (columns - 1) * stride + kernel
    loops.conv_dot(size.picture(into, *read), size.noise(kernel, out, kernel * into), bias, output, stride)
    assert output.isfinite().all()


def bmm(size: Sizes) -> None:
    step = 32 if loops._sgemm is None else size.one_of(8, 32)
    count, positions, into, out = size.number(1, 9), size.number(1, 500), size.channels(step), size.channels(step)
    dtype = size.multiplied() if step == 32 else FLOAT32
    made = torch.full((count, positions, out), torch.nan)
    filters = loops.pack_filters(size.noise(count, into, out), dtype)
    loops.bmm(size.noise(count, positions, into, dtype=dtype), filters, made, k_block=size.one_of(1, 16, 128))
    assert made.isfinite().all()


def scale_shift_silu(size: Sizes) -> None:
    channels, rows, columns = size.channels(), size.number(1, 5), size.number(1, 30)
    made = size.picture(channels, rows, columns, size.dtype()).fill_(torch.nan)
    rows_read = size.picture(channels, rows, columns, size.dtype())
    loops.scale_shift_silu(rows_read, size.noise(channels), size.noise(channels), made)
    assert made.isfinite().all()


def channel_moments(size: Sizes) -> None:
    rows = size.picture(size.channels(), size.number(1, 9), size.number(1, 150), size.dtype())
    assert all(part.isfinite().all() for part in loops.channel_moments(rows, size.number(1, 10)))


def pack_values(size: Sizes) -> None:
    channels, count, blocks, dtype = size.channels(), size.number(1, 300), size.number(3, 5), size.dtype()
    block = loops.key_block(dtype)
    values = torch.full((blocks, channels, block), torch.nan, dtype=dtype)
    loops.pack_values(size.noise(count, channels), size.number(0, blocks * block - count), values)
    assert int(values.isfinite().sum()) == count * channels


def attend(size: Sizes) -> None:
    channels, count, positions, dtype = (
        size.channels(32, 4), size.number(1, 200), size.number(1, 600), size.multiplied()
    )  # fmt: skip
    block, made = loops.key_block(dtype), torch.full((count, channels), torch.nan)
    values = size.noise(-(-positions // block), channels, block, dtype=dtype)
    keys = size.noise(positions, channels, dtype=dtype)
    spare = torch.full((queries_padded(count), channels), torch.nan)
    loops.attend(size.noise(count, channels), keys, values, made, (spare, spare.clone()))
    assert made.isfinite().all()


ANY_PROCESSOR: list[Callable[[Sizes], None]] = [
    input_transform, output_transform, conv_dot, scale_shift_silu, channel_moments, pack_values,
]  # fmt: skip
WITH_PRODUCTS: list[Callable[[Sizes], None]] = [bmm, conv_winograd, conv_direct, attend]


@contextmanager
def in_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "kernel",
    ANY_PROCESSOR + WITH_PRODUCTS * (loops is not None and loops.multiplies(FLOAT32)),
    ids=lambda kernel: kernel.__name__,
)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data(), threads=st.integers(1, 3))
def test_all_of_the_output_is_written_and_nothing_else(
    kernel: Callable[[Sizes], None], data: st.DataObject, threads: int
) -> None:
    with in_threads(threads):
        kernel(Sizes(data))
