"""Execute a program in strips, as its plan says.

Accuracy: a group norm's statistics are computed per strip, in float32 or wider, and merged in float64, so they do
not depend on where strips begin; everything else is computed as in the plain forward, row by row.  The result
equals the plain forward's *within rounding*; it is never a blend of tiles.

Memory: as planned, see :mod:`.buffers`.  Activations are channels-last, so that the rows of a strip are contiguous.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import RequestError, Stopped
from ..memory.arena import borrow
from ..memory.device_memory import trim
from ..planning.conv_algorithms import ConvAlgorithm, DeviceProfile
from ..planning.plan import Plan
from ..program.ops import Attend, Op, Rearrange
from ..program.program import Program
from .buffers import Buffers
from .call_context import without_autocast
from .group_norm import Moments
from .parameters import ModuleParameters, Parameters
from .strips import AttentionStrips, ConvolutionStrips, Into, Reading, Rows, Stored, Streamed, Strip
from .transfer import copies_for
from .weight_checksum import checksums

#: Called with (strips done, strips in total).
Progress = Callable[[int, int], None]

#: Called between strips; True ends the run.
ShouldStop = Callable[[], bool]

_Bound = ConvolutionStrips | AttentionStrips


class Executor:
    """A program of pictures together with a module's weights.

    Values that depend on the weights alone are computed once, and again when weights are moved, replaced or
    written.

    Args:
        program: The program to run.
        module: The module that it was lowered from.
        spill_to: The folder for offloaded activations, if a plan has any; None for the system's temporary folder.
        reads_weights: Whether every run first computes checksums of the weights that it needs; without it, changes
            that torch does not count, such as writes through ``parameter.data``, go unnoticed.
    """

    _convolution: type[ConvolutionStrips] = ConvolutionStrips

    def __init__(
        self, program: Program, module: nn.Module, spill_to: Path | None = None, *, reads_weights: bool = True
    ) -> None:
        self.program = program
        self._spill_to = spill_to
        self._reads_weights = reads_weights
        self._parameters = ModuleParameters(module)
        self._layers = program.layers()
        self._bound: dict[int, tuple[ConvAlgorithm | Rearrange | None, _Bound]] = {}
        self._bound_to: list[object] = []
        self._binding = threading.Lock()

    @torch.no_grad()
    def run(
        self,
        source: torch.Tensor,
        plan: Plan,
        *,
        progress: Progress | None = None,
        should_stop: ShouldStop | None = None,
        deliver: Callable[[torch.Tensor], None] | None = None,
        timestep: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the program's output for ``source``.

        Args:
            source: (B, C, H, W) in the plan's shape, on the weights' device, in the dtype to store activations in.
            plan: A plan in a mode that runs in strips.
            progress: Called after every strip.
            should_stop: Called after every strip except the last.
            deliver: For a film of one item that is computed frame by frame, takes the frames (1, C', f, H', W') as
                soon as they are final; the output then has no frames.  Otherwise it is not called.
            timestep: For a decoder that is conditioned on one: (B,), as the class takes it.

        Returns:
            (B, C', H', W'), contiguous, of the source's dtype.

        Raises:
            RequestError: when the source does not match the plan.
            Stopped: when ``should_stop`` returned True.
            OutOfMemory: when there is no room for the activations that the plan offloads.
        """
        self._check(source, plan)
        with without_autocast(source.device.type):
            return self._run(source.resolve_neg(), plan, progress, should_stop, deliver, timestep)

    def _run(
        self,
        source: torch.Tensor,
        plan: Plan,
        progress: Progress | None,
        should_stop: ShouldStop | None,
        deliver: Callable[[torch.Tensor], None] | None,
        timestep: torch.Tensor | None,
    ) -> torch.Tensor:
        bound = self._bind(source.dtype, plan)
        deliver = deliver if plan.batch == 1 and self._frames_leave(plan) else None
        output = self._output(source, plan, is_kept=deliver is None)
        copies = copies_for(source.device) if plan.parked_bytes else None
        with (
            borrow(source, plan.arena_bytes) as arena,
            closing(Buffers(plan, source, arena, copies, self._spill_to)) as buffers,
        ):
            strips = self._strips(bound, source, output, plan, buffers, deliver, timestep)
            for done, _ in enumerate(strips, start=1):
                if progress:
                    progress(done, plan.strips)
                if should_stop and done < plan.strips and should_stop():
                    # A traceback keeps the variables of its frames alive: none may hold a tensor.
                    strips.close()
                    del output, strips
                    raise Stopped(
                        f"the {self.program.task} was stopped", saw=f"{done} of {plan.strips} strips done"
                    )
        return output

    def _frames_leave(self, plan: Plan) -> bool:
        """Return whether frames leave: before the end of the run, or after it from a file."""
        return bool(plan.sections) and (plan.sections[-1].is_by_frames or plan.steps[-1].buffer is not None)

    def _output(self, source: torch.Tensor, plan: Plan, *, is_kept: bool) -> torch.Tensor:
        del is_kept  # a picture always is
        height, width = self.program.sizes(plan.height, plan.width)[-1]
        return source.new_empty((plan.batch, self.program.channels[-1], height, width))

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
        """Return every op with its weights prepared for its planned algorithm; one thread at a time does this."""
        with self._binding:
            return self._bind_alone(stored, plan)

    def _bind_alone(self, stored: torch.dtype, plan: Plan) -> list[_Bound]:
        computed = torch.float32 if plan.arithmetic.is_widened else stored
        read = self._parameters.of(self._layers)
        bound_to: list[object] = [computed, *(_identity(parameter) for parameter in read)]
        if self._reads_weights:
            bound_to.append(checksums(one for one in read if not one.is_meta))  # a meta tensor has no data
        if bound_to != self._bound_to:
            self._bound.clear()
            self._bound_to = bound_to
        parameters = Parameters(self._parameters.parts, computed)
        ways = [step.way for step in plan.steps]
        ops, origins = self._ops_of(plan)
        keys = [op if isinstance(op, Rearrange) else way for op, way in zip(ops, ways, strict=True)]
        missing = [
            (index, op, way)
            for index, op, way, key in zip(origins, ops, ways, keys, strict=True)
            if index not in self._bound or self._bound[index][0] != key
        ]
        for index, op, way in {index: (index, op, way) for index, op, way in missing}.values():
            if isinstance(op, Rearrange):
                self._bound[index] = op, self._rearrangement(op, plan.arithmetic)
            elif isinstance(op, Attend):
                self._bound[index] = way, self._attention_of(op)(op, parameters, plan.arithmetic)
            else:
                strips = self._convolution(op, way or ConvAlgorithm("direct"), parameters, plan.arithmetic)
                self._bound[index] = way, strips
        if missing:
            trim()  # preparing takes the same memory again, scattered between the pieces that stay
        return [self._bound[index][1] for index in origins]

    def _ops_of(self, plan: Plan) -> tuple[tuple[Op, ...], Iterable[int]]:
        """Return the ops of a plan, and of each the index of the program's op whose weights it has."""
        return self.program.ops, range(len(self.program.ops))

    def _attention_of(self, op: Attend) -> type[AttentionStrips]:
        return AttentionStrips

    def _rearrangement(self, op: Rearrange, arithmetic: DeviceProfile) -> Any:
        raise TypeError(f"{op.name}: only films are rearranged")

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
        del deliver, timestep  # a picture is final at the end
        for item in range(plan.batch):
            ends = source[item : item + 1], output[item : item + 1]
            run = _Item(self.program, plan, bound, *ends, buffers)
            for index in range(len(bound)):
                yield from run.op(index)


