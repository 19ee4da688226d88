"""Addresses of tensors for the kernels in C, given out after checking that kernels stay within the tensors' memory.

C gets an address and sizes, and cannot check them: with a wrong dtype, device, layout or size it would read and
write other memory.  So no other file takes an address for C, and every address is asked for with the dtypes and the
sizes that the kernel works with.  A check takes about a microsecond.

Raises:
    TypeError: from every function, for a dtype that the kernel does not take.
    ValueError: from every function, for another device, layout or size, and for memory that was released.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

#: Channels in a vector; LANES in simd.h.
LANES = 8

FLOAT32 = (torch.float32,)
EITHER = (torch.float32, torch.bfloat16)

#: Levels of a pairwise sum; MAX_PARTIAL_SUMS in gemm.h.
_MAX_PARTIAL_SUMS = 24

#: Bytes that some kernels read at a time; uint32_t in C.
_WORD_BYTES = 4

#: The largest number that a C int holds.
_MAX_INT = 2**31 - 1

#: For a tile that reads so many elements along one side: how many outputs it computes, and how many elements of the
#: input lie between its begin and the next one's; OUTPUTS and STEP in winograd_tiles.h.
_TILE_OUTPUTS = {6: 4, 5: 2, 4: 2, 3: 2}
_TILE_STEPS = {6: 4, 5: 4, 4: 2, 3: 1}

#: Tiles that there are kernels for: height and width of what one reads.
_TILES = {(6, 6), (6, 4), (5, 5), (4, 4), (3, 3)}


@dataclass(frozen=True, slots=True, eq=False)
class OutputMoments:
    """Where a kernel writes mean and biased variance of its output's channels, for each block of rows by itself.

    Attributes:
        means: (blocks, O), float32.
        variances: (blocks, O), float32.
        written: (blocks,), int64, zeros.
        row_block: Rows of a block; the last block may have fewer.
    """

    means: torch.Tensor
    variances: torch.Tensor
    written: torch.Tensor
    row_block: int


def contiguous(
    name: str, tensor: torch.Tensor, dtypes: tuple[torch.dtype, ...], *shape: int, in_words: bool = False
) -> int:
    """Address of a contiguous tensor of exactly this shape.

    Args:
        name: What the tensor is called in the error.
        tensor: The tensor.
        dtypes: Those that the kernel takes.
        shape: The shape that the kernel works with.
        in_words: Whether the kernel reads four bytes at a time, two elements of bfloat16.
    """
    if tensor.shape != shape or not tensor.is_contiguous():
        raise _refusal(name, tensor, f"a contiguous tensor of shape {list(shape)}")
    return _address(name, tensor, dtypes, math.prod(shape), in_words)


def optional(name: str, tensor: torch.Tensor | None, *shape: int) -> int | None:
    """Address of a contiguous float32 tensor of exactly this shape, or None for None."""
    return None if tensor is None else contiguous(name, tensor, FLOAT32, *shape)


def image(
    name: str,
    tensor: torch.Tensor,
    dtypes: tuple[torch.dtype, ...],
    channels: int,
    rows: int,
    columns: int,
    *,
    is_written: bool = False,
    in_words: bool = False,
) -> int:
    """Address of (1, channels, rows, columns), channels-last, with at least so many rows and columns.

    Args:
        name: What the tensor is called in the error.
        tensor: The tensor.
        dtypes: Those that the kernel takes.
        channels: A multiple of :data:`LANES`.
        rows: At least one.
        columns: At least one.
        is_written: Whether the kernel writes it, so that a row must not overlap with the one before it.
        in_words: Whether the kernel reads four bytes at a time, two elements of bfloat16.
    """
    if tensor.ndim != 4:
        raise _refusal(name, tensor, "a shape of four axes")
    batch, found, height, width = tensor.shape
    _, channel_stride, row_stride, column_stride = tensor.stride()
    fits = batch == 1 and found == channels and height >= rows >= 1 and width >= columns >= 1
    is_apart = height == 1 or row_stride >= is_written * width * channels
    is_channels_last = channel_stride == 1 and column_stride == channels and is_apart
    if not fits or not is_channels_last or channels % LANES:
        expected = (
            f"[1, {channels}, at least {rows}, at least {columns}], channels-last, channels a multiple of {LANES}"
        )
        raise _refusal(name, tensor, expected)
    if in_words and row_stride * tensor.itemsize % _WORD_BYTES:
        raise _refusal(name, tensor, f"a multiple of {_WORD_BYTES} bytes from row to row")
    return _address(name, tensor, dtypes, (height - 1) * row_stride + width * channels, in_words)


def tiled_input(padded: torch.Tensor, tile_rows: int, tile_columns: int, tile: tuple[int, int]) -> int:
    """Address of a padded input, (1, C, rows, columns) in float32, that has all that so many tiles read."""
    rows, columns = _tiled_size(tile_rows, tile_columns, tile)
    return image("the padded input", padded, FLOAT32, padded.shape[1], rows, columns)


def epilogue(
    bias: torch.Tensor | None, residual: torch.Tensor | None, output: torch.Tensor
) -> tuple[int | None, int | None, int]:
    """Addresses of the bias (O,), the residual that is added, and the output, (1, O, rows, columns) both."""
    _, channels, rows, columns = output.shape
    size = channels, rows, columns
    return (
        optional("the bias", bias, channels),
        None if residual is None else image("the residual", residual, EITHER, *size),
        image("the output", output, EITHER, *size, is_written=True),
    )


def moments(places: OutputMoments | None, output: torch.Tensor) -> tuple[int | None, int | None, int | None, int]:
    """Addresses of means, variances and counts for an output (1, O, rows, columns), and rows of a block."""
    if places is None:
        return None, None, None, 0
    check_positive(row_block=places.row_block)
    blocks, channels = -(-output.shape[2] // places.row_block), output.shape[1]
    return (
        contiguous("the means", places.means, FLOAT32, blocks, channels),
        contiguous("the variances", places.variances, FLOAT32, blocks, channels),
        contiguous("the counts", places.written, (torch.int64,), blocks),
        places.row_block,
    )


def strided(name: str, tensor: torch.Tensor, dtypes: tuple[torch.dtype, ...]) -> int:
    """Address of a tensor that is read or written by its own shape and strides, whatever these are."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return _address(name, tensor, dtypes, 1 + sum((size - 1) * stride for size, stride in pairs))


