"""Compute the memory of a film's run: sections of ops, the buffers of their values, and the size of strips.

A value that a section passes on exists whole, all frames of it.
Within a section there are two buffers for a value: what one step makes, from the op that makes it to the last op
that reads it in that step, and what later steps read again, as long as the section runs.
Sections follow one another and steps repeat, so that the lifetimes of buffers are ranges of ops, as in
:mod:`.footprint`.

A target takes over the memory of its residual where every step makes the same slabs of both, and no later op reads
the residual.
Of a source that no later op reads it takes over the memory as well: frames are read before they are written, and of
the rows above a strip, which are read again, copies are kept.

All sizes are in bytes, on top of the weights, and include input and output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from ..program.ops import Attend, Convolve, Op, Rearrange, rows_added, rows_together
from .courses import Course, Section, is_stored
from .film_shape import FilmShape
from .footprint import Buffer, Step, laid_out
from .shape import STATISTICS_ITEMSIZE

#: Bytes of a number while statistics are merged, and of such numbers how many there are for each piece and channel.
_MERGING_ITEMSIZE, _MERGING_COPIES = 8, 6

#: Pieces of statistics that are kept before they are merged.
_PIECES_KEPT = 64

#: Numbers of a strip that attends along time, for each of its queries.
_PIXEL_COPIES = 5

#: Rows are normalised in pieces of at most this many bytes, of which two exist; see execution's PositionNorm.
_PIECES_BYTES = 2 * 2**20


class FilmFootprint:
    """A shape with a choice of sections.

    Attributes:
        shape: The program at one size on one device.
        sections: The sections, in order; every op is in one.
        strip_bytes: The size of strips.
        parked: Indices of the buffers that are offloaded from the memory that is counted.
        frames_leave: Whether finished frames leave: in steps along frames at once, otherwise after the run, until
            when they are in a file.
        buffers: The buffers of the values.
        steps: One step for every op; see :class:`.footprint.Step`.
    """

    def __init__(
        self,
        shape: FilmShape,
        sections: tuple[Section, ...],
        strip_bytes: int,
        parked: frozenset[int] = frozenset(),
        *,
        frames_leave: bool = False,
    ) -> None:
        self.shape, self.sections, self.strip_bytes = shape, sections, strip_bytes
        self.frames_leave = frames_leave
        self._courses = [Course(shape.program, section, shape.extents) for section in sections]
        self._last_reads = shape.program.last_reads()
        self._homes: dict[int, int] = {}
        self.buffers: list[Buffer] = []
        for section, course in zip(sections, self._courses, strict=True):
            self._place(section, course)
        if frames_leave and not sections[-1].is_by_frames:
            output = len(shape.program.ops)
            parked |= {len(self.buffers)}
            self._homes[output] = len(self.buffers)
            self._add(output, sections[-1], None, sections[-1].first_op, output)
        self.parked = parked
        self.buffers = [replace(buffer, is_parked=index in parked) for index, buffer in enumerate(self.buffers)]
        self.steps = self._plan_steps(strip_bytes)

    @property
    def peak_bytes(self) -> int:
        """Most bytes that exist at a time."""
        return max(step.taken_bytes for step in self.steps)

    @property
    def first_frame(self) -> float:
        """The part of the operations that are made before the first frame leaves."""
        done, (course, section) = 0.0, (self._courses[-1], self.sections[-1])
        output, flops = len(self.shape.program.ops), self.shape.flops
        if not section.is_by_frames:
            return 1.0
        done += sum(flops[: section.first_op])
        for made in course.made:
            for op in section.ops:
                first, end = made[op + 1]
                done += flops[op] * (end - first) / self.shape.extents[op + 1][0]
            if made[output][1]:
                break
        return done / sum(flops)

    @property
    def parked_bytes(self) -> int:
        """Most bytes of offloaded buffers that exist at a time."""
        return max(
            sum(b.nbytes for b in self.buffers if b.is_parked and b.first_op <= index <= b.last_op)
            for index in range(len(self.steps))
        )

    def with_more_parked(self) -> FilmFootprint | None:
        """Offload the largest buffer that exists at the peak; None if there is none, or the peak is not lowered."""
        taken = [step.taken_bytes for step in self.steps]
        at_peak = taken.index(max(taken))
        ops = self.shape.program.ops
        needing = (op for op in ops if isinstance(op, Attend) and op.sees != "pixel before")
        attended = {value for op in needing for value in (op.source, op.target)}
        small = {self._homes[value] for value in attended if value in self._homes}
        choices = [
            index
            for index, buffer in enumerate(self.buffers)
            if buffer.first_op <= at_peak <= buffer.last_op and not buffer.is_parked and index not in small
        ]
        if not choices:
            return None
        largest = max(choices, key=lambda index: self.buffers[index].nbytes)
        parked = self.parked | {largest}
        made = FilmFootprint(self.shape, self.sections, self.strip_bytes, parked, frames_leave=self.frames_leave)
        return made if made.steps[at_peak].taken_bytes < taken[at_peak] else None

    @property
    def work(self) -> float:
        """A measure of time: multiplications that are left after the algorithms' savings."""
        ops = zip(self.shape.program.ops, self.shape.flops, self.steps, strict=True)
        return sum(
            flops * (step.way.saving(op) if step.way is not None and isinstance(op, Convolve) else 1)
            for op, flops, step in ops
        )

    def laid_out(self) -> tuple[Buffer, ...]:
        """Return the buffers with their offsets."""
        return laid_out(self.buffers, self.steps)

    def _place(self, section: Section, course: Course) -> None:
        program = self.shape.program
        for index in section.ops:
            op = program.ops[index]
            value = op.target
            if value == len(program.ops):
                continue  # the output, which the caller gets
            stored = is_stored(program, section, value)
            last = self._last_step_of(value) if stored else max(program.readers(value), default=index)
            taken = self._taken_over(op, index, section, course, stored=stored)
            if taken is None and stored and self._may_overwrite(op, index, section):
                taken = op.source
                self._keep_rows(op, section)
            if taken is not None:
                home = self._homes[taken]
                self.buffers[home] = replace(self.buffers[home], last_op=last)
            else:
                home = len(self.buffers)
                slabs = None if stored else course.fresh(value)
                self._add(value, section, slabs, section.first_op if stored else index, last)
            self._homes[value] = home
            if not stored and course.past(value):
                self._add(value, section, course.past(value), section.first_op, section.end_op - 1, keeps=value)

    def _add(
        self, value: int, section: Section, slabs: int | None, first: int, last: int, keeps: int | None = None
    ) -> None:
        """Add a buffer of so many slabs of a value, of all of them for None."""
        channels, (frames, height, width) = self.shape.program.channels[value], self.shape.extents[value]
        if slabs is not None:
            frames, height = (slabs, height) if section.axis == "frames" else (frames, slabs)
        nbytes = frames * height * width * channels * self.shape.arithmetic.stored_bytes
        buffer = Buffer(channels, height, width, nbytes, first, last, frames=frames, keeps=keeps)
        self.buffers.append(buffer)

    def _taken_over(self, op: Op, index: int, section: Section, course: Course, *, stored: bool) -> int | None:
        """Return the value whose memory the target takes over: one that is read where it is written."""
        value = op.residual
        if isinstance(op, Rearrange):
            value = op.source if op.by.stays and op.source != op.residual else None
        if value is None or value not in self._homes or (isinstance(op, Convolve) and op.shortcut):
            return None
        if self._last_reads[value] != index or self.shape.extents[value] != self.shape.extents[op.target]:
            return None
        if self.shape.program.channels[value] != self.shape.program.channels[op.target]:
            return None
        is_read_again = isinstance(op, Convolve) and value == op.source  # for the frames and the rows that follow
        if value - 1 in section.ops:
            return value if not stored and not is_read_again and course.is_in_step(value, op.target) else None
        if isinstance(op, Convolve) and is_read_again and op.weights.kernel > 1:
            return None
        return value if stored and section.slabs is None else None

    def _may_overwrite(self, op: Op, index: int, section: Section) -> bool:
        """Return whether the target may lie where the source does."""
        if not isinstance(op, Convolve) or op.source not in self._homes or op.source - 1 in section.ops:
            return False
        time, shape = op.in_time, self.shape
        in_turn = time is None or (time.stride, time.spread, time.first, time.ahead, time.skipped) == (
            1,
            1,
            "seen",
            0,
            0,
        )
        is_by_rows = section.slabs is None or (section.axis == "rows" and index == section.end_op - 1)
        is_alike = shape.extents[op.source] == shape.extents[op.target]
        channels = {shape.program.channels[value] for value in (op.source, op.target)}
        is_last = self._last_reads[op.source] == index and op.residual != op.source
        return is_last and is_alike and len(channels) == 1 and in_turn and is_by_rows and op.padding.top <= 1

    def _keep_rows(self, op: Op, section: Section) -> None:
        """Add the buffer of the rows above a strip and above the next one."""
        if isinstance(op, Convolve) and op.padding.top:
            by_rows = replace(section, axis="rows")
            self._add(op.source, by_rows, 2, section.first_op, section.end_op - 1, keeps=op.source)

    def _last_step_of(self, value: int) -> int:
        """Return the last op during which a stored value is read: in steps, until the section ends."""
        last = self._last_reads[value]
        section = next(section for section in self.sections if last in section.ops)
        return last if section.slabs is None else section.end_op - 1

    def _plan_steps(self, strip_bytes: int) -> tuple[Step, ...]:
        steps = []
        for section, course in zip(self.sections, self._courses, strict=True):
            for index in section.ops:
                op = self.shape.program.ops[index]
                rows = self._rows(index, strip_bytes)
                if section.axis == "rows":
                    rows = min(rows, course.fresh(op.target))
                rows -= rows % rows_together(op) if rows > rows_together(op) else 0
                scratch = self._scratch(index, rows)
                living = [b for b in self.buffers if b.first_op <= index <= b.last_op and not b.is_parked]
                beside = sum(b.nbytes for b in living) + self._fetched(op, rows) + self._statistics(index, rows)
                steps.append(
                    Step(
                        self._homes.get(op.target),
                        rows,
                        self._strips(op, section, course, rows),
                        scratch,
                        self._ends_bytes(course) + beside + scratch,
                        self.shape.flops[index],
                        self.shape.picture.ways[index],
                        is_streamed=op.target not in self._homes and op.target != len(self.shape.program.ops),
                    )
                )
        return tuple(steps)

    def _ends_bytes(self, course: Course) -> int:
        """Return the bytes of input and output that are in memory while a section runs."""
        if not self.frames_leave:
            return self.shape.ends_bytes
        output, nbytes = len(self.shape.program.ops), self.shape.nbytes
        is_last = course is self._courses[-1] and self.sections[-1].is_by_frames
        return nbytes[0] + (course.fresh(output) * nbytes[-1] // self.shape.extents[-1][0] if is_last else 0)

    def _rows(self, index: int, strip_bytes: int) -> int:
        """Return how many target rows an op computes at a time: as many as fit in ``strip_bytes``, at least one."""
        op = self.shape.program.ops[index]
        if not (isinstance(op, Attend) and op.sees == "pixel before"):
            return self.shape.picture.rows(index, strip_bytes)
        height = self.shape.extents[op.source][1]
        return min(height, max(1, strip_bytes // self._along_time(op, 1)))

    def _along_time(self, op: Attend, rows: int) -> int:
        """Return the bytes of a strip that attends along time: tokens, queries, keys, values and results."""
        frames, _, width = self.shape.extents[op.source]
        numbers = op.out.out_channels + _PIXEL_COPIES * op.query.out_channels
        return frames * rows * width * numbers * self.shape.arithmetic.computed_bytes

    def _scratch(self, index: int, rows: int) -> int:
        op, picture = self.shape.program.ops[index], self.shape.picture
        if isinstance(op, Attend) and op.sees == "pixel before":
            return self._along_time(op, rows)
        scratch = picture.scratch_of(index, rows, is_streamed=True)
        if op.norm is not None:
            channels, width = self.shape.program.channels[op.source], picture.sizes[op.source][1]
            read = rows if isinstance(op, Attend) else op.rows_read(0, rows)[1] - op.rows_read(0, rows)[0]
            copies = 1 if op.norm.kind == "attention" else 2
            scratch += min(_PIECES_BYTES, copies * read * width * channels * self.shape.arithmetic.computed_bytes)
            if op.norm.maps is not None:  # factors and shifts of a row of latents
                scratch += 3 * width * channels * self.shape.arithmetic.computed_bytes
        if isinstance(op, Convolve) and op.normed is not None:
            numbers = rows * picture.sizes[op.target][1] * op.weights.out_channels
            scratch += min(_PIECES_BYTES, 2 * numbers * self.shape.arithmetic.computed_bytes)
        if isinstance(op, Attend) and op.sees != "frame":  # keys and values of all frames
            frames, height, width = self.shape.extents[op.source]
            in_bytes = partial(self.shape.arithmetic.attention_bytes, op)
            scratch += in_bytes(frames * height * width) - in_bytes(height * width)
        return scratch

    def _fetched(self, op: Op, rows: int) -> int:
        """Return the bytes of the rows of offloaded buffers that are in memory while a strip is made."""
        first, end = (0, rows) if isinstance(op, Attend) else op.rows_read(0, rows)
        read = {op.source: end - first, op.target: rows}
        if op.residual is not None:
            read[op.residual] = read.get(op.residual, 0) + rows_added(op, 0, rows)[1]
        total = 0
        for value, count in read.items():
            if self._homes.get(value, -1) in self.parked:
                height = self.shape.extents[value][1]
                total += min(count, height) * self.shape.nbytes[value] // height
        return total

    def _statistics(self, index: int, rows: int) -> int:
        """Return the bytes of the statistics that an op gathers: of a few pieces, and one piece of every frame."""
        program = self.shape.program
        target = program.ops[index].target
        norm = program.norm_of(target)
        if norm is None:
            return 0
        frames = self.shape.extents[target][0] if norm.over == "frame" else 0
        if norm.kind == "attention":
            inside = program.channels[target] // 3
            sums = inside * (inside // norm.groups + 1) * _MERGING_ITEMSIZE
            numbers = rows * self.shape.extents[target][2] * program.channels[target]
            return (frames + 1) * sums + min(_PIECES_BYTES, numbers * self.shape.arithmetic.computed_bytes)
        pieces = _PIECES_KEPT * (2 * STATISTICS_ITEMSIZE + _MERGING_COPIES * _MERGING_ITEMSIZE)
        return program.channels[target] * (pieces + 2 * frames * _MERGING_ITEMSIZE)

    def _strips(self, op: Op, section: Section, course: Course, rows: int) -> int:
        """Return in how many pieces an op is computed: of all frames of a step, for attention of one frame."""
        frames, height, _ = self.shape.extents[op.target]
        spans = [made[op.target] for made in course.made if made[op.target][0] < made[op.target][1]]
        if section.axis == "rows":
            counts = [-(-(end - first) // rows) for first, end in spans]
            return sum(counts) * (frames if isinstance(op, Attend) and op.sees != "pixel before" else 1)
        of_a_frame = -(-height // rows)
        times = sum(end - first for first, end in spans) if isinstance(op, Attend) else len(spans)
        return of_a_frame * times


def one_by_one(ops: Sequence[int] | range) -> tuple[Section, ...]:
    """Return a section for each op, which makes all of its target at once."""
    return tuple(Section(index, index + 1) for index in ops)
