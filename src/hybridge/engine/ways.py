"""Ways to compute a convolution, as arithmetic: which one an op takes, and what it needs beside its input.

All give the same numbers up to rounding.  A transform spends additions on few numbers to save multiplications of
many: it pays where channels are many, on a device whose time goes into multiplying float32 numbers.

Nothing here touches a tensor; :mod:`.convolving` has the ways themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .ops import Convolve, Padding

#: From this many input channels, tiles of 4×2 are no further from float64 than a direct float32 convolution is,
#: below it only tiles of 2×2 are.  Measured, see benchmarks/LOG.md.
_CHANNELS_FOR_TALL_TILES = 128

#: Fewer channels than this leave a transform nothing to win.  Measured, see benchmarks/LOG.md.
TRANSFORM_FROM_CHANNELS = 64

#: torch adds up float32 numbers one after another: more of them lose more than a group norm's other arithmetic.
_POSITIONS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How a device keeps numbers and multiplies them.

    Attributes:
        stored_bytes: Of one number of an activation: 4 for float32, 2 for bfloat16 and float16.
        computed_bytes: Of one number within a strip.  More than ``stored_bytes`` where the device is slow at
            multiplying what is stored, so that strips are widened, computed and rounded once.
        strip_bytes: What the numbers of a strip should fit in, where strips are faster for being in cache, which is
            so on CPUs; None for devices where they are not, which then run whole as long as that fits.
        transform_from: Channels from which a convolution is transformed; None where that is no faster.
    """

    stored_bytes: int
    computed_bytes: int
    strip_bytes: int | None = None
    transform_from: int | None = None


@dataclass(frozen=True, slots=True)
class Way:
    """One way, with the size of what it makes at a time.

    ``direct`` multiplies every tap.  ``winograd`` makes tiles of rows × columns outputs from (rows + 2) × (columns
    + 2) inputs with as many products instead of nine for each output (Lavin and Gray, "Fast algorithms for
    convolutional neural networks", 2016).  ``four-phases`` runs a 3×3 convolution after nearest ×2 as four 2×2
    convolutions before it.  ``nine-products`` does that with nine products for every four outputs: along each side,
    of the two outputs a·x₀ + (b + c)·x₁ and (a + b)·x₁ + c·x₂ the product (a + b + c)·x₁ is common, and the rest is
    a·(x₀ - x₁) and c·(x₂ - x₁).
    """

    kind: Literal["direct", "winograd", "four-phases", "nine-products"]
    rows: int = 1
    columns: int = 1

    def __str__(self) -> str:
        return f"{self.kind} {self.rows}×{self.columns}" if self.kind == "winograd" else self.kind

    def window(self, op: Convolve, rows: int, width: int) -> tuple[int, int]:
        """(rows, columns) of padded source that ``rows`` target rows are made from; ``width`` is the source's."""
        if self.kind == "winograd":
            return self._covered(rows, self.rows) + 2, self._covered(width, self.columns) + 2
        if self.kind == "nine-products":
            return rows // 2 + 2, width + 2
        first, end = op.rows_read(0, rows)
        left, right = self.side_columns(op.padding)
        return end - first, width + left + right

    def saving(self, op: Convolve) -> float:
        """Its multiplications as a part of those that :meth:`.Program.flops` counts."""
        if self.kind == "winograd":
            return (self.rows + 2) * (self.columns + 2) / (self.rows * self.columns * op.weights.kernel**2)
        return 9 / 16 if self.kind == "nine-products" else 1.0

    def weights(self, op: Convolve) -> int:
        """Numbers of the prepared weights."""
        pairs = op.weights.in_channels * op.weights.out_channels
        each = {"direct": op.weights.kernel**2, "four-phases": 16, "nine-products": 9}
        return pairs * each.get(self.kind, (self.rows + 2) * (self.columns + 2))

    def side_columns(self, padding: Padding) -> tuple[int, int]:
        """Zero columns in the window, left and right; what padding is left is the convolution's."""
        if self.kind in ("winograd", "nine-products"):
            return 1, 1
        return (0, 0) if padding.left == padding.right else (padding.left, padding.right)

    def workspace(self, op: Convolve, rows: int, width: int) -> int:
        """Numbers that making ``rows`` target rows takes at a time, the result included, the window not."""
        into, out = op.weights.in_channels, op.weights.out_channels
        if self.kind == "winograd":
            return (
                sum(self.halves(op, rows, width))
                + self._covered(rows, self.rows) * self._covered(width, self.columns) * out
            )
        if self.kind == "nine-products":
            return sum(nine_products(rows // 2, width, into, out)) + 2 * rows * width * out
        if self.kind == "four-phases":
            return 4 * (rows // 2 + 1) * (width + 1) * out
        return rows * op.output_size(rows, width)[1] * out

    def halves(self, op: Convolve, rows: int, width: int) -> tuple[int, int]:
        """Numbers in the two halves that a transform moves between; see :class:`.convolving.Winograd`."""
        high, wide = tiles_of(rows, self.rows), tiles_of(width, self.columns)
        into, out = op.weights.in_channels, op.weights.out_channels
        tall, broad = self.rows + 2, self.columns + 2
        rowwise = tall * high * (wide * self.columns + 2) * into
        spectrum = tall * broad * high * wide
        columnwise = self.rows * broad * high * wide * out
        return max(rowwise, spectrum * out), max(spectrum * into, columnwise)

    @staticmethod
    def _covered(count: int, side: int) -> int:
        return tiles_of(count, side) * side


def tiles_of(count: int, side: int) -> int:
    """Tiles of ``side`` that cover ``count``."""
    return -(-count // side)


def nine_products(rows: int, width: int, into: int, out: int) -> tuple[int, ...]:
    """Numbers in the operands and products of ``nine-products``, for so many source rows.

    Operands: differences of columns, of rows, of both.  Products: of the source, and of each of the three.  Their
    sums lie where the first and the last operand lay.
    """
    columns, lines, both = rows * (width + 1), (rows + 1) * (width + 2), (rows + 1) * (width + 1)
    return (
        columns * max(into, out),
        lines * into,
        both * max(into, out),
        rows * (width + 2) * out,
        columns * 2 * out,
        lines * 2 * out,
        both * 4 * out,
    )


def way_of(op: Convolve, arithmetic: Arithmetic) -> Way:
    """The way that an op is computed."""
    weights, least = op.weights, arithmetic.transform_from
    transforms = least is not None and min(weights.in_channels, weights.out_channels) >= least
    if op.doubled:
        return Way("nine-products" if transforms else "four-phases", 2)
    if transforms and weights.kernel == 3 and op.stride == 1 and op.padding == Padding(1, 1, 1, 1):
        return Way("winograd", 4 if weights.in_channels >= _CHANNELS_FOR_TALL_TILES else 2, 2)
    return Way("direct")


def rows_measured_at_once(width: int) -> int:
    """Rows of a picture whose mean and variance are taken together."""
    return max(1, _POSITIONS_AT_ONCE // width)
