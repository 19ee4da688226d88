"""The memory of a run: a plan's buffers at their planned places, access to their rows, and scratch memory."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

import torch

from ..memory.arena import Arena, Scratch
from ..memory.device_memory import allocate_picture
from ..memory.offload import Offloaded
from ..planning.plan import Plan
from .strips import Rows, Stored
from .transfer import Copies, Fetched, Sent


class Buffers:
    """A plan's buffers, allocated on first use.

    Args:
        plan: The plan that they belong to.
        like: A tensor of the dtype to store activations in, on the device to run on.
        arena: Memory for the buffers that are not offloaded, and for scratch; None to allocate each separately.
        copies: The device's copies, if it cannot read offloaded buffers directly.
        spill_to: The folder for offloaded buffers; None for the system's temporary folder.

    Attributes:
        scratch: The scratch memory of the op that runs.
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
        """Return a buffer (frames, C, H, W), channels-last; its contents are undefined on first use.

        Raises:
            OutOfMemory: when there is no room to offload it.
        """
        if index not in self._taken:
            buffer = self._plan.buffers[index]
            shape = buffer.channels, buffer.frames * buffer.height, buffer.width
            if buffer.is_parked:
                self._parked[index] = Offloaded(self._like, *shape, self._spill_to)
                self._taken[index] = self._parked[index].tensor
            elif self._arena is not None:
                self._taken[index] = self._arena.picture(self._like, buffer.offset, *shape)
            else:
                self._taken[index] = allocate_picture(self._like, *shape)
            if buffer.frames > 1:  # frames lie one below the other
                rows = self._taken[index].permute(0, 2, 3, 1)
                split = rows.view(buffer.frames, buffer.height, buffer.width, buffer.channels)
                self._taken[index] = split.permute(0, 3, 1, 2)
        return self._taken[index]

    def rows(self, index: int, most: int) -> Rows:
        """Return a reader for an allocated buffer that reads at most ``most`` rows at a time."""
        if self._copies is not None and index in self._parked:
            return Fetched(self._copies, self._taken[index], self._like, most)
        return Stored(self._taken[index])

    def sent(self, index: int, most: int) -> Sent | None:
        """Return a writer of at most ``most`` rows at a time; None for a buffer that is written directly."""
        if self._copies is not None and index in self._parked:
            return Sent(self._copies, self._taken[index], self._like, most)
        return None

    def make_room(self, op: int) -> None:
        """Keep the op's memory plus the arena's idle pages within the plan's peak."""
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
        """Release this process's pages of offloaded buffers; their contents stay in the file."""
        for parked in self._parked.values():
            parked.release()

    def end_op(self, op: int, only: Container[int | None] | None = None) -> None:
        """Free an op's scratch memory, and the buffers that no later op reads, of all or ``only`` of these."""
        self._finish()
        self.scratch.clear()
        done = [index for index in self._taken if self._plan.buffers[index].last_op <= op]
        for index in done if only is None else [index for index in done if index in only]:
            del self._taken[index]
            self._parked.pop(index, None)

    def close(self) -> None:
        """Free all buffers."""
        self._finish()
        self._taken.clear()
        self._parked.clear()

    def _finish(self) -> None:
        """Make later computation wait for the copies, because it may reuse their memory."""
        if self._copies is not None:
            self._copies.finish()
