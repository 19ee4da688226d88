"""Execute a program of films as its plan says: section by section, step by step, op by op."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any

import torch

from ...errors import RequestError
from ..planning.conv_algorithms import DeviceProfile
from ..planning.courses import Axis, Course, Extent, Section, Span, is_stored
from ..planning.plan import Plan
from ..program.ops import Attend, Convolve, Op, Rearrange, measured_by
from ..program.program import Program
from ..program.recomputing import Recomputed, recomputing
from .buffers import Buffers
from .conditioning import Conditioning, Conditions
from .executor import Executor
from .film_ops import FilmAttention, FilmCall, FilmConvolution
from .film_rearranging import FilmRearrangement
from .film_statistics import FilmMoments
from .film_values import FilmValue, Part, RowAbove
from .pixel_attention import PixelAttention


class FilmExecutor(Executor):
    """A program of films together with a module's weights; as :class:`.Executor`, with (B, C, T, H, W)."""

    _convolution = FilmConvolution

    def _as_planned(self, plan: Plan) -> Recomputed:
        return recomputing(self.program.at(plan.frames), plan.recomputed)

    def _ops_of(self, plan: Plan) -> tuple[tuple[Op, ...], Iterable[int]]:
        planned = self._as_planned(plan)
        return planned.program.ops, planned.origins

    def _attention_of(self, op: Attend) -> type[FilmAttention]:
        return PixelAttention if op.sees == "pixel before" else FilmAttention

    def _rearrangement(self, op: Rearrange, arithmetic: DeviceProfile) -> FilmRearrangement:
        return FilmRearrangement(op, arithmetic)

    def _check(self, source: torch.Tensor, plan: Plan) -> None:
        expected = (plan.batch, self.program.channels[0], plan.frames, plan.height, plan.width)
        itemsize = plan.arithmetic.stored_bytes
        if not plan.sections or tuple(source.shape) != expected or source.itemsize != itemsize:
            raise RequestError(
                "not what this plan was made for",
                saw=f"{list(source.shape)} in {source.dtype}, mode {plan.mode}",
                expected=f"{list(expected)} of {itemsize} bytes a number, in sections",
            )

    def _output(self, source: torch.Tensor, plan: Plan, *, is_kept: bool) -> torch.Tensor:
        frames = self.program.lengths(plan.frames)[-1] if is_kept else 0
        size = self.program.sizes(plan.height, plan.width)[-1]
        return source.new_empty((plan.batch, self.program.channels[-1], frames, *size))

    def _strips(
        self,
        bound: list[Any],
        source: torch.Tensor,
        output: torch.Tensor,
        plan: Plan,
        buffers: Buffers,
        deliver: Callable[[torch.Tensor], None] | None,
        timestep: torch.Tensor | None,
    ) -> Generator[None]:
        program = self._as_planned(plan).program
        lengths = program.lengths(plan.frames)
        sizes = program.sizes(plan.height, plan.width)
        extents = tuple((length, *size) for length, size in zip(lengths, sizes, strict=True))
        courses = [Course(program, section, extents) for section in plan.sections]
        conditioning = Conditioning(program, self._parameters.parts, extents, source, timestep)
        for item in range(plan.batch):
            ends = source[item].transpose(0, 1), output[item].transpose(0, 1)
            conditions = [conditioning.of(op, item) for op in program.ops]
            run = FilmItem(program, plan, bound, *ends, buffers, extents, deliver, conditions)
            for section, course in zip(plan.sections, courses, strict=True):
                yield from run.section(section, course)
            run.deliver_kept()