def check_tiles(tile_rows: int, tile_columns: int, tile: tuple[int, int], output: torch.Tensor) -> None:
    """Check that so many tiles compute all of an output, (1, O, rows, columns)."""
    _check_tile(tile_rows, tile_columns, tile)
    rows, columns = tile_rows * _TILE_OUTPUTS[tile[0]], tile_columns * _TILE_OUTPUTS[tile[1]]
    if rows < output.shape[2] or columns < output.shape[3]:
        raise _refusal("the output", output, f"no more than the {rows} × {columns} that its tiles compute")


def check_k_block(depth: int, k_block: int) -> None:
    """Check that a sum of so many products, k_block one after another, has no more levels than C has memory for."""
    if k_block < 1 or depth > k_block << _MAX_PARTIAL_SUMS - 1:
        raise ValueError(f"cannot add {depth} products, {k_block} one after another")


def check_positive(**numbers: int) -> None:
    """Check that each is at least one."""
    if min(numbers.values()) < 1:
        raise ValueError(f"each must be at least 1: {numbers}")


def check_ints(*numbers: int) -> None:
    """Check that a C int holds each."""
    if max(numbers) > _MAX_INT:
        raise ValueError(f"BLAS takes sizes up to {_MAX_INT}, and not {max(numbers)}")


def _tiled_size(tile_rows: int, tile_columns: int, tile: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the padded input that so many tiles read together."""
    _check_tile(tile_rows, tile_columns, tile)
    height, width = tile
    return (tile_rows - 1) * _TILE_STEPS[height] + height, (tile_columns - 1) * _TILE_STEPS[width] + width


def _check_tile(tile_rows: int, tile_columns: int, tile: tuple[int, int]) -> None:
    if tile not in _TILES or tile_rows < 1 or tile_columns < 1:
        raise ValueError(f"no kernel for {tile_rows} × {tile_columns} tiles of {tile}; tiles are {sorted(_TILES)}")


def _address(
    name: str, tensor: torch.Tensor, dtypes: tuple[torch.dtype, ...], elements: int, in_words: bool = False
) -> int:
    """Address of a tensor whose storage holds so many elements from its first one on."""
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name}: {tensor.dtype}, but the kernel takes {' or '.join(map(str, dtypes))}")
    if not tensor.is_cpu or tensor.is_neg():
        raise _refusal(name, tensor, "elements in the memory of the CPU, not negated")
    itemsize = tensor.itemsize
    aligned_to = _WORD_BYTES if in_words else itemsize
    # A tensor keeps its sizes when its storage is resized, and torch's subclasses may have no storage.
    address, end = tensor.data_ptr(), (tensor.storage_offset() + elements) * itemsize
    if not address or address % aligned_to or tensor.untyped_storage().nbytes() < end:
        raise _refusal(name, tensor, f"memory of its own, {end} bytes, aligned to {aligned_to}")
    return address


def _refusal(name: str, tensor: torch.Tensor, expected: str) -> ValueError:
    layout = f"shape {list(tensor.shape)}, strides {list(tensor.stride())}, {tensor.dtype} on {tensor.device}"
    return ValueError(f"{name}: saw {type(tensor).__name__} of {layout}; expected {expected}")
