"""The compiled loops against torch's operators doing the same, and life without them."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hybridge.engine.execution import convolution
from hybridge.engine.execution.convolution import prepare
from hybridge.engine.kernels import compiled, conv_kernels, library
from hybridge.engine.kernels.compiled import multiplies_bfloat16
from hybridge.engine.memory.arena import Scratch
from hybridge.engine.memory.device_memory import allocate_picture
from hybridge.engine.planning.conv_algorithms import ConvAlgorithm
from hybridge.engine.program.layers import Weights
from hybridge.engine.program.ops import Convolve, Padding

WAYS = [
    *(ConvAlgorithm("winograd", *tile) for tile in ((4, 4), (4, 2), (2, 2))),
    ConvAlgorithm("nine-products", 2, 2),
    ConvAlgorithm("halved", 2, 2),
]

_HAS_COMPILER = sys.platform == "linux" and shutil.which("cc") is not None

needs_them = pytest.mark.skipif(not _HAS_COMPILER, reason="no C compiler for Linux, so nothing was compiled")


def convolve(weights: Weights, way: ConvAlgorithm) -> Convolve:
    if way.kind == "halved":
        return Convolve(0, 1, weights, stride=2, padding=Padding(bottom=1, right=1))
    return Convolve(0, 1, weights, padding=Padding(1, 1, 1, 1), doubled="nine" in way.kind)


def made(
    way: ConvAlgorithm, width: int, rows: int, channels: tuple[int, int], has_bias: bool, out: str
) -> torch.Tensor:
    noise = torch.Generator().manual_seed(0)
    into, outputs = channels
    weights = Weights("conv", into, outputs, 3)
    op = convolve(weights, way)
    weight = torch.randn(outputs, into, 3, 3, generator=noise) / (9 * into) ** 0.5
    bias = torch.randn(outputs, generator=noise) if has_bias else None
    room = prepare(op, way, weight, bias).begin(Scratch(torch.empty(0)), rows, width)
    room.window.fill_(1e9)  # of an earlier strip
    first, end = op.rows_read(0, rows)
    room.window[:, :, : end - first] = 0
    room.inside[:, :, : end - first] = torch.randn(1, into, end - first, width, generator=noise)
    columns = op.output_size(rows, width)[1]
    places = {
        "anywhere": None,
        "in place": allocate_picture(torch.empty(0), outputs, rows, columns),
        "in the output": torch.empty(1, outputs, rows, columns),
    }
    return room.convolve(rows, places[out]).clone()


def check(monkeypatch: pytest.MonkeyPatch, *what: Any) -> None:
    for out in ("anywhere", "in place", "in the output"):
        with monkeypatch.context() as without:
            without.setattr(convolution, "compiled_for", lambda *_: None)
            theirs = made(*what, out)
        for cache_bytes in (0, 2**30):  # one step after another, and all of them for a few tiles
            with monkeypatch.context() as cached:
                cached.setattr(conv_kernels, "shared_cache_bytes", partial(int, cache_bytes))
                ours = made(*what, out)
            assert ours.shape == theirs.shape
            assert ours.isfinite().all()
            assert (ours - theirs).norm() <= 2e-6 * theirs.norm()


@needs_them
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize(("width", "rows"), [(8, 8), (7, 6), (2, 2), (67, 10)])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("threads", [1, 3])
def test_they_are_the_same(way, width, rows, has_bias, threads, monkeypatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for channels in ((8, 24), (64, 32), (32, 160)):
            check(monkeypatch, way, width, rows, channels, has_bias)
    finally:
        torch.set_num_threads(before)


needs_avx512 = pytest.mark.skipif(
    not _HAS_COMPILER or torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="only processors with AVX-512 are multiplied for",
)
needs_bfloat16 = pytest.mark.skipif(
    not multiplies_bfloat16(), reason="this processor has no products of bfloat16 (AVX512_BF16)"
)


@needs_them
@pytest.mark.parametrize(
    ("dtype", "into", "out"),
    [
        *(
            (torch.float32, *channels) for channels in [(32, 32), (288, 160), (64, 320), (24, 16)]
        ),  # the last is BLAS's
        *(
            pytest.param(torch.bfloat16, *channels, marks=needs_bfloat16)
            for channels in [(32, 32), (288, 160), (64, 320)]
        ),
    ],
)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("positions", [1, 3, 4, 13, 31, 200, 401])
def test_products_are_bmms(dtype, threads, count, positions, into, out) -> None:
    loops = compiled._load()
    assert loops is not None
    spectrum, filters = torch.randn(count, positions, into).to(dtype), torch.randn(count, into, out)
    packed = loops.pack_filters(filters, dtype)
    expected = spectrum.double() @ filters.to(dtype).double()
    products = torch.full(expected.shape, torch.nan)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        loops.bmm(spectrum, packed, products)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(products.double(), expected, rtol=1e-4, atol=1e-4)


@needs_them
@pytest.mark.skipif(platform.machine() != "x86_64", reason="torch multiplies with MKL on x86-64 alone")
def test_they_multiply_with_torchs_own_blas() -> None:
    loops = compiled._load()
    assert loops is not None
    assert loops._sgemm is not None


@needs_avx512
def test_they_multiply_without_it() -> None:
    loops = compiled._load()
    assert loops is not None
    assert loops.multiplies(torch.float32, 64, 128)
    assert not loops.multiplies(torch.float32, 64, 48)
    assert not loops.multiplies(torch.float16, 64, 64)


@needs_bfloat16
@pytest.mark.parametrize("way", [replace(way, in_bfloat16=True) for way in WAYS[2:]], ids=str)
@pytest.mark.parametrize(("width", "rows"), [(8, 8), (7, 6), (2, 2), (67, 10)])
@pytest.mark.parametrize("channels", [(32, 64), (544, 32)])
@pytest.mark.parametrize("cache_bytes", [0, 2**30], ids=["steps", "tiles"])
def test_rounded_transforms(way, width, rows, channels, cache_bytes, monkeypatch) -> None:
    monkeypatch.setattr(conv_kernels, "shared_cache_bytes", partial(int, cache_bytes))
    exact = made(replace(way, in_bfloat16=False), width, rows, channels, True, "anywhere")
    rounded = made(way, width, rows, channels, True, "anywhere")
    # Two roundings of 2⁻⁹ at most, made larger by what a transform adds and subtracts.
    assert 1e-4 * exact.norm() < (rounded - exact).norm() < 1e-2 * exact.norm()


@needs_bfloat16
def test_transforms_are_rounded_to_the_nearest_even() -> None:
    loops = compiled._load()
    assert loops is not None
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16  # every bfloat16, and what lies between
    numbers = (bits.repeat_interleave(4) | torch.tensor([0, 0x7FFF, 0x8000, 0x8001]).repeat(2**16)).int()
    numbers = numbers.view(torch.float32).view(1, 1, -1, 32)
    numbers = torch.where(numbers.isfinite(), numbers, 0.0)
    window = torch.zeros(1, 3, numbers.shape[2] + 2, 32)
    window[:, 1:2, 1:-1] = numbers
    spectrum = torch.empty(9, numbers.shape[2], 32, dtype=torch.bfloat16)
    loops.input_transform(window.permute(0, 3, 1, 2), spectrum, 1, numbers.shape[2], (3, 3))
    assert torch.equal(spectrum[0], numbers[0, 0].bfloat16())  # the first of nine is the number itself


@needs_them
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("added_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cache_bytes", [0, 2**30], ids=["steps", "tiles"])
def test_what_is_made_is_added_and_rounded_on_its_way(way, dtype, added_dtype, cache_bytes, monkeypatch) -> None:
    monkeypatch.setattr(conv_kernels, "shared_cache_bytes", partial(int, cache_bytes))
    op = convolve(Weights("conv", 32, 64, 3), way)
    noise = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(64, 32, 3, 3, generator=noise) / 17, torch.randn(64, generator=noise)
    room = prepare(op, way, weight, bias).begin(Scratch(torch.empty(0)), 6, 7)
    room.inside.copy_(torch.randn(room.inside.shape, generator=noise))
    plain = room.convolve(6, None).clone()
    added = torch.empty_like(plain, dtype=added_dtype, memory_format=torch.channels_last)
    added.copy_(torch.randn(plain.shape, generator=noise))
    place = torch.full_like(plain, torch.nan, dtype=dtype, memory_format=torch.channels_last)
    assert room.adds
    assert room.convolve(6, place, added).data_ptr() == place.data_ptr()
    assert torch.equal(place, (plain + added.float()).to(dtype))
    if dtype == added_dtype:
        room.convolve(6, added, added)
        assert torch.equal(added, place)


@needs_them
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("channels", "at_once"), [(8, 1), (24, 2), (32, 5), (104, 3), (64, 9)])
def test_mean_and_variance_of_every_channel(dtype, threads, channels, at_once) -> None:
    noise = torch.Generator().manual_seed(0)
    wide = torch.randn(1, 5, 200, channels, generator=noise) + 100 * torch.randn(channels, generator=noise)
    rows = wide.to(dtype).permute(0, 3, 1, 2)[:, :, :, :150]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        means, variances = compiled.compiled_for(torch.empty(0), channels).channel_moments(rows, at_once)
    finally:
        torch.set_num_threads(before)
    for part, mean, variance in zip(rows.double().split(at_once, dim=2), means, variances, strict=True):
        torch.testing.assert_close(mean.double(), part.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
        expected = part.var((0, 2, 3), correction=0)
        torch.testing.assert_close(variance.double(), expected, rtol=1e-5, atol=1e-6)


@needs_them
@pytest.mark.parametrize("way", [*WAYS, pytest.param(ConvAlgorithm("taps"), marks=needs_avx512)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "width", "row_block"), [(10, 67, 1), (10, 67, 3), (6, 7, 4), (8, 130, 9)])
@pytest.mark.parametrize("cache_bytes", [0, 2**30], ids=["steps", "tiles"])
def test_what_is_written_is_measured_on_its_way(
    way, dtype, rows, width, row_block, cache_bytes, monkeypatch
) -> None:
    monkeypatch.setattr(conv_kernels, "shared_cache_bytes", partial(int, cache_bytes))
    loops = compiled._load()
    assert loops is not None
    op = convolve(Weights("conv", 32, 64, 3), way)
    noise = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 32, 3, 3, generator=noise) / 17
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        room = prepare(op, way, weight, torch.randn(64, generator=noise)).begin(
            Scratch(torch.empty(0)), rows, width
        )
        room.inside.copy_(torch.randn(room.inside.shape, generator=noise))
        place = allocate_picture(torch.empty(0, dtype=dtype), 64, rows, op.output_size(rows, width)[1])
        places = loops.places_of_moments(place, row_block)
        room.convolve(rows, place, moments=places)
        means, variances = loops.channel_moments(place, row_block)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(places.means, means)
    assert torch.equal(places.variances, variances)


@needs_them
@pytest.mark.parametrize("channels", [(520, 8), (8, 520)])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_more_channels_than_are_taken_at_once(way, channels, monkeypatch) -> None:
    check(monkeypatch, way, 7, 6, channels, True)


@needs_them
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_normalised_and_activated_in_one_pass(dtype, threads) -> None:
    noise = torch.Generator().manual_seed(0)
    rows = (200 * torch.randn(1, 5, 7, 24, generator=noise)).to(dtype).permute(0, 3, 1, 2)
    rows[0, 0, 0, :3] = torch.tensor([0.0, 1e4, -1e4])
    scale, shift = torch.randn(24, generator=noise), torch.randn(24, generator=noise)
    window = torch.zeros(1, 9, 8, 24).permute(0, 3, 1, 2)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compiled.compiled_for(scale, 24).scale_shift_silu(rows, scale, shift, window[:, :, 2:7, 1:])
    finally:
        torch.set_num_threads(before)
    summed = rows.double() * scale.double().view(-1, 1, 1) + shift.double().view(-1, 1, 1)
    torch.testing.assert_close(window[:, :, 2:7, 1:].double(), F.silu(summed), rtol=3e-6, atol=2e-6)
    assert not window[:, :, :2].any()
    assert not window[..., 0].any()


@needs_them
def test_silu_is_right_to_the_last_bits_and_keeps_nan() -> None:
    numbers = torch.cat(
        [torch.linspace(-95, 95, 80_001), torch.tensor([float("nan"), float("inf"), 1e30] + 4 * [0.0])]
    )
    rows = numbers.view(1, 1, -1, 8).permute(0, 3, 1, 2)
    out = torch.empty_like(rows)
    ones = torch.ones(8)
    compiled.compiled_for(ones, 8).scale_shift_silu(rows, ones, 0 * ones, out)
    finite = rows.isfinite()
    judge = F.silu(rows.double())
    off = (out.double() - judge)[finite].abs() / judge[finite].abs().clamp_min(1e-25)
    assert off.max() < 4e-7
    assert out[rows.isnan()].isnan().all()
    assert out[rows == float("inf")].isinf().all()


@needs_them
def test_they_are_there() -> None:
    """What was installed with a C compiler at hand has them; a build that broke would go unnoticed otherwise."""
    assert compiled.compiled_for(torch.empty(0), 64, 64) is not None


@pytest.mark.parametrize(
    ("like", "channels"),
    [(torch.empty(0, dtype=torch.float64), 64), (torch.empty(0, dtype=torch.bfloat16), 64), (torch.empty(0), 12)],
)
def test_other_numbers_and_odd_channels_are_torchs(like, channels) -> None:
    assert compiled.compiled_for(like, 64, channels) is None


@pytest.fixture
def uncached() -> Iterator[None]:
    compiled._load.cache_clear()
    yield
    compiled._load.cache_clear()


def test_without_a_library_torch_does_it_and_the_log_says_so(uncached, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(library, "_LIBRARY", tmp_path / "none.so")
    with caplog.at_level("INFO"):
        assert made(WAYS[0], 9, 8, (8, 8), True, "in place").isfinite().all()
    assert "there are no compiled loops" in caplog.text


@needs_them
def test_loops_made_from_another_source_are_not_run(uncached, tmp_path, monkeypatch, caplog) -> None:
    changed = tmp_path / "kernels.c"
    changed.write_bytes(library._SOURCES[0].read_bytes() + b"\n")
    monkeypatch.setattr(library, "_SOURCES", [changed, *library._SOURCES[1:]])
    with caplog.at_level("INFO"):
        assert compiled.compiled_for(torch.empty(0), 64, 64) is None
    assert "made from another source: install hybridge again" in caplog.text
