"""Ways to compute a convolution, as arithmetic: which one an op takes, and what it needs beside its input.

All give the same numbers up to rounding.  A transform spends additions on few numbers to save multiplications of
many: it pays where channels are many, on a device whose time goes into multiplying float32 numbers.

Nothing here touches a tensor; :mod:`..execution.convolution` has the ways themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..program.ops import Attend, Convolve, Padding, Weights
from .winograd import DOUBLED, HALVED, Transform, transform

#: From this many input channels, tiles of 4×2 are no further from float64 than a direct float32 convolution is,
#: below it only tiles of 2×2 are.  Measured, see benchmarks/LOG.md.
_CHANNELS_FOR_TALL_TILES = 128

#: Up to this many channels, tiles of 4×4 are faster still, and a whole decoder with them stays well within what the
#: plain forward rounds.  Above, their weights, 36 numbers for 9, are more than is read with them.
_CHANNELS_FOR_SQUARE_TILES = 256

#: Fewer channels than this leave a transform nothing to win.  Measured, see benchmarks/LOG.md.
TRANSFORM_FROM_CHANNELS = 64

#: A CPU's torch adds up float32 numbers one after another: more of them lose more than a group norm's other
#: arithmetic.
_POSITIONS_AT_ONCE = 4096

#: Rows that are added to a strip are widened so many bytes at a time, which stay in cache until they are added.
_WIDENED_BYTES = 2**20

_BFLOAT16_BYTES = 2

#: Products of our own are made for multiples of so many channels, as real models have them; PANEL in simd.h.
CHANNELS_TOGETHER = 32

#: So are those of attention: for so many queries, PANEL, and so many keys, twice KEY_BLOCK_WORDS in softmax.h.
_QUERIES_TOGETHER, _VALUES_TOGETHER = 32, 256

#: All loops take so many channels at a time; LANES in simd.h.
_CHANNELS_AT_A_TIME = 8

#: Up to so many outputs are made as dot products, and up to this part of the channels that are read.
_FEW_OUTPUTS, _FEW_OF_CHANNELS = 4, 8

#: Products that are added one after another where nothing is gained by fewer, and where it is.  Measured, see
#: benchmarks/LOG.md.
ADDED_AT_ONCE, _FINELY_ADDED_AT_ONCE = 128, 32


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
        measured_positions: Of a strip, those whose mean and variance are taken together; None for a device that
            adds up in a tree, and wider numbers than it is given, so that it takes a whole strip as it is.
        attended_positions: Those that attend to all others in one strip, at most: each takes the longer the larger
            the picture is, and short jobs wait for a strip's end.  None for no bound.
        multiplies_float32: Whether there are loops for products of float32, for processors with AVX-512.
        multiplies_bfloat16: Whether it multiplies bfloat16, added up in float32, in half of float32's time.
        is_fine: Whether torch's own convolutions round so little that only small tiles and short sums round as
            little.
    """

    stored_bytes: int
    computed_bytes: int
    strip_bytes: int | None = None
    transform_from: int | None = None
    measured_positions: int | None = _POSITIONS_AT_ONCE
    attended_positions: int | None = None
    multiplies_float32: bool = False
    multiplies_bfloat16: bool = False
    is_fine: bool = False

    @property
    def added_at_once(self) -> int:
        """Products that are added one after another, before their sums are."""
        return _FINELY_ADDED_AT_ONCE if self.is_fine else ADDED_AT_ONCE

    @property
    def is_widened(self) -> bool:
        """Whether numbers are computed wider than they are kept."""
        return self.computed_bytes > self.stored_bytes

    def rounds(self, weights: Weights) -> bool:
        """Whether what these weights are multiplied with may be rounded to bfloat16, and is the faster for it."""
        return self.multiplies_bfloat16 and self.fills_panels(weights)

    def fills_panels(self, weights: Weights) -> bool:
        """Whether there are loops for products of so many channels, and none of what they do is wasted."""
        channels = weights.in_channels, weights.out_channels
        has_loops = self.multiplies_float32 or self.multiplies_bfloat16
        return has_loops and not any(count % CHANNELS_TOGETHER for count in channels)

    def takes_taps(self, weights: Weights) -> bool:
        """Whether a convolution is multiplied as it is, in bfloat16 if that is; a transform would be no better."""
        channels = weights.in_channels, weights.out_channels
        if weights.kernel == 1 or any(count % _CHANNELS_AT_A_TIME for count in channels):
            return False
        if self.multiplies_bfloat16:
            return weights.in_channels < _CHANNELS_FOR_TALL_TILES
        return self.fills_panels(weights) and min(channels) < (self.transform_from or 0)

    def attended_bytes(self, op: Attend) -> int:
        """Of one number of the keys and values that it keeps."""
        return _BFLOAT16_BYTES if op.heads == 1 and self.rounds(op.query) else self.computed_bytes

    def attention_bytes(self, op: Attend, positions: int) -> int:
        """Of the keys and values of so many positions."""
        padded = -(-positions // _VALUES_TOGETHER) * _VALUES_TOGETHER
        return 2 * padded * op.query.out_channels * self.attended_bytes(op)

    def rows_widened(self, channels: int, width: int) -> int:
        """Of what is added to a strip, those rows that are widened together; 0 where nothing has to be."""
        return max(1, _WIDENED_BYTES // (channels * width * self.computed_bytes)) if self.is_widened else 0

    def rows_measured(self, rows: int, width: int) -> int:
        """Of a strip of so many rows, those whose mean and variance are taken together."""
        return rows if self.measured_positions is None else max(1, self.measured_positions // width)


def queries_padded(positions: int) -> int:
    """For how many queries attention to so many needs memory."""
    return -(-positions // _QUERIES_TOGETHER) * _QUERIES_TOGETHER


@dataclass(frozen=True, slots=True)
class Way:
    """One way, with the size of what it makes at a time.

    ``direct`` multiplies every tap.  ``winograd`` makes tiles of rows × columns outputs from (rows + 2) × (columns
    + 2) inputs with as many products instead of nine for each output (Lavin and Gray, "Fast algorithms for
    convolutional neural networks", 2016).  ``four-phases`` runs a 3×3 convolution after nearest ×2 as four 2×2
    convolutions before it.  ``nine-products`` does that with nine products for every four outputs; see
    :data:`.winograd.DOUBLED`.  ``halved`` is for stride 2, with 25 products for four outputs; see
    :data:`.winograd.HALVED`.  ``gathered`` writes what an output reads side by side, and multiplies that: for so
    few channels that it is no more than what is made.  ``dots`` makes a dot product of every output, of which there
    are few.  ``taps`` multiplies every tap as well, in loops of our own, which round less than torch's.

    Attributes:
        kind: What is multiplied.
        rows: Of a tile of outputs.
        columns: Of the same.
        in_bfloat16: Whether a transform, or for ``taps`` the window, is rounded to bfloat16, and so multiplied,
            whatever else is computed in.
    """

    kind: Literal["direct", "winograd", "four-phases", "nine-products", "halved", "gathered", "dots", "taps"]
    rows: int = 1
    columns: int = 1
    in_bfloat16: bool = False

    def __str__(self) -> str:
        name = f"{self.kind} {self.rows}×{self.columns}" if self.kind == "winograd" else self.kind
        return f"{name} in bfloat16" if self.in_bfloat16 else name

    @property
    def narrower(self) -> int:
        """Numbers of the window that take the place of one: two where it is rounded to bfloat16 as it is."""
        return 2 if self.in_bfloat16 and self.kind == "taps" else 1

    @property
    def transforms(self) -> tuple[Transform, Transform] | None:
        """Along rows and along columns; None for a way that takes numbers as they are."""
        if self.kind == "winograd":
            return transform(self.rows), transform(self.columns)
        one = {"nine-products": DOUBLED, "halved": HALVED}.get(self.kind)
        return None if one is None else (one, one)

    def tiles(self, op: Convolve, rows: int, width: int) -> tuple[int, int]:
        """Of a transform, those that cover ``rows`` target rows, down and across; ``width`` is the source's."""
        along_rows, along_columns = self._transforms()
        return along_rows.tiles(rows), along_columns.tiles(op.output_size(rows, width)[1])

    def window(self, op: Convolve, rows: int, width: int) -> tuple[int, int]:
        """(rows, columns) of padded source that ``rows`` target rows are made from; ``width`` is the source's."""
        left, right = self.side_columns(op.padding)
        if self.transforms:
            high, wide = self.tiles(op, rows, width)
            return self.transforms[0].inputs(high), max(self.transforms[1].inputs(wide), left + width)
        first, end = op.rows_read(0, rows)
        return end - first, width + left + right

    def saving(self, op: Convolve) -> float:
        """Its multiplications as a part of those that :meth:`.Program.flops` counts."""
        if not self.transforms:
            return 1.0
        rows, columns = self.transforms
        taps = 4 if op.doubled else op.weights.kernel**2
        return rows.reads * columns.reads / (rows.outputs * columns.outputs * taps)

    def weight_bytes(self, op: Convolve, computed_bytes: int) -> int:
        """Of the prepared weights."""
        pairs = op.weights.in_channels * op.weights.out_channels
        if self.kind == "taps":
            whole = -(-op.weights.out_channels // CHANNELS_TOGETHER) * CHANNELS_TOGETHER
            return op.weights.in_channels * whole * op.weights.kernel**2 * computed_bytes // self.narrower
        if self.transforms:
            products = self.transforms[0].reads * self.transforms[1].reads
            return pairs * products * (_BFLOAT16_BYTES if self.in_bfloat16 else computed_bytes)
        return pairs * (16 if self.kind == "four-phases" else op.weights.kernel**2) * computed_bytes

    def side_columns(self, padding: Padding) -> tuple[int, int]:
        """Zero columns in the window, left and right; what padding is left is the convolution's."""
        is_torchs = self.kind in ("direct", "four-phases") and padding.left == padding.right
        return (0, 0) if is_torchs else (padding.left, padding.right)

    def workspace(self, op: Convolve, rows: int, width: int) -> int:
        """Numbers that making ``rows`` target rows takes at a time, the window not.

        The result is among them, but that of ``taps``, which is written where it belongs.
        """
        out = op.weights.out_channels
        if self.kind == "taps":
            return 0
        if self.transforms:
            high, wide = self.tiles(op, rows, width)
            made = high * self.transforms[0].outputs * wide * self.transforms[1].outputs * out
            return sum(self.halves(op, high, wide)) + made
        if self.kind == "four-phases":
            return 4 * (rows // 2 + 1) * (width + 1) * out
        if self.kind == "gathered":
            return rows * op.output_size(rows, width)[1] * (op.weights.kernel**2 * op.weights.in_channels + out)
        return rows * op.output_size(rows, width)[1] * out

    def halves(self, op: Convolve, high: int, wide: int) -> tuple[int, int]:
        """Numbers to compute with in two halves that tiles move between; see ``Transformed`` in execution/."""
        rows, columns = self._transforms()
        into, out = op.weights.in_channels, op.weights.out_channels
        rowwise = rows.reads * high * columns.inputs(wide) * into
        spectrum = rows.reads * columns.reads * high * wide
        columnwise = rows.outputs * columns.reads * high * wide * out
        if self.in_bfloat16:  # which compiled loops alone do, in one step each way
            return spectrum * out, spectrum * into // 2
        return max(rowwise, spectrum * out), max(spectrum * into, columnwise)

    def _transforms(self) -> tuple[Transform, Transform]:
        if self.transforms is None:
            raise TypeError(f"{self} has no tiles")
        return self.transforms


def way_of(op: Convolve, arithmetic: Arithmetic) -> Way:
    """The way that an op is computed."""
    weights, least = op.weights, arithmetic.transform_from
    transforms = least is not None and min(weights.in_channels, weights.out_channels) >= least
    if op.doubled:
        # Its sums and differences are of neighbours, so that rounding them costs little; see benchmarks/LOG.md.
        takes_nine = transforms or arithmetic.fills_panels(weights)
        return Way("nine-products" if takes_nine else "four-phases", 2, 2, arithmetic.rounds(weights))
    are_few = weights.out_channels <= max(_FEW_OUTPUTS, weights.in_channels // _FEW_OF_CHANNELS)
    if least is not None and not transforms and are_few and not weights.in_channels % _CHANNELS_AT_A_TIME:
        return Way("dots")
    if arithmetic.takes_taps(weights):
        return Way("taps", in_bfloat16=arithmetic.multiplies_bfloat16)
    if transforms and weights.kernel == 3 and op.stride == 1 and op.padding == Padding(1, 1, 1, 1):
        return _tiles_of(weights, arithmetic)
    if transforms and weights.kernel == 3 and op.stride == 2:
        return Way("halved", 2, 2, arithmetic.rounds(weights))
    if least is not None and weights.kernel > 1 and weights.kernel**2 * weights.in_channels <= weights.out_channels:
        return Way("gathered")
    return Way("direct")


def _tiles_of(weights: Weights, arithmetic: Arithmetic) -> Way:
    """Of a 3×3 convolution that is transformed; what rounds how much is measured in benchmarks/LOG.md."""
    widest = max(weights.in_channels, weights.out_channels)
    if weights.in_channels < _CHANNELS_FOR_TALL_TILES or arithmetic.is_fine:
        return Way("winograd", 2, 2)
    is_square = widest <= _CHANNELS_FOR_SQUARE_TILES
    if arithmetic.rounds(weights) and not is_square:
        return Way("winograd", 2, 2, in_bfloat16=True)
    return Way("winograd", 4, 4 if is_square else 2)
