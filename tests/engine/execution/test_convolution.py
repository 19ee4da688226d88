"""Every way to convolve against torch's own convolution, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hybridge.engine.execution.convolution import prepare
from hybridge.engine.memory.arena import Scratch
from hybridge.engine.memory.device_memory import allocate_picture
from hybridge.engine.planning.conv_algorithms import ConvAlgorithm, DeviceProfile, algorithm_of
from hybridge.engine.planning.winograd import transform
from hybridge.engine.program.layers import Weights
from hybridge.engine.program.ops import Convolve, Padding

LARGE, TALL, SQUARE = (ConvAlgorithm("winograd", *tile) for tile in ((4, 4), (4, 2), (2, 2)))
FOUR, NINE = ConvAlgorithm("four-phases", 2, 2), ConvAlgorithm("nine-products", 2, 2)


def convolution(*, doubled: bool = False, into: int = 6, out: int = 10) -> Convolve:
    return Convolve(0, 1, Weights("conv", into, out, 3), padding=Padding(1, 1, 1, 1), doubled=doubled)


def halving(top: int, bottom: int, left: int, right: int) -> Convolve:
    return Convolve(0, 1, Weights("conv", 6, 10, 3), stride=2, padding=Padding(top, bottom, left, right))


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize(
    "way", [LARGE, TALL, SQUARE, FOUR, NINE, ConvAlgorithm("direct"), ConvAlgorithm("direct", inputs=5)], ids=str
)
@pytest.mark.parametrize("width", [8, 7, 1])
@pytest.mark.parametrize("rows", [8, 5, 1])
@pytest.mark.parametrize("has_bias", [True, False])
def test_it_is_the_convolution(way, width, rows, has_bias) -> None:
    doubled = way in (FOUR, NINE)
    op = convolution(doubled=doubled)
    weight, bias = noise(10, 6, 3, 3), noise(10) if has_bias else None
    source = noise(1, 6, rows, width)
    expected = F.conv2d(F.interpolate(source, scale_factor=2.0) if doubled else source, weight, bias, padding=1)
    wanted = expected.shape[2]
    room = prepare(op, way, weight, bias).begin(Scratch(source), wanted + way.rows, width)  # with a row to spare
    for out in (None, allocate_picture(expected, *expected.shape[1:])):
        room.window[:] = 1e9  # of an earlier strip
        room.window[..., : way.side_columns(op.padding)[0]] = 0
        room.window[..., way.side_columns(op.padding)[0] + width :] = 0
        room.window[:, :, 0] = 0
        room.window[:, :, rows + 1] = 0
        room.inside[:, :, 1 : rows + 1] = source
        torch.testing.assert_close(room.convolve(wanted, out), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "way", [ConvAlgorithm("halved", 2, 2), ConvAlgorithm("gathered"), ConvAlgorithm("direct")], ids=str
)
@pytest.mark.parametrize("padding", [(0, 1, 0, 1), (1, 1, 1, 1), (0, 0, 0, 0)])
@pytest.mark.parametrize("width", [3, 8, 9, 10, 11])
@pytest.mark.parametrize("rows", [3, 8, 9, 10, 11])
def test_it_is_the_convolution_with_stride_two(way, padding, width, rows) -> None:
    op = halving(*padding)
    weight, bias = noise(10, 6, 3, 3), noise(10)
    source = noise(1, 6, rows, width)
    top, bottom, left, right = padding
    expected = F.conv2d(F.pad(source, (left, right, top, bottom)), weight, bias, stride=2)
    wanted = expected.shape[2]
    room = prepare(op, way, weight, bias).begin(Scratch(source), wanted + way.rows, width)
    for out in (None, allocate_picture(expected, *expected.shape[1:])):
        start, stop = op.rows_read(0, wanted)
        room.window[:, :, : stop - start] = 0
        room.window[:, :, stop - start :] = 1e9  # of an earlier strip
        inside = source[:, :, max(start, 0) : stop]
        room.inside[:, :, -min(start, 0) : -min(start, 0) + inside.shape[2]] = inside
        torch.testing.assert_close(room.convolve(wanted, out), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("out", [27, 64])
def test_what_is_gathered(out) -> None:
    """Three channels, at stride 1, as at the beginning of an encoder."""
    op = convolution(into=3, out=out)
    weight, source = noise(out, 3, 3, 3), noise(1, 3, 6, 9)
    room = prepare(op, ConvAlgorithm("gathered"), weight, None).begin(Scratch(source), 6, 9)
    room.window.zero_()
    room.inside[:, :, 1:7] = source
    expected = F.conv2d(source, weight, padding=1)
    torch.testing.assert_close(room.convolve(6, None), expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(room.convolve(5, None), expected[:, :, :5], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("way", "channels"), [(TALL, 128), (TALL, 512), (SQUARE, 32), (SQUARE, 64)])
def test_float32_rounds_hardly_more_than_a_direct_convolution(way, channels) -> None:
    """Which is why tall tiles are for many channels: there a direct sum is long, and loses as much."""
    op = convolution(into=channels, out=channels)
    weight = noise(channels, channels, 3, 3, dtype=torch.float32) / (3 * channels**0.5)
    source = F.silu(noise(1, channels, 8, 128, dtype=torch.float32))
    judge = F.conv2d(source.double(), weight.double(), padding=1)
    room = prepare(op, way, weight, None).begin(Scratch(source), 8, 128)
    room.window.zero_()
    room.inside[:, :, 1:9] = source

    def distance(made: torch.Tensor) -> float:
        return float((made.double() - judge).norm() / judge.norm())

    direct = distance(F.conv2d(source.contiguous(memory_format=torch.channels_last), weight, padding=1))
    assert distance(room.convolve(8, None)) <= 1.25 * direct


@pytest.mark.parametrize(("way", "products"), [(LARGE, 36 / 16), (TALL, 24 / 8), (SQUARE, 16 / 4)])
def test_how_many_products_an_output_takes(way, products) -> None:
    weight = noise(10, 6, 3, 3)
    prepared = prepare(convolution(), way, weight, None)
    assert prepared.weight.shape == (products * way.rows * way.columns, 6, 10)


@pytest.mark.parametrize("outputs", [2, 4])
def test_the_matrices_correlate(outputs) -> None:
    matrices = transform(outputs)
    to = lambda rows: torch.tensor(rows, dtype=torch.float64)  # noqa: E731 - three times the same
    taps, source = noise(3), noise(outputs + 2)
    products = (to(matrices.of_filter) @ taps) * (to(matrices.of_input) @ source)
    expected = torch.stack([source[i : i + 3] @ taps for i in range(outputs)])
    torch.testing.assert_close(to(matrices.of_products) @ products, expected)


class TestTheWayThatIsTaken:
    transforming = DeviceProfile(4, 4, 2**20, 32)

    def test_many_channels_are_transformed(self) -> None:
        assert algorithm_of(convolution(into=128, out=512), self.transforming) == TALL
        assert algorithm_of(convolution(into=128, out=32), self.transforming) == LARGE
        assert algorithm_of(convolution(into=64, out=64), self.transforming) == SQUARE
        assert algorithm_of(convolution(doubled=True, into=64, out=64), self.transforming) == NINE

    def test_few_channels_are_not(self) -> None:
        assert algorithm_of(convolution(into=128, out=20), self.transforming) == ConvAlgorithm("direct", inputs=32)
        assert algorithm_of(convolution(doubled=True, into=16, out=16), self.transforming) == FOUR

    def test_nor_is_anything_where_it_is_no_faster(self) -> None:
        assert algorithm_of(convolution(into=512, out=512), DeviceProfile(2, 2)).kind == "direct"

    def test_stride_two_has_a_transform(self) -> None:
        op = Convolve(0, 1, Weights("conv", 64, 64, 3), stride=2, padding=Padding(bottom=1, right=1))
        assert algorithm_of(op, self.transforming) == ConvAlgorithm("halved", 2, 2)
        assert algorithm_of(replace(op, weights=Weights("conv", 16, 16, 3)), self.transforming) == ConvAlgorithm(
            "direct"
        )

    def test_few_channels_that_become_many_are_gathered(self) -> None:
        assert algorithm_of(convolution(into=3, out=27), self.transforming) == ConvAlgorithm("gathered")
        assert algorithm_of(convolution(into=3, out=26), self.transforming).kind == "direct"
        assert algorithm_of(convolution(into=3, out=27), DeviceProfile(2, 2)).kind == "direct"

    def test_other_kernels_and_paddings_are_direct(self) -> None:
        for op in (Convolve(0, 1, Weights("conv", 64, 64, 1)), Convolve(0, 1, Weights("conv", 64, 64, 3))):
            assert algorithm_of(op, self.transforming).kind == "direct"
