"""Loops in C are called with right tensors alone: others are errors in Python, whatever is wrong with them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from hybridge.engine.kernels.compiled import Compiled, _load
from hybridge.engine.planning.conv_algorithms import queries_padded

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
REFUSED = (TypeError, ValueError, RuntimeError, IndexError, NotImplementedError)

loops = _load()
pytestmark = pytest.mark.skipif(loops is None, reason="nothing was compiled")


def numbers(*shape: int, dtype: torch.dtype = FLOAT32) -> torch.Tensor:
    return torch.full(shape, 0.5, dtype=dtype, device="cpu")


def picture(channels: int, rows: int, columns: int, dtype: torch.dtype = FLOAT32) -> torch.Tensor:
    return numbers(1, rows, columns, channels, dtype=dtype).permute(0, 3, 1, 2)


@dataclass
class Call:
    """A call that is right: the tensors by name, and how the loop is called with them."""

    tensors: dict[str, torch.Tensor]
    call: Callable[..., Any]


def calls(loops: Compiled) -> dict[str, Callable[[], Call]]:
    def to_spectrum() -> Call:
        return Call(
            {"window": picture(8, 10, 14), "spectrum": numbers(36, 6, 8)},
            lambda window, spectrum: loops.to_spectrum(window, spectrum, 2, 3, (6, 6)),
        )

    def to_picture() -> Call:
        return Call(
            {
                "products": numbers(16, 6, 8),
                "bias": numbers(8),
                "added": picture(8, 4, 5, BFLOAT16),
                "picture": picture(8, 4, 5),
            },
            lambda products, bias, added, picture: loops.to_picture(products, bias, added, picture, 2, 3, (4, 4)),
        )

    def multiply() -> Call:
        return Call(
            {
                "spectrum": numbers(2, 5, 32),
                "filters": loops.pack(numbers(2, 32, 64), FLOAT32),
                "products": numbers(2, 5, 64),
            },
            loops.multiply,
        )

    def multiply_with_blas() -> Call:
        return Call(
            {"spectrum": numbers(2, 5, 8), "filters": numbers(2, 8, 16), "products": numbers(2, 5, 16)},
            loops.multiply,
        )

    def convolve() -> Call:
        tensors = {
            "window": picture(32, 6, 8),
            "filters": loops.pack(numbers(16, 32, 32), FLOAT32),
            "bias": numbers(32),
            "added": picture(32, 4, 6),
            "picture": picture(32, 4, 6),
            "memory": numbers(12 * 16 * 64 * torch.get_num_threads()),
        }

        def call(**tensors: torch.Tensor) -> None:
            if not loops.convolve(**tensors, high=2, wide=3, tile=(4, 4)):
                raise ValueError("not done, for want of memory")

        return Call(tensors, call)

    def convolve_taps(dtype: torch.dtype) -> Call:
        tensors = {
            "window": picture(8, 6, 7, dtype),
            "filters": loops.pack_taps(numbers(40, 8, 3, 3), dtype),
            "bias": numbers(40),
            "added": picture(40, 4, 5),
            "picture": picture(40, 4, 5),
        }
        return Call(tensors, lambda **tensors: loops.convolve_taps(**tensors, stride=1))

    def convolve_dots() -> Call:
        tensors = {
            "window": picture(16, 6, 7),
            "filters": numbers(3, 3, 48),
            "bias": numbers(3),
            "picture": numbers(1, 3, 4, 5),
        }
        return Call(tensors, lambda **tensors: loops.convolve_dots(**tensors, stride=1))

    def to_window() -> Call:
        tensors = {
            "rows": picture(8, 3, 4, BFLOAT16),
            "scale": numbers(8),
            "shift": numbers(8),
            "window": picture(8, 3, 4),
        }
        return Call(tensors, loops.to_window)

    def measure() -> Call:
        return Call({"rows": picture(8, 5, 4)}, lambda rows: loops.measure(rows, 2))

    def put_values() -> Call:
        return Call(
            {"rows": numbers(7, 8), "values": numbers(2, 8, 128)},
            lambda rows, values: loops.put_values(rows, 200, values),
        )

    def attend(dtype: torch.dtype) -> Call:
        block = loops.values_in_a_block(dtype)
        tensors = {
            "queries": numbers(5, 32),
            "keys": numbers(block + 3, 32, dtype=dtype),
            "values": numbers(2, 32, block, dtype=dtype),
            "out": numbers(5, 32),
            "panels": numbers(queries_padded(5), 32),
            "mixed": numbers(queries_padded(5), 32),
        }

        def call(panels: torch.Tensor, mixed: torch.Tensor, **tensors: torch.Tensor) -> None:
            loops.attend(**tensors, memory=(panels, mixed))

        return Call(tensors, call)

    found: dict[str, Callable[[], Call]] = {
        "to_spectrum": to_spectrum,
        "to_picture": to_picture,
        "convolve_dots": convolve_dots,
        "to_window": to_window,
        "measure": measure,
        "put_values": put_values,
    }
    if loops._sgemm is not None:
        found["multiply_with_blas"] = multiply_with_blas
    for dtype in (FLOAT32, BFLOAT16):
        if loops.multiplies(dtype):
            found[f"convolve_taps {dtype}"] = lambda dtype=dtype: convolve_taps(dtype)
            found[f"attend {dtype}"] = lambda dtype=dtype: attend(dtype)
    if loops.multiplies(FLOAT32):
        found |= {"multiply": multiply, "convolve": convolve}
    return found


CALLS = {} if loops is None else calls(loops)


def emptied(tensor: torch.Tensor) -> torch.Tensor:
    copy = tensor.clone()
    copy.untyped_storage().resize_(copy.untyped_storage().nbytes() - 1)
    return copy


def faked(tensor: torch.Tensor) -> torch.Tensor:
    with FakeTensorMode() as mode:
        return mode.from_tensor(tensor)


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    memory = torch.zeros(tensor.nbytes + 1, dtype=torch.uint8)[1:].numpy().data
    flat = torch.frombuffer(memory, dtype=tensor.dtype)
    return flat.as_strided(tensor.shape, tensor.stride()) if tensor.numel() else tensor


#: What makes a tensor wrong for a loop, be it right otherwise.
SPOILT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "float64": lambda t: t.double(),
    "float16": lambda t: t.half(),
    "integers": lambda t: t.int(),
    "meta": lambda t: t.to("meta"),
    "fake": faked,
    "emptied": emptied,
    "negated when read": lambda t: torch._neg_view(t),
    "without numbers": lambda t: t.narrow(t.ndim - 1, 0, 0),
    "one axis more": lambda t: t[None],
    "one axis less": lambda t: t.flatten(),
    "every second number": lambda t: t.repeat_interleave(2, dim=1 if t.ndim == 4 else -1)[
        (slice(None), slice(None, None, 2)) if t.ndim == 4 else (..., slice(None, None, 2))
    ],
    "sparse": lambda t: t.to_sparse(),
    "unaligned": unaligned,
}

TENSORS = [(name, tensor) for name, make in CALLS.items() for tensor in make().tensors]


@pytest.mark.parametrize("name", CALLS)
def test_right_tensors_are_taken(name: str) -> None:
    made = CALLS[name]()
    made.call(**made.tensors)


def is_still_right(name: str, tensor: str, spoilt: str) -> bool:
    if spoilt in ("one axis more", "one axis less"):  # memory may have whatever shape, and vectors have one axis
        return tensor in ("memory", "panels", "mixed") or (
            spoilt.endswith("less") and tensor in ("bias", "scale", "shift")
        )
    return spoilt == "every second number" and (name, tensor) == ("convolve_dots", "picture")  # by its own strides


WRONG = [(*tensor, spoilt) for tensor in TENSORS for spoilt in SPOILT if not is_still_right(*tensor, spoilt)]


@pytest.mark.parametrize(("name", "tensor", "spoilt"), WRONG)
def test_wrong_tensors_are_refused(name: str, tensor: str, spoilt: str) -> None:
    made = CALLS[name]()
    made.tensors[tensor] = SPOILT[spoilt](made.tensors[tensor])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of a fake tensor's address
        with pytest.raises(REFUSED):
            made.call(**made.tensors)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_other_sizes_are_refused_or_stay_within_memory(data: st.DataObject) -> None:
    """Each size of a tensor made a little smaller or larger; AddressSanitizer would see what is not refused."""
    made = CALLS[data.draw(st.sampled_from(sorted(CALLS)))]()
    for name in data.draw(st.sets(st.sampled_from(sorted(made.tensors)), min_size=1, max_size=2)):
        tensor = made.tensors[name]
        shape = [data.draw(st.sampled_from([n, n, n, max(n - 1, 0), n + 1, 2 * n, 0])) for n in tensor.shape]
        if tensor.ndim == 4 and tensor.stride(1) == 1:
            made.tensors[name] = picture(shape[1], shape[2], shape[3], tensor.dtype)
        else:
            made.tensors[name] = numbers(*shape, dtype=tensor.dtype)
    with suppress(REFUSED):
        made.call(**made.tensors)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda: loops.measure(picture(8, 5, 4), 0), id="no rows at once"),
        pytest.param(lambda: loops.put_values(numbers(7, 8), 250, numbers(2, 8, 128)), id="beyond the last place"),
        pytest.param(lambda: loops.put_values(numbers(7, 8), -1, numbers(2, 8, 128)), id="before the first place"),
        pytest.param(
            lambda: loops.to_spectrum(picture(8, 10, 14), numbers(20, 6, 8), 2, 3, (5, 4)), id="no such tile"
        ),
        pytest.param(
            lambda: loops.to_spectrum(picture(8, 10, 14), numbers(36, 9, 8), 3, 3, (6, 6)),
            id="more tiles than window",
        ),
        pytest.param(
            lambda: loops.to_picture(numbers(16, 6, 8), None, None, picture(8, 6, 5), 2, 3, (4, 4)),
            id="too few tiles",
        ),
        pytest.param(
            lambda: loops.convolve_dots(picture(8, 4, 4), numbers(3, 1, 24), None, numbers(1, 1, 2, 2), 0),
            id="no stride",
        ),
        pytest.param(
            lambda: loops.multiply(
                torch.empty(1, 2**31, 8, dtype=FLOAT32, device="meta"), numbers(1, 8, 8), numbers(1, 1, 8)
            ),
            id="more than an int",
        ),
    ],
)
def test_wrong_numbers_are_refused(call: Callable[[], None]) -> None:
    with pytest.raises(REFUSED):
        call()


@pytest.mark.skipif("multiply" not in CALLS, reason="products of our own are for processors with AVX-512")
@pytest.mark.parametrize("at_once", [0, -1])
def test_sums_of_no_products_are_refused(at_once: int) -> None:
    for name in ("multiply", "attend torch.float32"):
        made = CALLS[name]()
        tensors = dict(made.tensors)
        if name != "multiply":
            tensors["memory"] = tensors.pop("panels"), tensors.pop("mixed")
        with pytest.raises(ValueError, match="cannot add"):
            getattr(loops, name.split()[0])(**tensors, added_at_once=at_once)


def test_an_error_says_what_was_seen_and_expected() -> None:
    with pytest.raises(ValueError, match=r"the scale: saw Tensor of shape \[9\].*expected.*shape \[8\]"):
        loops.to_window(picture(8, 3, 4), numbers(9), numbers(8), picture(8, 3, 4))
    with pytest.raises(TypeError, match=r"the scale: torch\.float64, but the loop takes torch\.float32"):
        loops.to_window(picture(8, 3, 4), numbers(8).double(), numbers(8), picture(8, 3, 4))
