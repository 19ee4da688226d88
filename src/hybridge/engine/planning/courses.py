"""Sections of a program whose ops run together, each a little further in every step, and how far each one comes.

A value within a section never exists whole: of it there are the *slabs* (frames, or rows of all frames) that a step
makes, and those that a later step reads again.  Nothing is computed twice.

Along frames, a step reads some more frames of the section's source, and each op advances as far as its own source
then allows, where all convolutions are causal, so that all ops finish together.

Along rows, and along frames where an op looks ahead, an op also needs slabs after those that it makes.  A step
makes at most so many slabs of every target, and none that the ops after it do not need yet: without the first bound
the first step would make all that they look ahead, and without the second the ops in front would run ahead of those
behind.

No code here uses a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..program.ops import (
    Attend,
    Op,
    Rearrange,
    frames_added,
    frames_ahead,
    frames_split,
    rows_added,
    rows_together,
)
from ..program.program import Program

#: What a slab is: a frame, or a row of all frames.
Axis = Literal["frames", "rows"]

#: (frames, height, width) of a value.
Extent = tuple[int, int, int]

#: From and to which slab: [from, to).
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Section:
    """Ops that run together.

    Attributes:
        first_op: Index of the first op.
        end_op: Index after the last op.
        axis: The axis along which they advance.
        slabs: Slabs of a step: frames of the first op's source, or rows of the last op's target; None for all of
            them, in a single step.
        of_steps: In how many steps these are made, where one row of a small target needs many of a large source.
    """

    first_op: int
    end_op: int
    axis: Axis = "rows"
    slabs: int | None = None
    of_steps: int = 1

    @property
    def is_by_frames(self) -> bool:
        """Whether some frames are made after others."""
        return self.axis == "frames" and self.slabs is not None

    @property
    def ops(self) -> range:
        """The indices of the ops."""
        return range(self.first_op, self.end_op)


def is_stored(program: Program, section: Section, value: int) -> bool:
    """Return whether a value of the section exists whole, because later ops read it or because it is the output."""
    readers = program.readers(value)
    return value == len(program.ops) or any(reader >= section.end_op for reader in readers)


class Course:
    """How far each op of a section comes in every step.

    Args:
        program: The program.
        section: The section.
        extents: (frames, height, width) of every value.

    Attributes:
        made: For every step the slabs that it makes of every target.
        kept_from: For every step and target the first slab that a later step reads again.
    """

    def __init__(self, program: Program, section: Section, extents: tuple[Extent, ...]) -> None:
        self._program, self._section = program, section
        index = 0 if section.axis == "frames" else 1
        self._lengths = [extent[index] for extent in extents]
        self._ops = [program.ops[op] for op in section.ops]
        self._driver = self._ops[0].source
        self.made: list[dict[int, Span]] = []
        self.kept_from: list[dict[int, int]] = []
        self._walk()

    def _walk(self) -> None:
        length = self._lengths[self._driver]
        slabs = self._section.slabs or length
        is_driven = self._section.is_by_frames and not any(frames_ahead(op) for op in self._ops)
        ends = {op.target: 0 for op in self._ops}
        step = 0
        while any(end < self._lengths[value] for value, end in ends.items()):
            step += 1
            available = min(step * slabs, length) if is_driven else length
            limits = self._lengths if is_driven or self._section.slabs is None else self._wanted(ends)
            before = dict(ends)
            for op in self._ops:
                ends[op.target] = self._reach(op, ends, available, limits[op.target])
            self.made.append({value: (before[value], end) for value, end in ends.items()})
            self.kept_from.append({value: self._needed_from(value, ends) for value in ends})

    def past(self, value: int) -> int:
        """Return the most slabs of a target that are kept between two steps."""
        return max(made[value][1] - kept[value] for made, kept in zip(self.made, self.kept_from, strict=True))

    def fresh(self, value: int) -> int:
        """Return the most slabs of a target that a step makes."""
        return max(made[value][1] - made[value][0] for made in self.made)

    def is_in_step(self, value: int, other: int) -> bool:
        """Return whether every step makes the same slabs of both values."""
        return all(made.get(value) == made.get(other) for made in self.made)

    def _reach(self, op: Op, ends: dict[int, int], available: int, length: int) -> int:
        """Return the end of the slabs of a target, at most ``length``, that can be made from those that exist."""
        reached = ends[op.target]
        exists = ends.get(op.source, available if op.source == self._driver else self._lengths[op.source])
        if exists == self._lengths[op.source]:
            reached = length
        else:
            while reached < length and self._reads(op, reached, reached + 1)[1] <= exists:
                reached += 1
        if op.residual is not None and op.residual in ends:
            reached = self._within(op, reached, ends[op.residual])
        return max(self._floor(op, reached), ends[op.target])

    def _within(self, op: Op, reached: int, added: int) -> int:
        """Return how much of a target can be made, where so much of the residual exists."""
        if added == self._lengths[op.residual or 0]:
            return reached
        if not isinstance(op, Rearrange):
            return min(reached, added)
        while reached and self._adds(op, 0, reached)[1] > added:
            reached -= 1
        return reached

    def _floor(self, op: Op, end: int) -> int:
        """Return ``end``, or the end of the slabs before it that can be made without others made with them."""
        if end == self._lengths[op.target]:
            return end
        return end - self._together(op, end)

    def _ceil(self, op: Op, end: int) -> int:
        """Return ``end``, or the end of the slabs that are made together with the last before it."""
        length = self._lengths[op.target]
        while end < length and self._together(op, end):
            end += 1
        return min(end, length)

    def _together(self, op: Op, end: int) -> int:
        """Return how many slabs before ``end`` are made together with some after it."""
        if self._section.axis == "rows":
            return end % rows_together(op)
        return frames_split(op, end)

    def _wanted(self, ends: dict[int, int]) -> dict[int, int]:
        """Return for every target the end of the rows that a step should make."""
        last = self._ops[-1].target
        wanted = dict.fromkeys(ends, 0)
        wanted[last] = ends[last] + self._most(last)
        for op in reversed(self._ops):
            end = self._ceil(op, min(wanted[op.target], self._lengths[op.target]))
            if op.source in wanted and end:
                wanted[op.source] = max(wanted[op.source], self._reads(op, 0, end)[1])
            if op.residual is not None and op.residual in wanted and end:
                wanted[op.residual] = max(wanted[op.residual], self._adds(op, 0, end)[1])
            wanted[op.target] = min(end, self._ceil(op, ends[op.target] + self._most(op.target)))
        return wanted

    def _most(self, value: int) -> int:
        """Return how many slabs of a target a step may make."""
        part = self._lengths[self._ops[-1].target] * self._section.of_steps
        most = -(-(self._section.slabs or 1) * self._lengths[value] // part)
        return most + most % 2 if self._section.axis == "rows" else most

    def _reads(self, op: Op, first: int, end: int) -> Span:
        if self._section.axis == "frames":
            return op.frames_read(first, end)
        if isinstance(op, Attend):
            raise TypeError("attention reads all rows of a frame, so it cannot advance along rows")
        return op.rows_read(first, end)

    def _adds(self, op: Op, first: int, end: int) -> Span:
        return frames_added(op, first, end) if self._section.axis == "frames" else rows_added(op, first, end)

    def _needed_from(self, value: int, ends: dict[int, int]) -> int:
        """Return the first slab that a later step reads; the end of what exists, if none does."""
        needed = ends[value]
        for op in self._ops:
            done = ends[op.target]
            if done == self._lengths[op.target]:
                continue
            if op.source == value:
                needed = min(needed, max(0, self._reads(op, done, done + 1)[0]))
            if op.residual == value:
                needed = min(needed, max(0, self._adds(op, done, done + 1)[0]))
        return needed
