"""Convolutions with too few channels for a transform: in bfloat16 as they are, and as dot products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hybridge.engine.execution import convolution
from hybridge.engine.execution.convolution import Workspace, prepare
from hybridge.engine.kernels.compiled import multiplies_bfloat16, multiplies_float32
from hybridge.engine.memory.arena import Scratch
from hybridge.engine.memory.device_memory import allocate_picture
from hybridge.engine.planning.conv_algorithms import ConvAlgorithm, DeviceProfile, algorithm_of
from hybridge.engine.program.layers import Weights
from hybridge.engine.program.ops import Convolve, Padding

DOTS, TAPS, TAPS_IN_BFLOAT16 = ConvAlgorithm("dots"), ConvAlgorithm("taps"), ConvAlgorithm("taps", in_bfloat16=True)

needs_float32 = pytest.mark.skipif(not multiplies_float32(), reason="there are no loops for it without AVX-512")
needs_bfloat16 = pytest.mark.skipif(
    not multiplies_bfloat16(), reason="this processor has no products of bfloat16 (AVX512_BF16)"
)
both = pytest.mark.parametrize(
    "way", [pytest.param(TAPS, marks=needs_float32), pytest.param(TAPS_IN_BFLOAT16, marks=needs_bfloat16)], ids=str
)


@contextmanager
def in_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def convolve(into: int, out: int, stride: int = 1, kernel: int = 3) -> Convolve:
    padding = Padding(1, 1, 1, 1) if stride == 1 else Padding(bottom=1, right=1)
    return Convolve(0, 1, Weights("conv", into, out, kernel), stride=stride, padding=padding)


class Case:
    """Random parameters and a source that bfloat16 holds, and what a convolution makes of them in float64."""

    def __init__(self, op: Convolve, rows: int, width: int, *, has_bias: bool = True) -> None:
        noise = torch.Generator().manual_seed(0)
        into, out, kernel = op.weights.in_channels, op.weights.out_channels, op.weights.kernel
        self.op = op
        self.weight = (
            torch.randn(out, into, kernel, kernel, generator=noise) / (into * kernel**2) ** 0.5
        ).bfloat16()
        self.bias = torch.randn(out, generator=noise) if has_bias else None
        self.source = torch.randn(1, into, rows, width, generator=noise).bfloat16()
        padding = op.padding
        padded = F.pad(self.source, (padding.left, padding.right, padding.top, padding.bottom)).double()
        bias = None if self.bias is None else self.bias.double()
        self.expected = F.conv2d(padded, self.weight.double(), bias, stride=op.stride)
        self.rows = self.expected.shape[2]

    def begin(self, way: ConvAlgorithm) -> Workspace:
        """A room with the source in its window, whatever was there before."""
        prepared = prepare(self.op, way, self.weight.float(), self.bias)
        room = prepared.begin(Scratch(torch.empty(0)), self.rows, self.source.shape[3])
        start, stop = self.op.rows_read(0, self.rows)
        room.window[:, :, : stop - start] = 0
        inside = self.source[:, :, max(start, 0) : stop]
        room.inside[:, :, -min(start, 0) : -min(start, 0) + inside.shape[2]] = inside
        return room

    def check(self, made: torch.Tensor, within: float = 1e-5) -> None:
        assert made.shape == self.expected.shape
        torch.testing.assert_close(made.double(), self.expected, rtol=within, atol=within)


@both
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("rows", "width"), [(8, 8), (5, 49), (2, 3), (6, 131)])
@pytest.mark.parametrize("channels", [(8, 8), (16, 40), (64, 64), (96, 32), (264, 16)])
def test_taps_are_the_convolution_added_up_in_float32(way, channels, rows, width, stride, threads) -> None:
    case = Case(convolve(*channels, stride), rows, width, has_bias=threads > 1)
    room = case.begin(way)
    assert room.window.dtype == (torch.bfloat16 if way.in_bfloat16 else torch.float32)
    place = allocate_picture(torch.empty(0), *case.expected.shape[1:]).fill_(torch.nan)
    with in_threads(threads):
        case.check(room.convolve(case.rows, None))
        assert room.convolve(case.rows, place) is place
        case.check(place)
        case.check(room.convolve(case.rows, case.expected.float()))  # laid out otherwise


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("added_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_taps_are_added_and_rounded_on_their_way(way, dtype, added_dtype) -> None:
    case = Case(convolve(24, 40), 6, 53)
    room = case.begin(way)
    plain = room.convolve(case.rows, None).clone()
    added = torch.empty_like(plain, dtype=added_dtype, memory_format=torch.channels_last)
    added.copy_(torch.randn(plain.shape, generator=torch.Generator().manual_seed(1)))
    place = torch.full_like(plain, torch.nan, dtype=dtype, memory_format=torch.channels_last)
    assert room.adds
    room.convolve(case.rows, place, added)
    assert torch.equal(place, (plain + added.float()).to(dtype))
    if dtype == added_dtype:
        room.convolve(case.rows, added, added)
        assert torch.equal(added, place)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("out", [1, 2, 3, 4, 8, 15])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(("rows", "width"), [(8, 8), (5, 7), (3, 3), (6, 131)])
@pytest.mark.parametrize("into", [8, 24, 128])
@pytest.mark.parametrize("is_compiled", [True, False], ids=["compiled", "torch's"])
def test_dots_are_the_convolution(into, rows, width, kernel, out, threads, is_compiled, monkeypatch) -> None:
    if not is_compiled:
        monkeypatch.setattr(convolution, "compiled_for", lambda *_: None)
    case = Case(convolve(into, out, kernel=kernel), rows, width, has_bias=threads > 1)
    room = case.begin(DOTS)
    with in_threads(threads):
        case.check(room.convolve(case.rows, None))
        for place in (
            torch.full_like(case.expected, torch.nan, dtype=torch.float32),  # a whole program's output
            allocate_picture(torch.empty(0), *case.expected.shape[1:]),
        ):
            case.check(room.convolve(case.rows, place))


def test_dots_with_stride_two() -> None:
    case = Case(convolve(16, 3, 2), 9, 14)
    case.check(case.begin(DOTS).convolve(case.rows, None))


def test_nothing_is_read_or_written_beyond_its_rows() -> None:
    case = Case(convolve(8, 3), 6, 10)
    room = case.begin(DOTS)
    room.window[:, :, 4 + 2 :] = torch.nan  # of what five rows and more would read
    place = torch.full((1, 3, 6, 10), 7.0)
    room.convolve(4, place[:, :, :4])
    torch.testing.assert_close(place[:, :, :4].double(), case.expected[:, :, :4], rtol=1e-5, atol=1e-5)
    assert (place[:, :, 4:] == 7).all()


class TestTheWayThatIsTaken:
    of_float32 = DeviceProfile(4, 4, 2**20, 64)
    of_panels = replace(of_float32, multiplies_float32=True)
    of_bfloat16 = replace(of_float32, stored_bytes=2, multiplies_bfloat16=True)

    def test_pictures_and_moments_are_made_of_dots(self) -> None:
        for arithmetic in (self.of_float32, self.of_panels, self.of_bfloat16):
            assert algorithm_of(convolve(128, 3), arithmetic) == DOTS
            assert algorithm_of(convolve(512, 8), arithmetic) == DOTS
            assert algorithm_of(convolve(12, 3), arithmetic).kind == "direct"
            assert algorithm_of(convolve(128, 20), arithmetic).kind == "direct"
        assert algorithm_of(convolve(128, 3), DeviceProfile(2, 2)).kind == "direct"

    def test_few_channels_are_rounded_as_they_are(self) -> None:
        for channels in ((16, 16), (64, 64), (96, 32), (96, 128)):
            assert algorithm_of(convolve(*channels), self.of_bfloat16) == TAPS_IN_BFLOAT16
        assert algorithm_of(convolve(64, 64, stride=2), self.of_bfloat16) == TAPS_IN_BFLOAT16
        assert algorithm_of(convolve(128, 40), self.of_bfloat16).kind == "direct"
        assert algorithm_of(convolve(12, 16), self.of_bfloat16).kind == "direct"

    def test_float32_fills_whole_panels(self) -> None:
        for channels in ((32, 32), (96, 32), (128, 32)):
            assert algorithm_of(convolve(*channels), self.of_panels) == TAPS
            assert algorithm_of(convolve(*channels), self.of_float32).kind == "direct"
        assert algorithm_of(convolve(32, 16), self.of_panels).kind == "direct"
        assert algorithm_of(convolve(64, 64), self.of_panels).kind == "winograd"

    def test_so_does_times_two(self) -> None:
        doubled = replace(convolve(32, 32), doubled=True)
        assert algorithm_of(doubled, self.of_float32).kind == "four-phases"
        assert algorithm_of(doubled, self.of_panels) == ConvAlgorithm("nine-products", 2, 2)
        assert algorithm_of(doubled, self.of_bfloat16) == ConvAlgorithm("nine-products", 2, 2, in_bfloat16=True)

    def test_what_a_row_takes(self) -> None:
        op = convolve(24, 40)
        assert (TAPS_IN_BFLOAT16.narrower, TAPS.narrower) == (2, 1)
        assert (TAPS_IN_BFLOAT16.workspace(op, 3, 10), TAPS.workspace(op, 3, 10)) == (0, 0)
        assert TAPS_IN_BFLOAT16.weight_bytes(op, 4) == 2 * 9 * 24 * 64  # two panels of 32
        assert TAPS.weight_bytes(op, 4) == 4 * 9 * 24 * 64
        assert DOTS.weight_bytes(convolve(24, 3), 4) == 4 * 9 * 24 * 3
