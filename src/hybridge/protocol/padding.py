"""Drop the padding of text embeddings, and restore it as zeros.  Only bytes are used, no framework.

Embeddings have a row for each token, (B, L, …), and short prompts are padded to L rows.  The rows before and after
a prompt's own rows are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import BadAnswer
from .tensor import PROMPT_ITEM_BYTES, WireTensor

#: Bytes of the pieces in which zeros are searched.
_PIECE = 1 << 16
_ZEROS = bytes(_PIECE)


@dataclass(frozen=True, slots=True)
class Kept:
    """The rows of a tensor (B, L, …) that are sent.

    Attributes:
        rows: L.
        ranges: For each batch item the first row that is kept, and the end of the kept rows (exclusive).
    """

    rows: int
    ranges: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        """Number of rows that are sent."""
        return sum(end - begin for begin, end in self.ranges)

    @property
    def is_worthwhile(self) -> bool:
        """Whether any row is dropped and at least one is left; a tensor without rows cannot be sent."""
        return 0 < self.count < self.rows * len(self.ranges)


def kept_by_mask(mask: WireTensor) -> Kept | None:
    """Return the rows where a mask (B, L) of any dtype is not zero; None unless each item's rows are contiguous."""
    if len(mask.shape) != 2:
        return None
    batch, rows = mask.shape
    nbytes = PROMPT_ITEM_BYTES[mask.dtype]
    data = memoryview(mask.data).cast("B")
    ranges = []
    for item in range(batch):
        at = item * rows * nbytes
        live = [any(data[at + row * nbytes : at + (row + 1) * nbytes]) for row in range(rows)]
        count = sum(live)
        begin = live.index(True) if count else 0
        if not all(live[begin : begin + count]):
            return None
        ranges.append((begin, begin + count))
    return Kept(rows, tuple(ranges))


def kept_by_zeros(tensor: WireTensor) -> Kept | None:
    """Return all rows except those at the end with only zero bits; None for a tensor without a row axis."""
    if len(tensor.shape) < 2:
        return None
    batch, rows = tensor.shape[:2]
    row_bytes = tensor.nbytes // (batch * rows)
    data = memoryview(tensor.data).cast("B")
    ranges = []
    for item in range(batch):
        used = _used_bytes(data[item * rows * row_bytes : (item + 1) * rows * row_bytes])
        ranges.append((0, -(-used // row_bytes)))
    return Kept(rows, tuple(ranges))


def _used_bytes(data: memoryview) -> int:
    """Return the number of bytes before the zeros at the end."""
    end = len(data)
    while end >= _PIECE and data[end - _PIECE : end] == _ZEROS:
        end -= _PIECE
    begin = max(0, end - _PIECE)
    while True:
        used = len(bytes(data[begin:end]).rstrip(b"\0"))
        if used or not begin:
            return begin + used
        begin, end = max(0, begin - _PIECE), begin


def drop_padding(tensor: WireTensor, kept: Kept) -> WireTensor:
    """Return the kept rows one after another: (B, L, …) → (kept, …), and (B, L) → (kept,)."""
    batch, rows, *rest = tensor.shape
    if (batch, rows) != (len(kept.ranges), kept.rows):
        raise ValueError(f"{tensor.shape} has other rows than {kept}")
    row_bytes = tensor.nbytes // (batch * rows)
    data = memoryview(tensor.data).cast("B")
    pieces = [
        data[(item * rows + begin) * row_bytes : (item * rows + end) * row_bytes]
        for item, (begin, end) in enumerate(kept.ranges)
    ]
    return WireTensor(tensor.dtype, (kept.count, *rest), b"".join(pieces))


def refill(tensor: WireTensor, kept: Kept, *, most_bytes: int) -> WireTensor:
    """Invert :func:`drop_padding`, with zeros for the dropped rows.

    Raises:
        BadAnswer: when ``kept`` does not fit the tensor, or the result would be larger than ``most_bytes``.
    """
    count, *rest = tensor.shape
    is_right = kept.ranges and all(0 <= begin <= end <= kept.rows for begin, end in kept.ranges)
    if not is_right or kept.count != count or 2 + len(rest) > 5:
        raise BadAnswer(
            "the rows that were left out do not fit the tensor", saw=f"{kept.count} rows, {list(tensor.shape)}"
        )
    row_bytes = tensor.nbytes // count
    nbytes = kept.rows * len(kept.ranges) * row_bytes
    if nbytes > most_bytes:
        raise BadAnswer(
            "the answer is larger than what was asked for can be",
            saw=f"{nbytes} bytes, padding included",
            expected=f"at most {most_bytes} bytes",
        )
    data = memoryview(tensor.data).cast("B")
    filled = bytearray(nbytes)
    taken = 0
    for item, (begin, end) in enumerate(kept.ranges):
        into = (item * kept.rows + begin) * row_bytes
        nbytes = (end - begin) * row_bytes
        filled[into : into + nbytes] = data[taken : taken + nbytes]
        taken += nbytes
    return WireTensor(tensor.dtype, (len(kept.ranges), kept.rows, *rest), filled)


def describe(kept: Kept) -> list[object]:
    """Return the JSON form ``[rows, [[begin, end], …]]``."""
    return [kept.rows, [list(pair) for pair in kept.ranges]]


def understand(value: Any) -> Kept:
    """Invert :func:`describe`.

    Raises:
        BadAnswer: for any other form.
    """
    try:
        rows, ranges = value
        read = Kept(rows, tuple((begin, end) for begin, end in ranges))
        if all(type(number) is int for pair in read.ranges for number in pair) and type(rows) is int:
            return read
    except (TypeError, ValueError):
        pass
    raise BadAnswer("the answer says of rows what cannot be read", saw=repr(value)[:80])