class _Item:
    """The state of one batch item during the run: which values exist, and where."""

    def __init__(
        self,
        program: Program,
        plan: Plan,
        bound: list[_Bound],
        source: torch.Tensor,
        output: torch.Tensor,
        buffers: Buffers,
    ) -> None:
        self._program, self._plan, self._bound, self._buffers = program, plan, bound, buffers
        self._source, self._output = source, output
        self._sizes = program.sizes(plan.height, plan.width)
        self._moments: dict[int, Moments] = {}

    def op(self, index: int) -> Generator[None]:
        """Run one op, yielding after every strip, and free the values that no later op reads."""
        op, step = self._program.ops[index], self._plan.steps[index]
        self._buffers.make_room(index)
        gather = None
        if self._program.norm_of(op.target):
            gather = self._moments[op.target] = Moments(self._plan.arithmetic)
        if not step.is_streamed:
            yield from self._write(index, gather)
        elif gather:  # the norm that will read it needs its complete statistics first
            for strip in self._strips_of(index):
                gather.add(strip.made)
                del strip  # before the next one is made
                self._buffers.end_strip()
                yield
        for value in [value for value in self._moments if self._plan.last_reads[value] <= index]:
            del self._moments[value]
        self._buffers.end_op(index)

    def _write(self, index: int, gather: Moments | None) -> Generator[None]:
        step = self._plan.steps[index]
        target, sent = self._output, None
        if step.buffer is not None:
            target, sent = self._buffers.take(step.buffer), self._buffers.sent(step.buffer, step.rows)

        def into(first: int, end: int) -> torch.Tensor:
            return target[:, :, first:end]

        for strip in self._strips_of(index, None if sent else into, gather):
            kept = strip.made.to(target.dtype) if sent else into(strip.first, strip.end)
            if sent:
                sent.send(strip.first, strip.end, kept)
            elif not begins_at(strip.made, kept):
                kept.copy_(strip.made)
            if gather and not strip.is_measured:  # statistics of the values as stored, which the norm will read
                gather.add(kept)
            del strip, kept  # before the next one is made
            self._buffers.end_strip()
            yield

    def _strips_of(self, index: int, into: Into | None = None, gather: Moments | None = None) -> Generator[Strip]:
        op, rows = self._program.ops[index], self._plan.steps[index].rows
        first, end = (0, rows) if isinstance(op, Attend) else op.rows_read(0, rows)
        residual, converted = None, 0
        if op.residual is not None:
            residual = self._rows(op.residual, rows)
            in_one_go = self._plan.arithmetic.rows_widened(self._program.channels[op.residual], residual.width)
            converted = min(rows, in_one_go)
        reading = Reading(
            self._rows(op.source, end - first),
            self._moments.get(op.source),
            residual,
            converted,
            self._sizes[op.target][0],
            rows,
            gather,
        )
        return self._bound[index].strips(reading, self._buffers.scratch, into)

    def _rows(self, value: int, most: int) -> Rows:
        """Return a reader for a value that reads at most ``most`` rows at a time."""
        if value == 0:
            return Stored(self._source)
        buffer = self._plan.steps[value - 1].buffer
        if buffer is None:
            return Streamed(self._strips_of(value - 1), *self._sizes[value])
        return self._buffers.rows(buffer, most)


def begins_at(made: torch.Tensor, place: torch.Tensor) -> bool:
    """Return whether rows were computed in their place, and need not be copied there."""
    return made.data_ptr() == place.data_ptr()


def _identity(parameter: torch.Tensor) -> tuple[object, ...]:
    """Return a key that changes when a parameter is moved, replaced or written; inference mode counts no writes."""
    version = 0 if parameter.is_inference() else parameter._version
    return parameter.data_ptr(), version, parameter.dtype, parameter.device, parameter.stride()
