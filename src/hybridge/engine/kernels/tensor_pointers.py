"""Addresses of tensors for the loops in C, given out once it is sure that a loop stays within the tensor's memory.

C is told an address and some sizes, and believes them: a wrong dtype, device, layout or size would have it read and
write other memory.  So no other file takes an address for C, and every address is asked for with the dtypes and the
sizes that the loop works with.  A check takes about a microsecond.

Raises:
    TypeError: every function, for a dtype that the loop does not take.
    ValueError: every function, for another device, layout or size, and for memory that is gone.
"""

from __future__ import annotations

import math

import torch

#: Channels that the loops take at a time; LANES in numbers.h.
LANES = 8

FLOAT32 = (torch.float32,)
EITHER = (torch.float32, torch.bfloat16)

#: Sums of so many powers of two that wait for others; MOST_SUMS in products.c.
_MOST_SUMS = 24

#: Bytes that some loops read at a time; uint32_t in C.
_WORD_BYTES = 4

#: The largest number that a C int holds.
_LARGEST_INT = 2**31 - 1

#: Of a tile that reads so many numbers along one side: how many it makes, and how far it is to the next tile.
_MAKES = {6: 4, 5: 2, 4: 2, 3: 2}
_STEPS = {6: 4, 5: 4, 4: 2, 3: 1}

#: Tiles that there are loops for: rows and columns that one reads.
_TILES = {(6, 6), (6, 4), (5, 5), (4, 4), (3, 3)}


def of_numbers(
    name: str, tensor: torch.Tensor, dtypes: tuple[torch.dtype, ...], *shape: int, in_words: bool = False
) -> int:
    """Of a contiguous tensor of exactly this shape.

    Args:
        name: What it is called in the error.
        tensor: The tensor.
        dtypes: Those that the loop takes.
        shape: The shape that the loop works with.
        in_words: Whether the loop reads four bytes at a time, two numbers of bfloat16.
    """
    if tensor.shape != shape or not tensor.is_contiguous():
        raise _refusal(name, tensor, f"a contiguous tensor of shape {list(shape)}")
    return _address(name, tensor, dtypes, math.prod(shape), in_words)


def of_optional(name: str, tensor: torch.Tensor | None, *shape: int) -> int | None:
    """The same in float32, or None for None."""
    return None if tensor is None else of_numbers(name, tensor, FLOAT32, *shape)


