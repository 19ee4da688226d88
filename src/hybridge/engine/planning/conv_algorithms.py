"""Choose the algorithm of a convolution, and compute the memory that it needs in addition to its input.

All algorithms give equal results up to rounding.  A transform spends a few additions to save many multiplications:
it pays for layers with many channels, on a device that spends its time on float32 multiplications.

No code here uses a tensor; :mod:`..execution.convolution` implements the algorithms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..program.layers import Weights
from ..program.ops import Attend, Convolve, Padding
from .winograd import DOUBLED, HALVED, Transform, transform

#: From this many input channels, tiles of 4×2 are as close to float64 as a direct float32 convolution; below it,
#: only tiles of 2×2 are.  Measured, see benchmarks/LOG.md.
_CHANNELS_FOR_TALL_TILES = 128

#: Up to this many channels, tiles of 4×4 are faster still, and the error of a whole decoder with them stays well
#: within the plain forward's rounding.  Above it, their weights (36 numbers for 9) are larger than the rows read.
_CHANNELS_FOR_SQUARE_TILES = 256

#: Below this many channels, a transform saves nothing.  Measured, see benchmarks/LOG.md.
TRANSFORM_FROM_CHANNELS = 64

#: On a CPU, torch adds float32 numbers one after another: above this count, the sum loses more accuracy than the
#: rest of a group norm's arithmetic.
_POSITIONS_AT_ONCE = 4096

#: Rows that are added to a strip are widened in pieces of this many bytes, which stay in cache until then.
_WIDENED_BYTES = 2**20

_BFLOAT16_BYTES, _FLOAT32_BYTES = 2, 4

#: Of channels-last float32, torch adds the products of all taps and channels one after another; with 3×3 taps, sums
#: of this many channels have half of the rounding error of 96, and a third of that of 192.
_INPUTS_AT_ONCE = 32

#: The compiled matrix products work on multiples of this many channels, as real models have; PANEL in simd.h.
PANEL_CHANNELS = 32

#: The products of attention work on multiples of this many queries, PANEL, and of this many keys, twice
#: KEY_BLOCK_WORDS in softmax.h.
_PANEL_QUERIES, _KEY_BLOCK = 32, 256

#: All compiled loops process this many channels at a time; LANES in simd.h.
_CHANNELS_AT_A_TIME = 8

#: Layers with at most this many output channels, or at most one output for this many inputs, use dot products.
_FEW_OUTPUTS, _FEW_OF_CHANNELS = 4, 8

#: How many products are added one after another: in general, and where shorter sums reduce the rounding error.
#: Measured, see benchmarks/LOG.md.
K_BLOCK, _FINE_K_BLOCK = 128, 32


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """How a device stores numbers and multiplies them.

    Attributes:
        stored_bytes: Bytes of one number of an activation: 4 for float32, 2 for bfloat16 and float16.
        computed_bytes: Bytes of one number within a strip.  More than ``stored_bytes`` where the device multiplies
            the stored type slowly; strips are then widened, computed and rounded once.
        strip_bytes: Target size of a strip on a device where strips are faster because they stay in cache, as on
            CPUs; None for other devices, which run whole as long as that fits.
        transform_from: Number of channels from which a convolution is transformed; None where that is no faster.
        measured_positions: How many positions of a strip are measured together for mean and variance; None for a
            device that adds in a tree and in a wider type than its input, and so measures a whole strip at once.
        attended_positions: Most query positions in one strip of attention: the time of each grows with the
            picture, and short jobs wait for the end of a strip.  None for no bound.
        multiplies_float32: Whether compiled float32 products are available, for processors with AVX-512.
        multiplies_bfloat16: Whether the device multiplies bfloat16, added in float32, in half of float32's time.
        is_fine: Whether torch's own convolutions round so little that only small tiles and short sums match them.
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
    def k_block(self) -> int:
        """How many products are added one after another, before their sums are added."""
        return _FINE_K_BLOCK if self.is_fine else K_BLOCK

    @property
    def is_widened(self) -> bool:
        """Whether numbers are computed in a wider type than they are stored in."""
        return self.computed_bytes > self.stored_bytes

    def rounds(self, weights: Weights) -> bool:
        """Return whether the input of these weights is rounded to bfloat16 because the product is then faster."""
        return self.multiplies_bfloat16 and self.fills_panels(weights)

    def fills_panels(self, weights: Weights) -> bool:
        """Return whether compiled products exist and these channel counts fill their panels completely."""
        channels = weights.in_channels, weights.out_channels
        has_loops = self.multiplies_float32 or self.multiplies_bfloat16
        return has_loops and not any(count % PANEL_CHANNELS for count in channels)

    def takes_taps(self, weights: Weights) -> bool:
        """Return whether the convolution runs tap by tap in our own loops: a transform would be no better."""
        channels = weights.in_channels, weights.out_channels
        if weights.kernel == 1 or any(count % _CHANNELS_AT_A_TIME for count in channels):
            return False
        if self.multiplies_bfloat16:
            return weights.in_channels < _CHANNELS_FOR_TALL_TILES
        return self.fills_panels(weights) and min(channels) < (self.transform_from or 0)

    def attended_bytes(self, op: Attend) -> int:
        """Return the bytes of one number of the stored keys and values."""
        return _BFLOAT16_BYTES if op.heads == 1 and self.rounds(op.query) else self.computed_bytes

    def attention_bytes(self, op: Attend, positions: int) -> int:
        """Return the bytes of the keys and values of this many positions."""
        padded = -(-positions // _KEY_BLOCK) * _KEY_BLOCK
        return 2 * padded * op.query.out_channels * self.attended_bytes(op)

    def rows_widened(self, channels: int, width: int) -> int:
        """Return how many rows of a residual are widened together; 0 where no widening is needed."""
        return max(1, _WIDENED_BYTES // (channels * width * self.computed_bytes)) if self.is_widened else 0

    def rows_measured(self, rows: int, width: int) -> int:
        """Return how many of a strip's rows are measured together for mean and variance."""
        return rows if self.measured_positions is None else max(1, self.measured_positions // width)


def queries_padded(positions: int) -> int:
    """Return for how many queries attention needs memory: ``positions`` rounded up to whole panels."""
    return -(-positions // _PANEL_QUERIES) * _PANEL_QUERIES


@dataclass(frozen=True, slots=True)
class ConvAlgorithm:
    """An algorithm of a convolution, with the size of its tiles.

    ``direct`` multiplies every tap.  ``winograd`` computes tiles of rows × columns outputs from
    (rows + 2) × (columns + 2) inputs, with one product per input instead of nine per output (Lavin and Gray, "Fast
    algorithms for convolutional neural networks", 2016).  ``four-phases`` runs a 3×3 convolution after nearest ×2
    as four 2×2 convolutions before it.  ``nine-products`` does the same with nine products for every four outputs;
    see :data:`.winograd.DOUBLED`.  ``halved`` is for stride 2, with 25 products for four outputs; see
    :data:`.winograd.HALVED`.  ``gathered`` copies the inputs of each output side by side (im2col) and multiplies
    them: for layers with so few input channels that this copy is no larger than the output.  ``dots`` computes a
    dot product for each of few output channels.  ``taps`` also multiplies every tap, in our own loops, which round
    less than torch's.

    Attributes:
        kind: The name of the algorithm.
        rows: Rows of a tile of outputs.
        columns: Columns of a tile of outputs.
        in_bfloat16: Whether the transformed input, or for ``taps`` the window, is rounded to bfloat16 and
            multiplied in it, whatever the dtype of the other computation.
        inputs: For ``direct`` how many input channels are summed before their sum is added to that of others; 0
            for all.
    """

    kind: Literal["direct", "winograd", "four-phases", "nine-products", "halved", "gathered", "dots", "taps"]
    rows: int = 1
    columns: int = 1
    in_bfloat16: bool = False
    inputs: int = 0

    def __str__(self) -> str:
        name = f"{self.kind} {self.rows}×{self.columns}" if self.kind == "winograd" else self.kind
        return f"{name} in bfloat16" if self.in_bfloat16 else name

    @property
    def narrower(self) -> int:
        """How many numbers of the window take the memory of one: two where the window itself is in bfloat16."""
        return 2 if self.in_bfloat16 and self.kind == "taps" else 1

    @property
    def transforms(self) -> tuple[Transform, Transform] | None:
        """The transforms along rows and along columns; None for an algorithm without a transform."""
        if self.kind == "winograd":
            return transform(self.rows), transform(self.columns)
        one = {"nine-products": DOUBLED, "halved": HALVED}.get(self.kind)
        return None if one is None else (one, one)

    def tiles(self, op: Convolve, rows: int, width: int) -> tuple[int, int]:
        """Return how many tiles (down, across) cover ``rows`` target rows; ``width`` is the source's."""
        along_rows, along_columns = self._transforms()
        return along_rows.tiles(rows), along_columns.tiles(op.output_size(rows, width)[1])

    def window(self, op: Convolve, rows: int, width: int) -> tuple[int, int]:
        """Return (rows, columns) of padded source for ``rows`` target rows; ``width`` is the source's."""
        left, right = self.side_columns(op.padding)
        if self.transforms:
            high, wide = self.tiles(op, rows, width)
            return self.transforms[0].inputs(high), max(self.transforms[1].inputs(wide), left + width)
        first, end = op.rows_read(0, rows)
        return end - first, width + left + right

    def saving(self, op: Convolve) -> float:
        """Return its multiplications as a part of those that :meth:`.Program.flops` counts."""
        if not self.transforms:
            return 1.0
        rows, columns = self.transforms
        taps = 4 if op.doubled else op.weights.kernel**2
        return rows.reads * columns.reads / (rows.outputs * columns.outputs * taps)

    def weight_bytes(self, op: Convolve, computed_bytes: int) -> int:
        """Return the bytes of the prepared weights."""
        pairs = op.weights.in_channels * op.weights.out_channels // op.weights.groups
        if self.kind == "taps":
            whole = -(-op.weights.out_channels // PANEL_CHANNELS) * PANEL_CHANNELS
            return op.weights.in_channels * whole * op.weights.kernel**2 * computed_bytes // self.narrower
        if self.transforms:
            products = self.transforms[0].reads * self.transforms[1].reads
            return pairs * products * (_BFLOAT16_BYTES if self.in_bfloat16 else computed_bytes)
        return pairs * (16 if self.kind == "four-phases" else op.weights.kernel**2) * computed_bytes

    def side_columns(self, padding: Padding) -> tuple[int, int]:
        """Return the padding columns (left, right) in the window; the convolution itself adds any others."""
        has_zeros = padding.outside == "zeros" and padding.left == padding.right
        is_torchs = self.kind in ("direct", "four-phases") and has_zeros
        return (0, 0) if is_torchs else (padding.left, padding.right)

    def workspace(self, op: Convolve, rows: int, width: int) -> int:
        """Return the workspace for ``rows`` target rows, in numbers, without the window.

        This includes the result, except for ``taps``, which writes its result to the target.
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
        return rows * op.output_size(rows, width)[1] * out * (2 if self.inputs else 1)

    def halves(self, op: Convolve, high: int, wide: int) -> tuple[int, int]:
        """Return the sizes, in numbers, of the two halves of memory for tiles; see execution's ``Transformed``."""
        rows, columns = self._transforms()
        into, out = op.weights.in_channels, op.weights.out_channels
        rowwise = rows.reads * high * columns.inputs(wide) * into
        spectrum = rows.reads * columns.reads * high * wide
        columnwise = rows.outputs * columns.reads * high * wide * out
        if self.in_bfloat16:  # only compiled loops do this, in one step in each direction
            return spectrum * out, spectrum * into // 2
        return max(rowwise, spectrum * out), max(spectrum * into, columnwise)

    def _transforms(self) -> tuple[Transform, Transform]:
        if self.transforms is None:
            raise TypeError(f"{self} has no tiles")
        return self.transforms


def algorithm_of(op: Convolve, arithmetic: DeviceProfile) -> ConvAlgorithm:
    """Return the algorithm of an op."""
    weights, least = op.weights, arithmetic.transform_from
    if weights.groups > 1:
        return ConvAlgorithm("direct")
    transforms = least is not None and min(weights.in_channels, weights.out_channels) >= least
    if op.doubled:
        # The transform adds and subtracts neighbours, so rounding its input costs little; see benchmarks/LOG.md.
        takes_nine = transforms or arithmetic.fills_panels(weights)
        return ConvAlgorithm("nine-products" if takes_nine else "four-phases", 2, 2, arithmetic.rounds(weights))
    are_few = weights.out_channels <= max(_FEW_OUTPUTS, weights.in_channels // _FEW_OF_CHANNELS)
    if least is not None and not transforms and are_few and not weights.in_channels % _CHANNELS_AT_A_TIME:
        return ConvAlgorithm("dots")
    if arithmetic.takes_taps(weights):
        return ConvAlgorithm("taps", in_bfloat16=arithmetic.multiplies_bfloat16)
    if transforms and weights.kernel == 3 and op.stride == 1 and op.padding.sides == (1, 1, 1, 1):
        return _tiles_of(weights, arithmetic)
    if transforms and weights.kernel == 3 and op.stride == 2:
        return ConvAlgorithm("halved", 2, 2, arithmetic.rounds(weights))
    if least is not None and weights.kernel > 1 and weights.kernel**2 * weights.in_channels <= weights.out_channels:
        return ConvAlgorithm("gathered")
    is_long = weights.kernel > 1 and weights.in_channels > _INPUTS_AT_ONCE
    adds_in_parts = is_long and arithmetic.strip_bytes is not None and arithmetic.computed_bytes == _FLOAT32_BYTES
    return ConvAlgorithm("direct", inputs=_INPUTS_AT_ONCE if adds_in_parts else 0)


def _tiles_of(weights: Weights, arithmetic: DeviceProfile) -> ConvAlgorithm:
    """Return the tiles of a transformed 3×3 convolution; benchmarks/LOG.md has the rounding of each."""
    widest = max(weights.in_channels, weights.out_channels)
    if weights.in_channels < _CHANNELS_FOR_TALL_TILES or arithmetic.is_fine:
        return ConvAlgorithm("winograd", 2, 2)
    is_square = widest <= _CHANNELS_FOR_SQUARE_TILES
    if arithmetic.rounds(weights) and not is_square:
        return ConvAlgorithm("winograd", 2, 2, in_bfloat16=True)
    return ConvAlgorithm("winograd", 4, 4 if is_square else 2)
