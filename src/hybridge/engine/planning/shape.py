"""A program at one size on one device: the values derived from that alone, and the memory of its plain forward.

All sizes are in bytes, on top of the weights, and include input and output.
"""

from __future__ import annotations

from functools import cache

from ..program.layers import usual_taps
from ..program.ops import OF_ROUNDED, Attend, Convolve, Op, Rearrange, rows_together
from ..program.program import Program
from .conv_algorithms import ConvAlgorithm, DeviceProfile, algorithm_of, queries_padded

#: Statistics are computed in float32, from a copy of the strip where the strip's numbers are narrower.
STATISTICS_ITEMSIZE = 4

#: Frames that the classes of video VAEs pad a single frame to, in addition to keeping it.
_FRAMES_PADDED = 3


class Shape:
    """The values that do not depend on the planner's choices.

    Attributes:
        program: The program to run.
        batch: Number of items.
        height: Height of the input.
        width: Width of the input.
        arithmetic: The widths in which numbers are stored and computed.
        sizes: (height, width) of every value.
        nbytes: Bytes of every value of one item.
        ends_bytes: Bytes of input and output of the whole batch.
        ways: The algorithm of every op; None for attention.
        flops: Floating-point operations of every op, computed once.
        work: The part of ``flops`` that is left after the algorithm's savings.
    """

    def __init__(self, program: Program, batch: int, height: int, width: int, arithmetic: DeviceProfile) -> None:
        self.program, self.batch, self.height, self.width = program, batch, height, width
        self.arithmetic = arithmetic
        self.sizes = program.sizes(height, width)
        stored = arithmetic.stored_bytes
        self.nbytes = [c * h * w * stored for c, (h, w) in zip(program.channels, self.sizes, strict=True)]
        self.flops = program.flops(height, width)
        self.ends_bytes = batch * (self.nbytes[0] + self.nbytes[-1])
        self.ways = [algorithm_of(op, arithmetic) if isinstance(op, Convolve) else None for op in program.ops]
        self.work = [
            flops * (way.saving(op) if way and isinstance(op, Convolve) else 1)
            for op, way, flops in zip(program.ops, self.ways, self.flops, strict=True)
        ]
        # Called again for every value that is tried as a stream.
        self.rows = cache(self._rows)
        self.scratch = cache(self._scratch)

    def whole_peak(self) -> int:
        """Return the peak of the plain forward: all values that it still refers to, and an op's temporaries.

        diffusers runs norm, activation, convolution, sum and the division of the sum one after another, each into
        new memory, and all items of the batch at once.
        """
        peak = kept = 0
        last_reads = self.program.last_reads()
        for index, op in enumerate(self.program.ops):
            held = self.program.held[index]
            named = {value for value in range(index + 1) if last_reads[value] >= index} | held | {0}
            gone_after = last_reads[op.source] == index and op.source not in held
            temporaries = self.plain_temporaries(op, gone_after=gone_after)
            peak = max(peak, sum(self.nbytes[value] for value in named) + kept + temporaries)
            if _was_over_frames(op) and _is_cached(op):
                kept += self.nbytes[op.source]
        first = self.program.ops[0]
        entered = self.nbytes[0] if isinstance(first, Convolve) and first.entering else 0
        return self.batch * (peak + entered)

    def tiled_peak(self, tile_height: int, tile_width: int) -> int:
        """Return the peak of the module's own tiling: all tiles' outputs, the joined output, one tile's forward."""
        tile = Shape(self.program, self.batch, tile_height, tile_width, self.arithmetic)
        return self.ends_bytes + 2 * self.batch * self.nbytes[-1] + tile.whole_peak()

    def _rows(self, index: int, strip_bytes: int) -> int:
        """Return how many target rows an op computes at a time: as many as fit in ``strip_bytes``, at least one."""
        op, way = self.program.ops[index], self.ways[index]
        if isinstance(op, Convolve) and way and strip_bytes == self.arithmetic.strip_bytes:
            # Every strip reads all weights: a strip smaller than the weights would read more weights than rows.
            strip_bytes = max(strip_bytes, way.weight_bytes(op, self.arithmetic.computed_bytes))
        step = rows_together(op) if way is None else way.rows
        one, two = (self._strip(op, way, step * n) for n in (1, 2))
        affordable = 1 + max(0, strip_bytes - one) // max(1, two - one)
        if isinstance(op, Attend) and self.arithmetic.attended_positions is not None:
            affordable = min(affordable, max(1, self.arithmetic.attended_positions // self.sizes[op.source][1]))
        return min(self.sizes[op.target][0], step * affordable)

    def _scratch(self, index: int, strip_bytes: int, is_streamed: bool) -> int:
        """Return the bytes that an op takes while it runs, without the streams that it reads."""
        return self.scratch_of(index, self.rows(index, strip_bytes), is_streamed=is_streamed)

    def scratch_of(self, index: int, rows: int, *, is_streamed: bool) -> int:
        """Return the bytes that an op takes while it computes so many target rows at a time."""
        op, way = self.program.ops[index], self.ways[index]
        strip, computed = self._strip(op, way, rows), self.arithmetic.computed_bytes
        if isinstance(op, Rearrange):
            return strip
        if isinstance(op, Attend):  # keys and values of all positions
            height, width = self.sizes[op.source]
            return strip + self.arithmetic.attention_bytes(op, height * width)
        positions = rows * self.sizes[op.target][1]
        if way and way.kind == "taps":
            is_alike = op.leaving in OF_ROUNDED or not self.arithmetic.is_widened
            is_written = is_alike and not is_streamed and index < len(self.ways) - 1
            strip += 0 if is_written else positions * op.weights.out_channels * computed
        carried = positions * op.weights.out_channels * computed if op.shortcut else 0
        if op.residual is not None:
            channels, width = self.program.channels[op.residual], self.sizes[op.residual][1]
            carried += min(rows, self.arithmetic.rows_widened(channels, width)) * width * channels * computed
        is_copied = computed < STATISTICS_ITEMSIZE and self.arithmetic.measured_positions is not None
        measured = is_copied and self.program.norm_of(op.target)
        return strip + max(carried, positions * op.weights.out_channels * STATISTICS_ITEMSIZE if measured else 0)

    def _strip(self, op: Op, way: ConvAlgorithm | None, rows: int) -> int:
        """Return the bytes of the window, of the workspace for ``rows`` target rows, and of these rows."""
        width = self.sizes[op.source][1]
        if isinstance(op, Attend):  # normalised rows, later the output of ``out``; queries and their results
            inner = op.query.out_channels
            widest = max(self.program.channels[op.source], inner)
            numbers = queries_padded(rows * width) * 2 * (widest + inner)
        elif isinstance(op, Rearrange):  # the sum, and what is picked for it
            numbers = 2 * rows * self.sizes[op.target][1] * self.program.channels[op.target]
        elif way is None:
            raise TypeError(f"{op.name} has no way")
        else:
            high, wide = way.window(op, rows, width)
            numbers = high * wide * op.weights.in_channels // way.narrower + way.workspace(op, rows, width)
        return numbers * self.arithmetic.computed_bytes

    def plain_temporaries(self, op: Op, *, gone_after: bool) -> int:
        """Return the bytes that the class's layers take for an op, beside its source; see :meth:`whole_peak`."""
        source, target = self.nbytes[op.source], self.nbytes[op.target]
        if isinstance(op, Rearrange):
            return 2 * target
        if isinstance(op, Attend):
            inner = source * op.query.out_channels // self.program.channels[op.source]
            return source + 4 * inner
        # A source that only this op refers to is freed once it has been normalised.
        gone = source if gone_after else 0
        if op.doubled:
            return 4 * source + target
        normalising = 0 if op.norm is None else max(2 * source - gone, source - gone + target)
        convolving = max(normalising, target)
        if _was_over_frames(op):  # its input, kept and with zeros in place of earlier frames
            convolving = max(convolving, _FRAMES_PADDED * source + max(source, target))
        if op.residual is None:
            return convolving
        # The convolution's result, the shortcut's result and the sum, which ResnetBlock2D then divides by one.
        adding = (2 + (op.shortcut is not None) + (op.norm is not None)) * target - gone
        return max(convolving, adding)


def _was_over_frames(op: Op) -> bool:
    """Return whether an op of a folded program is, in the module, a convolution over several frames."""
    return isinstance(op, Convolve) and op.weights.taps is not None and op.weights.taps != usual_taps(1)


def _is_cached(op: Op) -> bool:
    """Return whether the class keeps an input for the next frame: those do that put zeros before the first."""
    return isinstance(op, Convolve) and op.padding.outside == "zeros"