def of_picture(
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
    """Of (1, channels, rows, columns), channels-last, with at least so many rows and columns.

    Args:
        name: As for :func:`of_numbers`.
        tensor: The same.
        dtypes: The same.
        channels: A multiple of :data:`LANES`.
        rows: At least one.
        columns: The same.
        is_written: Whether the loop writes, so that a row must not lie within the one before it.
        in_words: As for :func:`of_numbers`.
    """
    if tensor.ndim != 4:
        raise _refusal(name, tensor, "a shape of four axes")
    batch, found, high, wide = tensor.shape
    _, to_channel, to_row, to_column = tensor.stride()
    fits = batch == 1 and found == channels and high >= rows >= 1 and wide >= columns >= 1
    is_laid_out = (
        to_channel == 1 and to_column == channels and (high == 1 or to_row >= is_written * wide * channels)
    )
    if not fits or not is_laid_out or channels % LANES:
        expected = (
            f"[1, {channels}, at least {rows}, at least {columns}], channels-last, channels a multiple of {LANES}"
        )
        raise _refusal(name, tensor, expected)
    if in_words and to_row * tensor.itemsize % _WORD_BYTES:
        raise _refusal(name, tensor, f"a multiple of {_WORD_BYTES} bytes from row to row")
    return _address(name, tensor, dtypes, (high - 1) * to_row + wide * channels, in_words)


def of_window(window: torch.Tensor, high: int, wide: int, tile: tuple[int, int]) -> int:
    """Of (1, C, rows, columns), float32, that has what so many tiles read."""
    rows, columns = read_by_tiles(high, wide, tile)
    return of_picture("the window", window, FLOAT32, window.shape[1], rows, columns)


def of_ends(
    bias: torch.Tensor | None, added: torch.Tensor | None, picture: torch.Tensor
) -> tuple[int | None, int | None, int]:
    """Of the bias (O,), of what is added, and of the picture (1, O, rows, columns) that is made."""
    _, channels, rows, columns = picture.shape
    alike = channels, rows, columns
    return (
        of_optional("the bias", bias, channels),
        None if added is None else of_picture("what is added", added, EITHER, *alike),
        of_picture("the picture", picture, EITHER, *alike, is_written=True),
    )


def of_strided(name: str, tensor: torch.Tensor, dtypes: tuple[torch.dtype, ...]) -> int:
    """Of a tensor that is read or written by its own shape and strides, whatever these are."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return _address(name, tensor, dtypes, 1 + sum((size - 1) * stride for size, stride in pairs))


def read_by_tiles(high: int, wide: int, tile: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the window that so many tiles read together."""
    _check_tile(high, wide, tile)
    tall, broad = tile
    return (high - 1) * _STEPS[tall] + tall, (wide - 1) * _STEPS[broad] + broad


def check_made(high: int, wide: int, tile: tuple[int, int], picture: torch.Tensor) -> None:
    """That so many tiles make all of a picture."""
    _check_tile(high, wide, tile)
    made = high * _MAKES[tile[0]], wide * _MAKES[tile[1]]
    if made[0] < picture.shape[2] or made[1] < picture.shape[3]:
        raise _refusal("the picture", picture, f"no more than the {made[0]} × {made[1]} that its tiles make")


def check_sums(depth: int, added_at_once: int) -> None:
    """That there is room for the sums of so many products, of which so many are added one after another."""
    if added_at_once < 1 or depth > added_at_once << _MOST_SUMS - 1:
        raise ValueError(f"cannot add {depth} products, {added_at_once} at once")


def check_positive(**numbers: int) -> None:
    """That these are at least one."""
    if min(numbers.values()) < 1:
        raise ValueError(f"each must be at least 1: {numbers}")


def check_ints(*numbers: int) -> None:
    """That a C int holds these."""
    if max(numbers) > _LARGEST_INT:
        raise ValueError(f"BLAS takes sizes up to {_LARGEST_INT}, and not {max(numbers)}")


def _check_tile(high: int, wide: int, tile: tuple[int, int]) -> None:
    if tile not in _TILES or high < 1 or wide < 1:
        raise ValueError(f"no loops for {high} × {wide} tiles of {tile}; tiles may be {sorted(_TILES)}")


def _address(
    name: str, tensor: torch.Tensor, dtypes: tuple[torch.dtype, ...], numbers: int, in_words: bool = False
) -> int:
    """Of a tensor whose storage holds so many numbers from its first on."""
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name}: {tensor.dtype}, but the loop takes {' or '.join(map(str, dtypes))}")
    if not tensor.is_cpu or tensor.is_neg():
        raise _refusal(name, tensor, "numbers in the memory of the CPU, as they are")
    itemsize = tensor.itemsize
    aligned_to = _WORD_BYTES if in_words else itemsize
    # A tensor's sizes stay when somebody takes its storage away, and those of torch's subclasses may have none.
    address, end = tensor.data_ptr(), (tensor.storage_offset() + numbers) * itemsize
    if not address or address % aligned_to or tensor.untyped_storage().nbytes() < end:
        raise _refusal(name, tensor, f"memory of its own, {end} bytes, aligned to {aligned_to}")
    return address


def _refusal(name: str, tensor: torch.Tensor, expected: str) -> ValueError:
    layout = f"shape {list(tensor.shape)}, strides {list(tensor.stride())}, {tensor.dtype} on {tensor.device}"
    return ValueError(f"{name}: saw {type(tensor).__name__} of {layout}; expected {expected}")
