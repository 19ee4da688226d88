"""Whether weights hold the same numbers as before.

torch counts what is written to a tensor, but not what is written through ``parameter.data``, NumPy or another view
of the memory.  Whoever keeps something that was computed from weights has to look at the weights themselves.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

#: Bytes of a row that is summed up in one product: as much as stays in a core's first cache, factors included.
_ROW_BYTES = 4096

_WORD_BYTES = 8

_ROW_WORDS = _ROW_BYTES // _WORD_BYTES

#: Rows that are mixed at a time: what that takes stays in a core's second cache, and on a GPU the launches are few.
_ROWS_MIXED_ON_A_CPU = 64
_ROWS_MIXED_ELSEWHERE = 4096

#: How far the upper bits of a word are moved to be mixed into the lower ones: an odd number, so that no sign of a
#: number of 16, 32 or 64 bits comes to lie on another one.
_MOVED_BITS = 29
_LOWER_BITS = (1 << (64 - _MOVED_BITS)) - 1

#: Where in the sequence of odd numbers the factors begin, so that none is used for two purposes: those of the words
#: in a row, of the words after the last row, of the bytes after the last word, and of the rows.
_OF_WORDS, _OF_REST, _OF_BYTES, _OF_ROWS = 0, _ROW_WORDS, 2 * _ROW_WORDS, 3 * _ROW_WORDS


def checksums(tensors: Iterable[torch.Tensor]) -> list[int]:
    """A checksum of 64 bits for each tensor, over all of its bytes.

    Of every word of 8 bytes the upper bits are mixed into the lower ones.  The word is then multiplied by an odd
    number that depends on its place, and the products are added modulo 2⁶⁴.  A change of one word always changes
    the sum.  Changes of several words, swaps and sign changes among them, change it but for about one in 2³².

    Reading takes 0.2 ms a megabyte on one core.

    Args:
        tensors: Of any dtype, on any devices.
    """
    sums: dict[torch.device, list[torch.Tensor]] = {}
    order: list[tuple[torch.device, int]] = []
    factors: dict[torch.device, torch.Tensor] = {}
    for tensor in tensors:
        device, needed = tensor.device, _OF_ROWS + tensor.nbytes // _ROW_BYTES
        if device not in factors or len(factors[device]) < needed:
            factors[device] = _odd(needed, device)  # of which longer ones begin with the same
        known = sums.setdefault(device, [])
        order.append((device, len(known)))
        known.append(_checksum(tensor, factors[device]))
    read = {device: torch.stack(parts).tolist() for device, parts in sums.items()}  # one wait for each device
    return [read[device][index] for device, index in order]


def _checksum(tensor: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    data = _bytes_of(tensor)
    count = data.numel() // _WORD_BYTES
    words = data[: count * _WORD_BYTES].view(torch.int64)
    whole = count // _ROW_WORDS * _ROW_WORDS
    parts = []
    if whole:
        rows = _sums_of_rows(words[:whole].view(-1, _ROW_WORDS), factors[_OF_WORDS:_OF_REST])
        parts.append(_product(rows, factors[_OF_ROWS:]))
    if whole < count:
        parts.append(_product(_mixed(words[whole:]), factors[_OF_REST:]))
    if count * _WORD_BYTES < data.numel():
        parts.append(_product(data[count * _WORD_BYTES :].long(), factors[_OF_BYTES:]))
    return sum(parts[1:], start=parts[0]) if parts else torch.zeros((), dtype=torch.int64, device=data.device)


def _sums_of_rows(words: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """(rows, words in a row) → (rows,)"""
    is_cpu = words.device.type == "cpu"
    most = min(len(words), _ROWS_MIXED_ON_A_CPU if is_cpu else _ROWS_MIXED_ELSEWHERE)
    kept = words.new_empty(most, words.shape[1])
    sums = []
    for first in range(0, len(words), most):
        rows = words[first : first + most]
        mixed = _mixed(rows, kept[: len(rows)])
        sums.append(mixed @ factors if is_cpu else mixed.mul_(factors).sum(1))  # others have no product of integers
    return torch.cat(sums)


def _mixed(words: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
    """Without this, the highest bits of two words, the signs of two weights, would cancel each other."""
    moved = torch.bitwise_right_shift(words, _MOVED_BITS, out=into)
    return moved.bitwise_and_(_LOWER_BITS).bitwise_xor_(words)


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """(nbytes,) in uint8, in the order in which they lie in memory where that has no gaps."""
    tensor = tensor.detach()
    if not tensor.is_contiguous():
        last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        tensor = tensor.permute(0, 2, 3, 1) if last else tensor.contiguous()
    if tensor.storage_offset() * tensor.itemsize % _WORD_BYTES:
        tensor = tensor.clone()  # words can be read where they begin at multiples of their size
    return tensor.reshape(-1).view(torch.uint8)


def _product(numbers: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Σ number · factor, modulo 2⁶⁴, with as many of the factors as there are numbers."""
    factors = factors[: numbers.numel()]
    return numbers @ factors if numbers.device.type == "cpu" else (numbers * factors).sum()


def _odd(count: int, device: torch.device) -> torch.Tensor:
    """Odd numbers without a pattern: multiples of 2⁶⁴ divided by the golden ratio, as hashing has them."""
    steps = torch.arange(1, count + 1, dtype=torch.int64, device=device).mul_(-7046029254386353131)
    return steps.bitwise_xor_(steps >> 29).bitwise_or_(1)  # in place: no plan counts this memory
