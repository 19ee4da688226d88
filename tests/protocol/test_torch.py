"""WireTensor ↔ torch: bit for bit."""

from __future__ import annotations

import struct

import pytest
import torch

from hybridge.errors import RequestError
from hybridge.protocol import WireTensor
from hybridge.protocol.torch import from_torch, to_torch

DTYPES = (torch.float16, torch.float32, torch.bfloat16, torch.uint8)


def bits(tensor: torch.Tensor) -> list[int]:
    return list(tensor.contiguous().reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_is_bitwise_for_every_bit_pattern(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    # Every 16-bit pattern: nans with payloads, infinities, subnormals, negative zero.
    raw = struct.pack("<65536H", *range(65536))
    shape = (4, 65536 * 2 // 4 // torch.empty((), dtype=dtype).element_size())
    tensor = to_torch(WireTensor(name, shape, raw))
    assert tensor.dtype is dtype
    assert tuple(tensor.shape) == shape
    assert from_torch(tensor) == WireTensor(name, shape, raw)


def test_bfloat16_bytes() -> None:
    tensor = torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16)
    assert from_torch(tensor) == WireTensor("bfloat16", (1, 2), bytes.fromhex("c03f 00c0"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_layout_does_not_matter(dtype: torch.dtype) -> None:
    base = torch.arange(2 * 4 * 6 * 8).remainder(100).to(dtype).reshape(2, 4, 6, 8)
    for tensor in (
        base.permute(3, 1, 0, 2),
        base.to(memory_format=torch.channels_last),
        base[:, ::2, 1:, ::3],
        base[1],
        base[:, :1].expand(2, 5, 6, 8),
        base.transpose(0, 1)[..., 3:4],
    ):
        wire = from_torch(tensor)
        assert wire.shape == tuple(tensor.shape)
        assert list(wire.data) == bits(tensor)
        assert torch.equal(to_torch(wire), tensor)


@pytest.mark.parametrize("batch", [1, 2])
def test_channels_last_is_kept_and_nothing_else(batch: int) -> None:
    """Also of a part of a channels-last tensor: convolutions go by the order of the strides."""
    last = torch.rand(batch, 4, 3, 5).to(memory_format=torch.channels_last)
    for tensor in (last, last[:, :2]):
        wire = from_torch(tensor)
        assert wire.channels_last
        assert to_torch(wire).is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(to_torch(wire), tensor)
    usual = torch.rand(batch, 4, 3, 5)
    for tensor in (usual, usual[:, :2], usual.mT, usual[0], usual[:, :1], last[0]):
        assert not from_torch(tensor).channels_last


def test_gradients_and_parameters_are_left_behind() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    assert from_torch(parameter * 2).data == struct.pack("<4f", 2, 2, 2, 2)


def test_what_comes_out_owns_its_memory() -> None:
    data = bytearray(4)
    tensor = to_torch(WireTensor("uint8", (4,), data))
    tensor[0] = 9
    data[1] = 7
    assert data == b"\x00\x07\x00\x00"
    assert tensor.tolist() == [9, 0, 0, 0]


def test_bytes_do_not_change_with_the_tensor() -> None:
    tensor = torch.zeros(4, dtype=torch.uint8)
    wire = from_torch(tensor)
    tensor += 1
    assert wire.data == bytes(4)


def test_float64_is_rounded_to_float32() -> None:
    assert from_torch(torch.tensor([0.1, 1.0], dtype=torch.float64)) == from_torch(torch.tensor([0.1, 1.0]))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e4m3fn])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(RequestError, match=f"cannot be sent: saw {str(dtype)[6:]}, .*Try: tensor.to"):
        from_torch(torch.zeros(2, dtype=dtype))


def test_scalars_empty_and_six_axes_have_no_place_on_the_wire() -> None:
    for tensor in (torch.tensor(1.0), torch.zeros(0, 4), torch.zeros(1, 1, 1, 1, 1, 1)):
        with pytest.raises(RequestError, match="impossible shape"):
            from_torch(tensor)


def test_numpy_and_torch_agree() -> None:
    for dtype in DTYPES:
        wire = from_torch(torch.arange(-6 if dtype.is_floating_point else 0, 6).to(dtype).reshape(-1, 2))
        assert wire.to_numpy().tolist() == to_torch(wire).tolist()
