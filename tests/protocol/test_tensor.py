"""WireTensor: dtype, shape and bytes that belong together; to and from NumPy."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from hybridge.errors import RequestError
from hybridge.protocol import ITEM_BYTES, WireTensor


@pytest.mark.parametrize(("dtype", "size"), [("float16", 2), ("float32", 4), ("bfloat16", 2), ("uint8", 1)])
def test_sizes(dtype: str, size: int) -> None:
    assert ITEM_BYTES[dtype] == size
    assert WireTensor.nbytes_of(dtype, (1, 4, 64, 64)) == 16384 * size
    assert WireTensor(dtype, (2, 3), bytes(6 * size)).nbytes == 6 * size


def test_size_of_a_tensor_that_no_machine_could_hold() -> None:
    assert WireTensor.nbytes_of("float32", (2**40, 2**40)) == 2**82


def test_bytes_that_do_not_fit_name_the_dtype_that_would() -> None:
    with pytest.raises(RequestError) as caught:
        WireTensor("float32", (1, 4, 2, 2), bytes(32))
    assert caught.value.saw == "32 bytes"
    assert caught.value.expected == "64 bytes = 1×4×2×2 elements of float32 (4 bytes each)"
    assert caught.value.hint == "dtype=float16, which fits this many bytes"


def test_bytes_that_fit_no_dtype() -> None:
    with pytest.raises(RequestError, match=r"saw 5 bytes, expected 4 bytes = 2 elements .* contiguous"):
        WireTensor("float16", (2,), bytes(5))


@pytest.mark.parametrize("shape", [(), (0,), (1, -1), (1, 2, 3, 4, 5, 6), (1.0, 2), ("1",)])
def test_impossible_shapes(shape: tuple[object, ...]) -> None:
    with pytest.raises(RequestError, match="impossible shape"):
        WireTensor("uint8", shape, b"")  # type: ignore[arg-type]


def test_a_million_axes_are_counted_and_not_listed() -> None:
    with pytest.raises(RequestError, match=r"saw 1000000 axes") as caught:
        WireTensor("uint8", (1,) * 10**6, b"")
    assert len(str(caught.value)) < 300


def test_unknown_dtype() -> None:
    with pytest.raises(RequestError, match="unknown dtype: saw 'float64'"):
        WireTensor("float64", (1,), bytes(8))


def test_data_may_be_any_buffer() -> None:
    raw = struct.pack("<3f", 1, 2, 3)
    for data in (raw, bytearray(raw), memoryview(raw), memoryview(raw).cast("f")):
        tensor = WireTensor("float32", (3,), data)
        assert tensor.nbytes == 12
        assert tensor.to_numpy().tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("dtype", "raw", "values"),
    [
        ("float32", struct.pack("<4f", 1.5, -2, 0, 3e38), [[1.5, -2.0], [0.0, float(np.float32(3e38))]]),
        ("float16", struct.pack("<4e", 1.5, -2, 0, 65504), [[1.5, -2.0], [0.0, 65504.0]]),
        ("uint8", bytes([0, 1, 128, 255]), [[0, 1], [128, 255]]),
        ("bfloat16", bytes.fromhex("c03f 00c0 0000 7f7f"), [[1.5, -2.0], [0.0, 3.3895313892515355e38]]),
    ],
)
def test_to_numpy(dtype: str, raw: bytes, values: list[list[float]]) -> None:
    array = WireTensor(dtype, (2, 2), raw).to_numpy()
    assert array.dtype == ("float32" if dtype == "bfloat16" else dtype)
    assert array.tolist() == values


def test_to_numpy_shares_the_bytes() -> None:
    data = bytearray(4)
    array = WireTensor("uint8", (4,), data).to_numpy()
    data[2] = 7
    assert array.tolist() == [0, 0, 7, 0]


def test_bfloat16_infinities_and_nan_survive() -> None:
    array = WireTensor("bfloat16", (3,), bytes.fromhex("807f 80ff c07f")).to_numpy()
    assert array[:2].tolist() == [np.inf, -np.inf]
    assert np.isnan(array[2])


def test_from_numpy_keeps_dtype_and_order() -> None:
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    assert WireTensor.from_numpy(array) == WireTensor("float16", (2, 3), struct.pack("<6e", *range(6)))
    assert WireTensor.from_numpy(array.T) == WireTensor("float16", (3, 2), struct.pack("<6e", 0, 3, 1, 4, 2, 5))
    assert WireTensor.from_numpy(array[:, ::2]).data == struct.pack("<4e", 0, 2, 3, 5)
    assert WireTensor.from_numpy(np.asfortranarray(array)).data == array.tobytes()


def test_from_numpy_writes_little_endian() -> None:
    expected = WireTensor("float32", (2,), struct.pack("<2f", 1.5, -2))
    assert WireTensor.from_numpy(np.array([1.5, -2], dtype=">f4")) == expected
    assert WireTensor.from_numpy(np.array([1.5, -2], dtype="<f4")) == expected


@pytest.mark.parametrize("order", ["<", ">"])
def test_from_numpy_rounds_float64_to_float32(order: str) -> None:
    array = np.array([[0.1, 1 + 2**-40]], dtype=f"{order}f8")
    assert WireTensor.from_numpy(array) == WireTensor("float32", (1, 2), struct.pack("<2f", 0.1, 1.0))


def test_from_numpy_of_uint8() -> None:
    assert WireTensor.from_numpy(np.array([[0, 255]], dtype=np.uint8)) == WireTensor("uint8", (1, 2), b"\x00\xff")


@pytest.mark.parametrize("dtype", ["int64", "bool", "complex64", "U3", "O"])
def test_from_numpy_refuses_other_dtypes(dtype: str) -> None:
    with pytest.raises(RequestError, match="unknown dtype"):
        WireTensor.from_numpy(np.zeros((2,), dtype=dtype))


def test_from_numpy_refuses_a_scalar_and_an_empty_array() -> None:
    for array in (np.float32(1).reshape(()), np.zeros((0, 3), np.float32)):
        with pytest.raises(RequestError, match="impossible shape"):
            WireTensor.from_numpy(array)


def test_numpy_round_trip() -> None:
    for dtype in ("float16", "float32", "uint8"):
        array = (np.arange(24) * 7 % 50).astype(dtype).reshape(1, 2, 3, 4)
        back = WireTensor.from_numpy(array).to_numpy()
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        assert (back == array).all()
