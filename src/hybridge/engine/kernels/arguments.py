"""The structs of ``arguments.h`` for ctypes: what each function of the library takes a pointer to.

The header says what every field means.  tests/engine/kernels/test_arguments.py compares sizes, offsets and types.
"""

from __future__ import annotations

import ctypes

_Field = tuple[str, type[ctypes.c_void_p | ctypes.c_ssize_t | ctypes.c_int | ctypes.c_float | ctypes.c_uint]]


def _pointers(*names: str) -> tuple[_Field, ...]:
    return tuple((name, ctypes.c_void_p) for name in names)


def _sizes(*names: str) -> tuple[_Field, ...]:
    return tuple((name, ctypes.c_ssize_t) for name in names)


def _ints(*names: str) -> tuple[_Field, ...]:
    return tuple((name, ctypes.c_int) for name in names)


#: Where a kernel writes the moments of its output, and how far it is.
_MOMENTS = "means", "variances", "written"

#: Every struct ends with it.
_THREADS: _Field = ("threads", ctypes.c_uint)


class Arguments(ctypes.Structure):
    """A struct, whose fields are given by name.  A name that it lacks is an ``AttributeError``."""

    __slots__ = ()


class InputTransformArgs(Arguments):
    """``struct input_transform_args``."""

    __slots__ = ()
    _fields_ = (
        *_pointers("input", "transformed", "parallel"),
        *_sizes("input_row_stride", "tile_rows", "tile_columns", "channels"),
        *_ints("tile_height", "tile_width", "transformed_is_bfloat16"),
        _THREADS,
    )


class OutputTransformArgs(Arguments):
    """``struct output_transform_args``."""

    __slots__ = ()
    _fields_ = (
        *_pointers("products", "bias", "residual", "output", *_MOMENTS, "parallel"),
        *_sizes("residual_row_stride", "output_row_stride", "tile_rows", "tile_columns"),
        *_sizes("output_rows", "output_columns", "channels", "row_block"),
        *_ints("tile_height", "tile_width", "residual_is_bfloat16", "output_is_bfloat16"),
        _THREADS,
    )


class BatchedGemmArgs(Arguments):
    """``struct batched_gemm_args``."""

    __slots__ = ()
    _fields_ = (
        *_pointers("input", "filters", "output", "parallel"),
        *_sizes("batch", "positions", "in_channels", "out_channels", "k_block"),
        *_ints("input_is_bfloat16"),
        _THREADS,
    )


class BatchedGemmBlasArgs(Arguments):
    """``struct batched_gemm_blas_args``."""

    __slots__ = ()
    _fields_ = (
        *_pointers("input", "filters", "output", "sgemm", "parallel"),
        *_sizes("batch"),
        *_ints("positions", "in_channels", "out_channels"),
        _THREADS,
    )


class ConvWinogradArgs(Arguments):
    """``struct conv_winograd_args``."""

    __slots__ = ()
    _fields_ = (
        *_pointers("input", "filters", "bias", "residual", "output", "workspace", *_MOMENTS, "parallel"),
        *_sizes("workspace_bytes", "input_row_stride", "residual_row_stride", "output_row_stride"),
        *_sizes("tile_rows", "tile_columns", "output_rows", "output_columns", "in_channels", "out_channels"),
        *_sizes("products", "tile_block", "k_block", "row_block"),
        *_ints("tile_height", "tile_width", "filters_are_bfloat16", "residual_is_bfloat16", "output_is_bfloat16"),
        _THREADS,
    )


class ConvDirectArgs(Arguments):
    """``struct conv_direct_args``."""

    __slots__ = ()
    _fields_ = (
        *_pointers("input", "filters", "bias", "residual", "output", *_MOMENTS, "parallel"),
        *_sizes("input_row_stride", "residual_row_stride", "output_row_stride", "output_rows", "output_columns"),
        *_sizes("in_channels", "out_channels", "kernel", "stride", "k_block", "row_block"),
        *_ints("filters_are_bfloat16", "residual_is_bfloat16", "output_is_bfloat16"),
        _THREADS,
    )


class ConvDotArgs(Arguments):
    """``struct conv_dot_args``."""

    __slots__ = ()
    _fields_ = (
        *_pointers("input", "filters", "bias", "output", "parallel"),
        *_sizes("input_row_stride", "output_channel_stride", "output_row_stride", "output_column_stride"),
        *_sizes("output_rows", "output_columns", "in_channels", "out_channels", "kernel", "stride"),
        _THREADS,
    )


class ScaleShiftSiluArgs(Arguments):
    """``struct scale_shift_silu_args``."""

    __slots__ = ()
    _fields_ = (
        *_pointers("input", "scale", "shift", "output", "parallel"),
        *_sizes("input_row_stride", "output_row_stride", "rows", "columns", "channels"),
        *_ints("input_is_bfloat16", "output_is_bfloat16"),
        _THREADS,
    )


class ChannelMomentsArgs(Arguments):
    """``struct channel_moments_args``."""

    __slots__ = ()
    _fields_ = (
        *_pointers("input", "means", "variances", "parallel"),
        *_sizes("input_row_stride", "rows", "columns", "channels", "row_block"),
        *_ints("input_is_bfloat16"),
        _THREADS,
    )


class PackValuesArgs(Arguments):
    """``struct pack_values_args``."""

    __slots__ = ()
    _fields_ = (
        *_pointers("rows", "values", "parallel"),
        *_sizes("first", "positions", "channels", "key_block"),
        *_ints("values_are_bfloat16"),
        _THREADS,
    )


class AttentionArgs(Arguments):
    """``struct attention_args``."""

    __slots__ = ()
    _fields_ = (
        *_pointers("queries", "keys", "values", "output", "query_panels", "accumulators", "parallel"),
        *_sizes("query_count", "key_count", "channels", "k_block"),
        ("scale", ctypes.c_float),
        *_ints("keys_are_bfloat16"),
        _THREADS,
    )


#: What each function of the library takes; none returns anything.
OF_FUNCTIONS: dict[str, type[Arguments]] = {
    "input_transform": InputTransformArgs,
    "output_transform": OutputTransformArgs,
    "batched_gemm": BatchedGemmArgs,
    "batched_gemm_blas": BatchedGemmBlasArgs,
    "conv_winograd": ConvWinogradArgs,
    "conv_direct": ConvDirectArgs,
    "conv_dot": ConvDotArgs,
    "scale_shift_silu": ScaleShiftSiluArgs,
    "channel_moments": ChannelMomentsArgs,
    "pack_values": PackValuesArgs,
    "attention": AttentionArgs,
}
