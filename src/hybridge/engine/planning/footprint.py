"""Compute the memory of a strip run: which values exist whole, where they lie, and how large strips are.

A target reuses a buffer that it may overwrite, where there is one:

* the residual's buffer, when no later op reads the residual: the rows that are added are the rows that are replaced
* the source's buffer, when no later op reads the source: the window keeps the rows that the next strip needs again,
  already normalised, so the source's own rows may be overwritten

Therefore no more than two activations exist at a time, whatever the number of layers.  *Streamed* values never
exist whole, and *parked* buffers are offloaded from the memory that is counted: to a file, or on a GPU to the
host's memory.  Items of a batch are independent, so they run one after another, and a batch takes more memory than
one item only for its input and its output.

All sizes are in bytes, on top of the weights, and include input and output.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from ..program.ops import Attend, Convolve, Op
from .conv_algorithms import ConvAlgorithm
from .shape import STATISTICS_ITEMSIZE, Shape

#: Statistics are merged in float64, in an expression with this many temporaries.
_MERGING_ITEMSIZE, _MERGING_COPIES = 8, 5

#: Every piece of a run's memory begins at a multiple of this many bytes.
ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory for one activation at a time; several values may use it one after another.

    Attributes:
        channels: Number of channels of the activation.
        height: Number of rows.
        width: Number of columns.
        nbytes: Size in bytes.
        first_op: Index of the op that writes it first; it is allocated then.
        last_op: Index of the op after which it is freed.
        is_parked: Whether it is offloaded from the memory that the plan bounds; see :mod:`..memory.offload`.
        offset: Offset of its first byte in the run's memory; buffers that exist at the same time do not overlap.
        frames: Number of frames.
        keeps: The value of which it holds the slabs that later steps of a section read again; None for a buffer of
            what an op makes.
    """

    channels: int
    height: int
    width: int
    nbytes: int
    first_op: int
    last_op: int
    is_parked: bool = False
    offset: int = 0
    frames: int = 1
    keeps: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """The plan of one op.

    Attributes:
        buffer: Index of the buffer that its target is written to; None for the last op, which writes the output,
            and for a target that is streamed.
            rows: Number of target rows computed at a time.
            strips: Number of strips in the op's own turn.
            scratch_bytes: Bytes taken while it runs and freed after it: window, strip and statistics, and those of
                the streams that it reads.
            taken_bytes: All bytes that exist while it runs.
            flops: Floating-point operations for one item, counting every recomputation; see :meth:`.Program.flops`.
            way: The algorithm of a convolution; None for attention.
            is_streamed: Whether the target never exists whole.
    """

    buffer: int | None
    rows: int
    strips: int
    scratch_bytes: int
    taken_bytes: int
    flops: int
    way: ConvAlgorithm | None
    is_streamed: bool


