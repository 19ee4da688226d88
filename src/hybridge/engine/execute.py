"""Runs a program in strips, as its plan says.

Numbers: a group norm's statistics are taken per strip, in float32 at least, and merged in float64, so they do not
depend on where strips begin; everything else is what the plain forward computes, row by row.  The result is *within
rounding* of the plain forward, never a blend.

Memory: what the plan says; what it parks is in :mod:`.parking`.  Activations lie channels-last, so that the rows of
a strip are one piece of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

import torch
from torch import nn

from ..errors import RequestError, Stopped
from .arena import Arena, lend
from .memory import allocate_picture
from .ops import Attend
from .parking import Parked
from .plan import Plan
from .program import Program
from .statistics import Moments
from .strips import AttentionStrips, ConvolutionStrips, Into, Parameters, Reading, Rows, Stored, Streamed, Strip
from .ways import Way

#: Called with (strips done, strips in all).
Progress = Callable[[int, int], None]

#: Asked between strips.
ShouldStop = Callable[[], bool]

_Bound = ConvolutionStrips | AttentionStrips


class Executor:
    """A program bound to a module's weights.

    What can be computed from the weights alone is computed once, and again when they are moved or replaced.

    Args:
        program: What to run.
        module: The module that it was lowered from.
        spill_to: The folder in which activations are parked, if a plan parks any; None for the temporary one.
    """

    def __init__(self, program: Program, module: nn.Module, spill_to: Path | None = None) -> None:
        self.program = program
        self._spill_to = spill_to
        self._parts = dict(module.named_modules())
        self._parameters = list(module.parameters())
        self._bound: dict[int, tuple[Way | None, _Bound]] = {}
        self._bound_to: list[object] = []

    @torch.no_grad()
    def run(
        self,
        source: torch.Tensor,
        plan: Plan,
        *,
        progress: Progress | None = None,
        should_stop: ShouldStop | None = None,
    ) -> torch.Tensor:
        """The program's output for ``source``.

        Args:
            source: (B, C, H, W) of the plan's shape, on the weights' device, of the dtype to keep activations in.
            plan: In a mode that runs in strips.
            progress: Hears of every strip.
            should_stop: Asked after every strip but the last.

        Returns:
            (B, C', H', W'), contiguous, of the source's dtype.

        Raises:
            RequestError: when the source is not what the plan was made for.
            Stopped: when ``should_stop`` said so.
            OutOfMemory: when there is no room to park what the plan parks.
        """
        self._check(source, plan)
        bound = self._bind(source.dtype, plan)
        height, width = self.program.sizes(plan.height, plan.width)[-1]
        output = source.new_empty((plan.batch, self.program.channels[-1], height, width))
        with lend(source, plan.arena_bytes) as arena:
            strips = self._strips(bound, source, output, plan, arena)
            for done, _ in enumerate(strips, start=1):
                if progress:
                    progress(done, plan.strips)
                if should_stop and done < plan.strips and should_stop():
                    # A traceback keeps the variables of its frames: none may hold a tensor.
                    strips.close()
                    del output, strips
                    raise Stopped(
                        f"the {self.program.task} was stopped", saw=f"{done} of {plan.strips} strips done"
                    )
        return output

    def _check(self, source: torch.Tensor, plan: Plan) -> None:
        expected = (plan.batch, self.program.channels[0], plan.height, plan.width)
        itemsize = plan.arithmetic.stored_bytes
        if not plan.steps or tuple(source.shape) != expected or source.itemsize != itemsize:
            raise RequestError(
                "not what this plan was made for",
                saw=f"{list(source.shape)} in {source.dtype}, mode {plan.mode}",
                expected=f"{list(expected)} of {itemsize} bytes a number, in strips",
            )

    def _bind(self, stored: torch.dtype, plan: Plan) -> list[_Bound]:
        """Every op with its weights, prepared for the way that it is planned to run."""
        wide = plan.arithmetic.computed_bytes > plan.arithmetic.stored_bytes
        computed = torch.float32 if wide else stored
        bound_to = [computed, *(_identity(parameter) for parameter in self._parameters)]
        if bound_to != self._bound_to:
            self._bound.clear()
            self._bound_to = bound_to
        parameters = Parameters(self._parts, computed)
        for index, (op, step) in enumerate(zip(self.program.ops, plan.steps, strict=True)):
            if index in self._bound and self._bound[index][0] == step.way:
                continue
            if isinstance(op, Attend):
                self._bound[index] = None, AttentionStrips(op, parameters)
            else:
                self._bound[index] = step.way, ConvolutionStrips(op, step.way or Way("direct"), parameters)
        return [self._bound[index][1] for index in range(len(self.program.ops))]

    def _strips(
        self, bound: list[_Bound], source: torch.Tensor, output: torch.Tensor, plan: Plan, arena: Arena | None
    ) -> Generator[None]:
        for item in range(plan.batch):
            ends = source[item : item + 1], output[item : item + 1]
            run = _Item(self.program, plan, bound, *ends, arena, self._spill_to)
            for index in range(len(bound)):
                yield from run.op(index)


class _Item:
    """One item of the batch on its way through the program: which values exist, and where."""

    def __init__(
        self,
        program: Program,
        plan: Plan,
        bound: list[_Bound],
        source: torch.Tensor,
        output: torch.Tensor,
        arena: Arena | None,
        spill_to: Path | None,
    ) -> None:
        self._program, self._plan, self._bound, self._output = program, plan, bound, output
        self._arena, self._spill_to = arena, spill_to
        self._sizes = program.sizes(plan.height, plan.width)
        self._values = {0: source}
        self._moments: dict[int, Moments] = {}
        self._buffers: dict[int, torch.Tensor] = {}
        self._parked: dict[int, Parked] = {}

    def op(self, index: int) -> Generator[None]:
        """Runs one op, yielding after every strip, and frees what nothing reads any more."""
        op, step = self._program.ops[index], self._plan.steps[index]
        self._make_room(index)
        gather = None
        if self._program.norm_of(op.target):
            gather = self._moments[op.target] = Moments(self._plan.arithmetic)
        if not step.is_streamed:
            target = self._values[op.target] = self._output if step.buffer is None else self._buffer(step.buffer)
            yield from self._write(index, target, gather)
        elif gather:  # the norm that will read it needs to know all of it first
            for strip in self._strips_of(index):
                gather.add(strip.made)
                del strip  # before the next one is made
                self._release()
                yield
        self._free(index)

    def _make_room(self, index: int) -> None:
        """Keeps what an op takes and the arena's idle pages together within the plan's peak."""
        if self._arena is None:
            return
        living = (
            (buffer.offset, buffer.offset + buffer.nbytes)
            for buffer in self._plan.buffers
            if buffer.first_op <= index <= buffer.last_op and not buffer.is_parked
        )
        self._arena.forget_beside(living, self._plan.peak_bytes - self._plan.steps[index].taken_bytes)

    def _write(self, index: int, target: torch.Tensor, gather: Moments | None) -> Generator[None]:
        def into(first: int, end: int) -> torch.Tensor:
            return target[:, :, first:end]

        for strip in self._strips_of(index, into):
            place = into(strip.first, strip.end)
            if strip.made.data_ptr() != place.data_ptr():
                place.copy_(strip.made, non_blocking=True)
            if gather:
                gather.add(strip.made)
            del strip  # before the next one is made
            self._release()
            yield

    def _strips_of(self, index: int, into: Into | None = None) -> Generator[Strip]:
        op, step = self._program.ops[index], self._plan.steps[index]
        reading = Reading(
            self._rows(op.source),
            self._moments.get(op.source),
            None if op.residual is None else self._rows(op.residual),
            self._sizes[op.target][0],
            step.rows,
        )
        return self._bound[index].strips(reading, self._output, into)

    def _rows(self, value: int) -> Rows:
        if value in self._values:
            return Stored(self._values[value])
        return Streamed(self._strips_of(value - 1), *self._sizes[value])

    def _buffer(self, index: int) -> torch.Tensor:
        if index not in self._buffers:
            buffer = self._plan.buffers[index]
            shape = buffer.channels, buffer.height, buffer.width
            if buffer.is_parked:
                self._parked[index] = Parked(self._output, *shape, self._spill_to)
                self._buffers[index] = self._parked[index].tensor
            elif self._arena is not None:
                self._buffers[index] = self._arena.picture(self._output, buffer.offset, *shape)
            else:
                self._buffers[index] = allocate_picture(self._output, *shape)
        return self._buffers[index]

    def _release(self) -> None:
        for parked in self._parked.values():
            parked.release()

    def _free(self, index: int) -> None:
        for value in [value for value in self._moments if self._plan.last_reads[value] <= index]:
            del self._moments[value]
        for value in [value for value in self._values if self._plan.last_reads[value] <= index]:
            del self._values[value]
        for buffer in [b for b in self._buffers if self._plan.buffers[b].last_op <= index]:
            del self._buffers[buffer]
            self._parked.pop(buffer, None)


def _identity(parameter: torch.Tensor) -> tuple[object, ...]:
    """What changes when a parameter is moved, replaced or written to; inference mode does not count writes."""
    version = 0 if parameter.is_inference() else parameter._version
    return parameter.data_ptr(), version, parameter.dtype, parameter.device
