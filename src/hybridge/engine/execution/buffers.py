"""The memory of a run: each of a plan's buffers where the plan puts it, how rows get in and out, and scratch."""

from __future__ import annotations

from pathlib import Path

import torch

from ..memory.arena import Arena, Scratch
from ..memory.device_memory import allocate_picture
from ..memory.offload import Offloaded
from ..planning.plan import Plan
from .strips import Rows, Stored
from .transfer import Copies, Fetched, Sent


class Buffers:
    """A plan's buffers, taken when they are asked for.

    Args:
        plan: That they are part of.
        like: Of the dtype to keep, on the device to run on.
        arena: For those that are not parked, and for scratch; None to take each by itself.
        copies: Of the device, if it cannot read what is parked.
        spill_to: The folder to park in; None for the temporary one.

    Attributes:
        scratch: What the op that runs takes for itself.
    """

    def __init__(
        self, plan: Plan, like: torch.Tensor, arena: Arena | None, copies: Copies | None, spill_to: Path | None
    ) -> None:
        self._plan, self._like, self._arena, self._copies, self._spill_to = plan, like, arena, copies, spill_to
        computed = torch.float32 if plan.arithmetic.is_widened else like.dtype
        self.scratch = Scratch(like.new_empty(0, dtype=computed), arena, plan.scratch_bytes)
        self._taken: dict[int, torch.Tensor] = {}
        self._parked: dict[int, Offloaded] = {}

    def take(self, index: int) -> torch.Tensor:
        """(1, C, H, W), channels-last, its numbers undefined unless it was taken before.

        Raises:
            OutOfMemory: when there is no room to park it.
        """
        if index not in self._taken:
            buffer = self._plan.buffers[index]
            shape = buffer.channels, buffer.height, buffer.width
            if buffer.is_parked:
                self._parked[index] = Offloaded(self._like, *shape, self._spill_to)
                self._taken[index] = self._parked[index].tensor
            elif self._arena is not None:
                self._taken[index] = self._arena.picture(self._like, buffer.offset, *shape)
            else:
                self._taken[index] = allocate_picture(self._like, *shape)
        return self._taken[index]

    def rows(self, index: int, most: int) -> Rows:
        """What a taken buffer holds, to be read so many rows at a time."""
        if self._copies is not None and index in self._parked:
            return Fetched(self._copies, self._taken[index], self._like, most)
        return Stored(self._taken[index])

    def sent(self, index: int, most: int) -> Sent | None:
        """How so many rows at a time get into a taken buffer; None for one that is written to where it lies."""
        if self._copies is not None and index in self._parked:
            return Sent(self._copies, self._taken[index], self._like, most)
        return None

    def make_room(self, op: int) -> None:
        """Keeps what an op takes and the arena's idle pages together within the plan's peak."""
        if self._arena is None:
            return
        step = self._plan.steps[op]
        living = (
            (buffer.offset, buffer.offset + buffer.nbytes)
            for buffer in self._plan.buffers
            if buffer.first_op <= op <= buffer.last_op and not buffer.is_parked
        )
        self._arena.forget_beside([(0, step.scratch_bytes), *living], self._plan.peak_bytes - step.taken_bytes)

    def end_strip(self) -> None:
        """Lets the process forget the pages of what is parked."""
        for parked in self._parked.values():
            parked.release()

    def end_op(self, op: int) -> None:
        """Frees what it took for itself, and what nothing reads after it."""
        self._finish()
        self.scratch.clear()
        for index in [index for index in self._taken if self._plan.buffers[index].last_op <= op]:
            del self._taken[index]
            self._parked.pop(index, None)

    def close(self) -> None:
        """Frees all of them."""
        self._finish()
        self._taken.clear()
        self._parked.clear()

    def _finish(self) -> None:
        """Has whatever is computed from now on wait for copies: it may be given the memory that they use."""
        if self._copies is not None:
            self._copies.finish()