class Footprint:
    """A shape with a choice of streamed values.

    Attributes:
        shape: The program at one size on one device.
        streamed: The values that never exist whole.
        parked: Indices of the buffers that are offloaded from the memory that is counted.
        last_reads: For every value the index of the op that reads it last, directly or through streams.
        buffers: The buffers of the values that exist whole.
        flops: Floating-point operations; those of streamed values count every time that they are computed.
        work: The part of ``flops`` that is left after the algorithms' savings, as a measure of time.
    """

    def __init__(
        self, shape: Shape, streamed: frozenset[int] = frozenset(), parked: frozenset[int] = frozenset()
    ) -> None:
        self.shape, self.streamed, self.parked = shape, streamed, parked
        self.last_reads = self._last_reads()
        self._homes, self.buffers = self._place()
        self._times = self._count()
        self.flops = sum(flops * times for flops, times in zip(shape.flops, self._times, strict=True))
        self.work = sum(work * times for work, times in zip(shape.work, self._times, strict=True))
        self.taken = cache(self._taken)

    def steps(self, strip_bytes: int) -> tuple[Step, ...]:
        """Return a step for every op: strips of ``strip_bytes``, or of one row where that is not enough."""
        return tuple(
            Step(
                self._homes[index],
                self.shape.rows(index, strip_bytes),
                self._strips(index, strip_bytes),
                self._scratch(index, strip_bytes),
                self.taken(strip_bytes)[index],
                self.shape.flops[index] * self._times[index],
                self.shape.ways[index],
                op.target in self.streamed,
            )
            for index, op in enumerate(self.shape.program.ops)
        )

    def laid_out(self, steps: Sequence[Step]) -> tuple[Buffer, ...]:
        """Return the buffers with their offsets, assigned largest first, each at the lowest free offset.

        The ops' scratch memory lies below all buffers.
        """
        return laid_out(self.buffers, steps)

    def peak(self, strip_bytes: int) -> int:
        """Return the most bytes that exist at a time."""
        return max(self.taken(strip_bytes))

    def leaner(self, strip_bytes: int, *, only_doubled: bool) -> Footprint | None:
        """Stream one more of the values that exist at the peak; return None if that does not lower the peak.

        Args:
            strip_bytes: As for :meth:`steps`.
            only_doubled: Whether only the outputs of ×2 may be streamed.
        """
        taken = self.taken(strip_bytes)
        peak = max(taken)
        at_peak = taken.index(peak)
        best: tuple[float, Footprint] | None = None
        for value in self._may_stream(only_doubled=only_doubled):
            other = Footprint(self.shape, self.streamed | {value})
            others = other.taken(strip_bytes)
            saved = taken[at_peak] - others[at_peak]
            # If several ops are at the peak, they are lowered one after another.
            if saved <= 0 or max(others) > peak:
                continue
            more = other.work - self.work  # none where the value is computed in one strip all the same
            worth = saved / more if more > 0 else math.inf
            if best is None or worth > best[0]:
                best = worth, other
        return None if best is None else best[1]

    def with_more_parked(self, strip_bytes: int) -> Footprint | None:
        """Offload one more of the buffers that exist at the peak; return None if that does not lower the peak."""
        taken = self.taken(strip_bytes)
        peak = max(taken)
        at_peak = taken.index(peak)
        best: tuple[float, Footprint] | None = None
        for buffer in self._may_park(at_peak):
            other = Footprint(self.shape, self.streamed, self.parked | {buffer})
            others = other.taken(strip_bytes)
            saved = taken[at_peak] - others[at_peak]
            if saved <= 0 or max(others) > peak:
                continue
            worth = saved / self._moved(buffer)
            if best is None or worth > best[0]:
                best = worth, other
        return None if best is None else best[1]

    @property
    def parked_bytes(self) -> int:
        """Most bytes of offloaded buffers that exist at a time."""
        parked = [buffer for buffer in self.buffers if buffer.is_parked]
        together = (
            sum(other.nbytes for other in parked if other.first_op <= buffer.first_op <= other.last_op)
            for buffer in parked
        )
        return max(together, default=0)

    def _last_reads(self) -> tuple[int, ...]:
        last = list(self.shape.program.last_reads())
        for value in reversed(range(len(last))):
            for reader in self.shape.program.readers(value):
                if reader + 1 in self.streamed:
                    last[value] = max(last[value], last[reader + 1])
        return tuple(last)

    def _count(self) -> list[int]:
        """Return for every op how often its target is computed."""
        program = self.shape.program
        times = [1] * len(program.ops)
        for index in reversed(range(len(times))):
            value = index + 1
            if value in self.streamed:
                measured = 1 if program.norm_of(value) else 0
                times[index] = measured + sum(times[reader] for reader in program.readers(value))
        return times

    def _may_stream(self, *, only_doubled: bool) -> Iterator[int]:
        program = self.shape.program
        for value, op in enumerate(program.ops, start=1):
            readers = program.readers(value)
            if (
                value not in self.streamed
                and isinstance(op, Convolve)
                and (op.doubled or not only_doubled)
                and op.residual is None
                and readers
                and all(isinstance(program.ops[reader], Convolve) for reader in readers)
            ):
                yield value

    def _place(self) -> tuple[list[int | None], tuple[Buffer, ...]]:
        """Return the index of the buffer of every op's target, and all buffers."""
        shape = self.shape
        home_of: dict[int, int] = {}
        spans: list[list[int]] = []  # value, first op, last op
        for index, op in enumerate(shape.program.ops[:-1]):
            if op.target in self.streamed:
                continue
            taken = next((home_of[v] for v in self._may_overwrite(op, index) if v in home_of), None)
            if taken is None:
                taken = len(spans)
                spans.append([op.target, index, index])
            home_of[op.target] = taken
            spans[taken][2] = self.last_reads[op.target]
        buffers = tuple(
            Buffer(
                shape.program.channels[value],
                *shape.sizes[value],
                shape.nbytes[value],
                first,
                last,
                index in self.parked,
            )
            for index, (value, first, last) in enumerate(spans)
        )
        return [home_of.get(op.target) for op in shape.program.ops], buffers

    def _may_overwrite(self, op: Op, index: int) -> Iterator[int]:
        """Yield the values whose memory the target may reuse; the program's input, the caller's, has no buffer."""
        sizes, channels = self.shape.sizes, self.shape.program.channels
        candidates = [op.source] if not isinstance(op, Convolve) or op.shortcut else [op.residual, op.source]
        for value in candidates:
            if (
                value is not None
                and self.last_reads[value] == index
                and sizes[value] == sizes[op.target]
                and channels[value] == channels[op.target]
            ):
                yield value

    def _taken(self, strip_bytes: int) -> list[int]:
        """Return for every op the bytes that exist while it runs."""
        return [
            self.shape.ends_bytes
            + sum(b.nbytes for b in self.buffers if b.first_op <= index <= b.last_op and not b.is_parked)
            + self._scratch(index, strip_bytes)
            + self._statistics(index, strip_bytes)
            for index in range(len(self.shape.program.ops))
        ]

    def _strips(self, index: int, strip_bytes: int) -> int:
        """Return how many strips an op makes in its own turn: none for a stream that needs no statistics."""
        op, program = self.shape.program.ops[index], self.shape.program
        if op.target in self.streamed and program.norm_of(op.target) is None:
            return 0
        return -(-self.shape.sizes[op.target][0] // self.shape.rows(index, strip_bytes))

    def _scratch(self, index: int, strip_bytes: int) -> int:
        op = self.shape.program.ops[index]
        streams = [value for value in (op.source, op.residual) if value in self.streamed]
        made = self.shape.scratch(index, strip_bytes, op.target in self.streamed)
        own = max(made, self._merging(op, strip_bytes))
        own += self._fetched(index, strip_bytes)
        return own + sum(self._scratch(value - 1, strip_bytes) for value in streams if value is not None)

    def _fetched(self, index: int, strip_bytes: int) -> int:
        """Return the bytes of the rows of offloaded buffers that are in memory while a strip is made."""
        op, rows = self.shape.program.ops[index], self.shape.rows(index, strip_bytes)
        first, end = (0, rows) if isinstance(op, Attend) else op.rows_read(0, rows)
        read = {op.source: end - first, op.target: rows}
        if op.residual is not None:
            read[op.residual] = read.get(op.residual, 0) + rows
        return sum(
            min(count, self.shape.sizes[value][0]) * self.shape.nbytes[value] // self.shape.sizes[value][0]
            for value, count in read.items()
            if self._is_parked(value)
        )

    def _is_parked(self, value: int) -> bool:
        return value > 0 and self._homes[value - 1] in self.parked

    def _may_park(self, running: int) -> Iterator[int]:
        """Yield the buffers that exist while an op runs, except attention's inputs and outputs, which are small."""
        program = self.shape.program
        attended = {
            self._homes[value - 1]
            for op in program.ops
            if isinstance(op, Attend)
            for value in (op.source, op.target)
            if value > 0
        }
        for index, buffer in enumerate(self.buffers):
            if not buffer.is_parked and buffer.first_op <= running <= buffer.last_op and index not in attended:
                yield index

    def _moved(self, buffer: int) -> int:
        """Return the bytes that are written to and read from a buffer."""
        program = self.shape.program
        values = [index + 1 for index, home in enumerate(self._homes) if home == buffer]
        times = sum(1 + sum(self._times[reader] for reader in program.readers(value)) for value in values)
        return times * self.buffers[buffer].nbytes

    def _merging(self, op: Op, strip_bytes: int) -> int:
        """Return the bytes needed to merge the statistics of the strips of an op's normalised source."""
        if op.norm is None or not op.norm.is_measured:
            return 0
        numbers = self._measurements(op.source - 1, strip_bytes) * self.shape.program.channels[op.source]
        return _MERGING_COPIES * _MERGING_ITEMSIZE * numbers

    def _measurements(self, index: int, strip_bytes: int) -> int:
        """Return how many pieces of an op's target are measured separately."""
        rows, width = self.shape.rows(index, strip_bytes), self.shape.sizes[index + 1][1]
        return self._strips(index, strip_bytes) * -(-rows // self.shape.arithmetic.rows_measured(rows, width))

    def _statistics(self, running: int, strip_bytes: int) -> int:
        """Return the bytes of mean and variance, per channel and piece, of the values still to be normalised."""
        program = self.shape.program
        itemsize = max(self.shape.arithmetic.computed_bytes, STATISTICS_ITEMSIZE)
        return sum(
            2 * self._measurements(index, strip_bytes) * program.channels[op.target] * itemsize
            for index, op in enumerate(program.ops[: running + 1])
            if program.norm_of(op.target) and self.last_reads[op.target] >= running
        )


def laid_out(buffers: Sequence[Buffer], steps: Sequence[Step]) -> tuple[Buffer, ...]:
    """Return the buffers with their offsets; see :meth:`Footprint.laid_out`."""
    placed: dict[int, Buffer] = {}
    for index, buffer in sorted(enumerate(buffers), key=lambda item: -item[1].nbytes):
        beside = [b for b in placed.values() if b.first_op <= buffer.last_op and buffer.first_op <= b.last_op]
        offset = _aligned(max(step.scratch_bytes for step in steps[buffer.first_op : buffer.last_op + 1]))
        for other in sorted(beside, key=lambda b: b.offset):
            if offset + buffer.nbytes <= other.offset:
                break
            offset = max(offset, _aligned(other.offset + other.nbytes))
        if not buffer.is_parked:
            placed[index] = replace(buffer, offset=offset)
    return tuple(placed.get(index, buffer) for index, buffer in enumerate(buffers))


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
