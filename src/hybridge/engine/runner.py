"""One module, and whichever way of running it fits: in strips, or as it is.

Takes and gives what the program does: latents in VAE space → a picture, a picture → the posterior's moments.  What
callers want around that (diffusers' outputs, normalised latents) is theirs.
"""

from __future__ import annotations

import logging

import torch
from torch import nn

from ..errors import CannotLower, RequestError
from . import reference
from .execute import Executor, Progress, ShouldStop
from .lowering import lower
from .plan import Mode, Plan, plan
from .program import Task

_log = logging.getLogger(__name__)

#: What a strip's window and result should take on a CPU.  Measured, see benchmarks/LOG.md.
CPU_STRIP_BYTES = 8 * 2**20

#: The modes that give the plain forward's picture within rounding.
WITHIN_ROUNDING: tuple[Mode, ...] = ("whole", "strips")


def strip_bytes(device_type: str) -> int | None:
    """What :func:`.plan.plan` should take as ``cache_bytes`` on such a device: ``cpu``, ``cuda``, …"""
    return CPU_STRIP_BYTES if device_type == "cpu" else None


class Runner:
    """A diffusers VAE, lowered once where that is possible.

    Args:
        module: It owns the weights.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._executors: dict[Task, Executor] = {}
        self._not_lowered: dict[Task, str] = {}
        self._lower("decode")
        self._lower("encode")

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self._module.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return next(self._module.parameters()).device

    def why_plain(self, task: Task) -> str | None:
        """Why this task runs as the plain module, whatever the budget; None if it does not."""
        if task in self._not_lowered:
            return self._not_lowered[task]
        dtypes = {parameter.dtype for parameter in self._module.parameters()}
        if len(dtypes) > 1:
            return f"its weights are of several dtypes: {', '.join(sorted(str(dtype) for dtype in dtypes))}"
        return None

    def plan(
        self,
        task: Task,
        batch: int,
        height: int,
        width: int,
        *,
        budget_bytes: int | None = None,
        modes: tuple[Mode, ...] = WITHIN_ROUNDING,
    ) -> Plan:
        """How an input (batch, C, height, width) would be run, and why.

        Args:
            task: ``decode`` or ``encode``.
            batch: Items.
            height: Of the latents for ``decode``, of the picture for ``encode``.
            width: The same.
            budget_bytes: What the call may take on top of the weights; None for no bound.
            modes: Those to choose from.

        Raises:
            RequestError: when the picture is too small.
            TooLarge: when nothing fits the budget; names the smallest that would.
            CannotLower: when the module cannot be planned; see :meth:`why_plain`.
        """
        reason = self.why_plain(task)
        if reason is not None:
            raise CannotLower(reason)
        return plan(
            self._executors[task].program,
            batch=batch,
            height=height,
            width=width,
            itemsize=self.dtype.itemsize,
            cache_bytes=strip_bytes(self.device.type),
            budget_bytes=budget_bytes,
            modes=modes,
        )

    def run(
        self,
        task: Task,
        source: torch.Tensor,
        *,
        budget_bytes: int | None = None,
        modes: tuple[Mode, ...] = WITHIN_ROUNDING,
        progress: Progress | None = None,
        should_stop: ShouldStop | None = None,
    ) -> torch.Tensor:
        """Latents (B, C, h, w) → a picture (B, 3, H, W), or a picture → moments (B, 2·C, h, w).

        A tiny autoencoder's ``encode`` gives latents (B, C, h, w) instead.

        Args:
            task: ``decode`` or ``encode``.
            source: On the weights' device and of their dtype.
            budget_bytes: As for :meth:`plan`.
            modes: As for :meth:`plan`.
            progress: Called with (strips done, strips in all) after every strip.
            should_stop: Asked after every strip; True ends the call.

        Raises:
            RequestError: when it is not what the module takes.
            TooLarge: when the budget is too small; nothing was allocated.
            Stopped: when ``should_stop`` said so.
        """
        reason = self.why_plain(task)
        if reason is not None:
            _log.debug("%s runs as the plain module: %s", task, reason)
            return self._plainly(task, source)
        executor = self._executors[task]
        if source.ndim != 4 or source.shape[1] != executor.program.channels[0]:
            raise RequestError(
                f"nothing that can be {task}d",
                saw=f"shape {list(source.shape)}",
                expected=f"[batch, {executor.program.channels[0]}, height, width]",
            )
        chosen = self.plan(task, source.shape[0], *source.shape[2:], budget_bytes=budget_bytes, modes=modes)
        _log.debug("%s in mode %s: %s", task, chosen.mode, chosen.reason)
        if chosen.mode == "whole":
            return self._plainly(task, source)
        return executor.run(source, chosen, progress=progress, should_stop=should_stop)

    def _plainly(self, task: Task, source: torch.Tensor) -> torch.Tensor:
        return (reference.decode if task == "decode" else reference.moments)(self._module, source)

    def _lower(self, task: Task) -> None:
        try:
            self._executors[task] = Executor(lower(self._module, task), self._module)
        except CannotLower as reason:
            self._not_lowered[task] = str(reason)
            _log.warning("%s runs as the plain module: %s", task, reason)
