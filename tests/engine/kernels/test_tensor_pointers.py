"""The C kernels get only tensors that fit: all others are errors in Python, whatever is wrong with them."""

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

from hybridge.engine.kernels.compiled import CompiledKernels, _load
from hybridge.engine.kernels.tensor_pointers import OutputMoments
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


def calls(loops: CompiledKernels) -> dict[str, Callable[[], Call]]:
    def input_transform() -> Call:
        return Call(
            {"padded": picture(8, 10, 14), "transformed": numbers(36, 6, 8)},
            lambda padded, transformed: loops.input_transform(padded, transformed, 2, 3, (6, 6)),
        )

    def output_transform() -> Call:
        return Call(
            {
                "products": numbers(16, 6, 8),
                "bias": numbers(8),
                "residual": picture(8, 4, 5, BFLOAT16),
                "output": picture(8, 4, 5),
            },
            lambda products, bias, residual, output: loops.output_transform(
                products, bias, residual, output, 2, 3, (4, 4)
            ),
        )

    def output_transform_that_measures() -> Call:
        tensors = {
            "products": numbers(16, 6, 8),
            "output": picture(8, 4, 5),
            "means": numbers(2, 8),
            "variances": numbers(2, 8),
            "written": torch.zeros(2, dtype=torch.int64, device="cpu"),
        }

        def call(products: torch.Tensor, output: torch.Tensor, **places: torch.Tensor) -> None:
            moments = OutputMoments(**places, row_block=3)
            loops.output_transform(products, None, None, output, 2, 3, (4, 4), moments)

        return Call(tensors, call)

    def bmm() -> Call:
        return Call(
            {
                "inputs": numbers(2, 5, 32),
                "filters": loops.pack_filters(numbers(2, 32, 64), FLOAT32),
                "out": numbers(2, 5, 64),
            },
            loops.bmm,
        )

    def bmm_with_blas() -> Call:
        return Call(
            {"inputs": numbers(2, 5, 8), "filters": numbers(2, 8, 16), "out": numbers(2, 5, 16)},
            loops.bmm,
        )

    def conv_winograd() -> Call:
        tensors = {
            "padded": picture(32, 6, 8),
            "filters": loops.pack_filters(numbers(16, 32, 32), FLOAT32),
            "bias": numbers(32),
            "residual": picture(32, 4, 6),
            "output": picture(32, 4, 6),
            "workspace": numbers(12 * 16 * 64 * torch.get_num_threads()),
        }

        def call(**tensors: torch.Tensor) -> None:
            if not loops.conv_winograd(**tensors, tile_rows=2, tile_columns=3, tile=(4, 4)):
                raise ValueError("not done: the workspace is too small")

        return Call(tensors, call)

    def conv_direct(dtype: torch.dtype) -> Call:
        tensors = {
            "padded": picture(8, 6, 7, dtype),
            "filters": loops.pack_direct_filters(numbers(40, 8, 3, 3), dtype),
            "bias": numbers(40),
            "residual": picture(40, 4, 5),
            "output": picture(40, 4, 5),
        }
        return Call(tensors, lambda **tensors: loops.conv_direct(**tensors, stride=1))

    def conv_dot() -> Call:
        tensors = {
            "padded": picture(16, 6, 7),
            "filters": numbers(3, 3, 48),
            "bias": numbers(3),
            "output": numbers(1, 3, 4, 5),
        }
        return Call(tensors, lambda **tensors: loops.conv_dot(**tensors, stride=1))

    def scale_shift_silu() -> Call:
        tensors = {
            "rows": picture(8, 3, 4, BFLOAT16),
            "scale": numbers(8),
            "shift": numbers(8),
            "output": picture(8, 3, 4),
        }
        return Call(tensors, loops.scale_shift_silu)

    def channel_moments() -> Call:
        return Call({"rows": picture(8, 5, 4)}, lambda rows: loops.channel_moments(rows, 2))

    def pack_values() -> Call:
        return Call(
            {"rows": numbers(7, 8), "values": numbers(2, 8, 128)},
            lambda rows, values: loops.pack_values(rows, 200, values),
        )

    def attend(dtype: torch.dtype) -> Call:
        block = loops.key_block(dtype)
        tensors = {
            "queries": numbers(5, 32),
            "keys": numbers(block + 3, 32, dtype=dtype),
            "values": numbers(2, 32, block, dtype=dtype),
            "out": numbers(5, 32),
            "query_panels": numbers(queries_padded(5), 32),
            "accumulators": numbers(queries_padded(5), 32),
        }

        def call(query_panels: torch.Tensor, accumulators: torch.Tensor, **tensors: torch.Tensor) -> None:
            loops.attend(**tensors, workspace=(query_panels, accumulators))

        return Call(tensors, call)

    found: dict[str, Callable[[], Call]] = {
        "input_transform": input_transform,
        "output_transform": output_transform,
        "output_transform that measures": output_transform_that_measures,
        "conv_dot": conv_dot,
        "scale_shift_silu": scale_shift_silu,
        "channel_moments": channel_moments,
        "pack_values": pack_values,
    }
    if loops._sgemm is not None:
        found["bmm_with_blas"] = bmm_with_blas
    for dtype in (FLOAT32, BFLOAT16):
        if loops.multiplies(dtype):
            found[f"conv_direct {dtype}"] = lambda dtype=dtype: conv_direct(dtype)
            found[f"attend {dtype}"] = lambda dtype=dtype: attend(dtype)
    if loops.multiplies(FLOAT32):
        found |= {"bmm": bmm, "conv_winograd": conv_winograd}
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
    if spoilt in ("one axis more", "one axis less"):  # a workspace may have any shape, and vectors have one axis
        return tensor in ("workspace", "query_panels", "accumulators") or (
            spoilt.endswith("less") and tensor in ("bias", "scale", "shift", "written")
        )
    return spoilt == "every second number" and (name, tensor) == ("conv_dot", "output")  # has any strides


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
        if tensor.dtype == torch.int64:  # counts begin at zero
            made.tensors[name] = torch.zeros(shape, dtype=tensor.dtype, device="cpu")
        elif tensor.ndim == 4 and tensor.stride(1) == 1:
            made.tensors[name] = picture(shape[1], shape[2], shape[3], tensor.dtype)
        else:
            made.tensors[name] = numbers(*shape, dtype=tensor.dtype)
    with suppress(REFUSED):
        made.call(**made.tensors)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda: loops.channel_moments(picture(8, 5, 4), 0), id="no rows at once"),
        pytest.param(lambda: loops.pack_values(numbers(7, 8), 250, numbers(2, 8, 128)), id="beyond the last place"),
        pytest.param(lambda: loops.pack_values(numbers(7, 8), -1, numbers(2, 8, 128)), id="before the first place"),
        pytest.param(
            lambda: loops.input_transform(picture(8, 10, 14), numbers(20, 6, 8), 2, 3, (5, 4)), id="no such tile"
        ),
        pytest.param(
            lambda: loops.input_transform(picture(8, 10, 14), numbers(36, 9, 8), 3, 3, (6, 6)),
            id="more tiles than input",
        ),
        pytest.param(
            lambda: loops.output_transform(numbers(16, 6, 8), None, None, picture(8, 6, 5), 2, 3, (4, 4)),
            id="too few tiles",
        ),
        pytest.param(
            lambda: loops.conv_dot(picture(8, 4, 4), numbers(3, 1, 24), None, numbers(1, 1, 2, 2), 0),
            id="no stride",
        ),
        pytest.param(
            lambda: loops.bmm(
                torch.empty(1, 2**31, 8, dtype=FLOAT32, device="meta"), numbers(1, 8, 8), numbers(1, 1, 8)
            ),
            id="more than an int",
        ),
    ],
)
def test_wrong_numbers_are_refused(call: Callable[[], None]) -> None:
    with pytest.raises(REFUSED):
        call()


@pytest.mark.skipif("bmm" not in CALLS, reason="products of our own are for processors with AVX-512")
@pytest.mark.parametrize("k_block", [0, -1])
def test_sums_of_no_products_are_refused(k_block: int) -> None:
    for name in ("bmm", "attend torch.float32"):
        made = CALLS[name]()
        tensors = dict(made.tensors)
        if name != "bmm":
            tensors["workspace"] = tensors.pop("query_panels"), tensors.pop("accumulators")
        with pytest.raises(ValueError, match="cannot add"):
            getattr(loops, name.split()[0])(**tensors, k_block=k_block)


def test_an_error_says_what_was_seen_and_expected() -> None:
    with pytest.raises(ValueError, match=r"the scale: saw Tensor of shape \[9\].*expected.*shape \[8\]"):
        loops.scale_shift_silu(picture(8, 3, 4), numbers(9), numbers(8), picture(8, 3, 4))
    with pytest.raises(TypeError, match=r"the scale: torch\.float64, but the kernel takes torch\.float32"):
        loops.scale_shift_silu(picture(8, 3, 4), numbers(8).double(), numbers(8), picture(8, 3, 4))