class FilmItem:
    """The state of one batch item during the run: which slabs of which values exist, and where."""

    def __init__(
        self,
        program: Program,
        plan: Plan,
        bound: list[FilmConvolution | FilmAttention | FilmRearrangement],
        source: torch.Tensor,
        output: torch.Tensor,
        buffers: Buffers,
        extents: tuple[Extent, ...],
        deliver: Callable[[torch.Tensor], None] | None,
        conditions: list[Conditions],
    ) -> None:
        self._conditions = conditions
        self._program, self._plan, self._bound, self._buffers = program, plan, bound, buffers
        self._source, self._output, self._extents, self._deliver = source, output, extents, deliver
        self._keeping = {
            buffer.keeps: index for index, buffer in enumerate(plan.buffers) if buffer.keeps is not None
        }
        self._last_reads = program.last_reads()
        self._made: dict[int, Span] = {}
        self._kept: dict[int, Span] = {}
        self._moments: dict[int, FilmMoments] = {}
        self._above: dict[int, RowAbove] = {}

    def section(self, section: Section, course: Course) -> Generator[None]:
        """Run a section, yielding after every strip, and free the buffers that no later section reads."""
        slabs = [n + 1 for n in section.ops if not is_stored(self._program, section, n + 1)]
        passing = {self._plan.steps[value - 1].buffer for value in slabs}
        self._kept.clear()
        self._above.clear()
        for step, (made, kept_from) in enumerate(zip(course.made, course.kept_from, strict=True)):
            self._made = {value: made[value] for value in slabs}
            is_last = step == len(course.made) - 1
            rolled: set[int] = set()
            for index in section.ops:
                op = self._program.ops[index]
                read = {value for value in (op.source, op.residual) if value in self._made} - rolled
                overwritten = {value for value in read if self._home(value) == self._home(op.target)}
                for value in overwritten:
                    self._roll(value, kept_from[value], section.axis)
                if made[op.target][0] < made[op.target][1]:
                    self._buffers.make_room(index)
                    for _ in self._run(index, made[op.target], section.axis):
                        self._buffers.end_strip()
                        yield
                    if self._deliver and self._home(op.target) is None and op.target == len(self._program.ops):
                        self._deliver(self._output.transpose(0, 1)[None])
                for value in read - overwritten:
                    if max(self._program.readers(value)) == index:
                        self._roll(value, kept_from[value], section.axis)
                        rolled.add(value)
                rolled |= overwritten
                self._buffers.end_op(index, None if is_last else passing)
        for value in [value for value in self._moments if self._last_reads[value] < section.end_op]:
            del self._moments[value]

    def deliver_kept(self) -> None:
        """Deliver the frames of an output that is in a file."""
        output = len(self._program.ops)
        if self._deliver is None or self._home(output) is None:
            return
        film = self._whole(output)
        for frame in range(len(film)):
            self._deliver(film[frame : frame + 1].transpose(0, 1)[None].contiguous())
            self._buffers.end_strip()

    def _run(self, index: int, span: Span, axis: Axis) -> Generator[None]:
        op, step = self._program.ops[index], self._plan.steps[index]
        frames, height, _ = self._extents[op.target]
        source_extent = self._extents[op.source]
        residual, converted = None, 0
        if op.residual is not None:
            residual = self._value(op.residual, axis)
            channels, width = self._program.channels[op.residual], self._extents[op.residual][2]
            converted = min(step.rows, self._plan.arithmetic.rows_widened(channels, width))
        norm = self._program.norm_of(op.target)
        if norm is not None and op.target not in self._moments:
            self._moments[op.target] = FilmMoments(norm, self._plan.arithmetic, frames)
        call = FilmCall(
            self._value(op.source, axis),
            residual,
            self._target(op.target, span, axis),
            span if axis == "frames" else (0, frames),
            span if axis == "rows" else (0, height),
            step.rows,
            converted if isinstance(op, Convolve) else 0,
            source_extent,
            op.norm.maps if op.norm is not None else None,
            self._source,
            self._moments.get(measured) if (measured := measured_by(op)) is not None else None,
            self._moments.get(op.target),
            self._row_above(op),
            self._conditions[index],
        )
        yield from self._bound[index].run(call, self._buffers.scratch)
        if call.gather is not None:
            call.gather.merge()

    def _row_above(self, op: Op) -> RowAbove | None:
        """Return the row above a strip, where the target lies where the source does."""
        if (
            op.source in self._made
            or op.source not in self._keeping
            or self._home(op.source) != self._home(op.target)
        ):
            return None
        if op.source not in self._above:
            self._above[op.source] = RowAbove(self._buffers.take(self._keeping[op.source]))
        return self._above[op.source]

    def _home(self, value: int) -> int | None:
        return self._plan.steps[value - 1].buffer if value else None

    def _whole(self, value: int) -> torch.Tensor:
        if value == 0:
            return self._source
        home = self._home(value)
        return self._output if home is None else self._buffers.take(home)

    def _value(self, value: int, axis: Axis) -> FilmValue:
        """Return what exists of a value: what this step has made, and before it what earlier steps have kept."""
        if value not in self._made:
            frames, height, _ = self._extents[value]
            return FilmValue([Part(0, frames if axis == "frames" else height, self._whole(value))], axis)
        parts = []
        for span, home in (
            (self._made[value], self._home(value)),
            (self._kept.get(value), self._keeping.get(value)),
        ):
            if span is not None and home is not None and span[0] < span[1]:
                parts.append(Part(*span, _first_slabs(self._buffers.take(home), span, axis)))
        return FilmValue(parts, axis)

    def _target(self, value: int, span: Span, axis: Axis) -> FilmValue:
        if (
            self._deliver and self._home(value) is None and value == len(self._program.ops)
        ):  # only what this step makes of the output exists
            frames, (_, height, width) = span[1] - span[0], self._extents[value]
            self._output = self._source.new_empty((self._program.channels[value], frames, height, width)).transpose(
                0, 1
            )
            return FilmValue([Part(*span, self._output)], axis)
        if value not in self._made:
            return self._value(value, axis)
        home = self._home(value)
        if home is None:
            raise TypeError(f"value {value} has no buffer")
        return FilmValue([Part(*span, _first_slabs(self._buffers.take(home), span, axis))], axis)

    def _roll(self, value: int, kept_from: int, axis: Axis) -> None:
        """Keep the slabs of a value that later steps read again."""
        end = self._made[value][1]
        before = self._kept.get(value, (0, 0))
        if kept_from < end:
            exists = self._value(value, axis)
            kept = FilmValue(
                [
                    Part(
                        kept_from,
                        end,
                        _first_slabs(self._buffers.take(self._keeping[value]), (kept_from, end), axis),
                    )
                ],
                axis,
            )
            for slab in range(kept_from, end):  # in rising order, because they move down within the same memory
                if slab >= self._made[value][0] or kept_from != before[0]:
                    kept.slab(slab).copy_(exists.slab(slab))
        self._kept[value] = kept_from, end


def _first_slabs(tensor: torch.Tensor, span: Span, axis: Axis) -> torch.Tensor:
    """Return the part of a buffer, (frames, C, rows, W), that holds so many slabs."""
    count = span[1] - span[0]
    return tensor[:count] if axis == "frames" else tensor[:, :, :count]
