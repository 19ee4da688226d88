"""One module, and whichever way of running it fits: in strips, or as it is.

Takes and gives what the program does: latents in VAE space → a picture, a picture → the posterior's moments.  What
callers want around that (diffusers' outputs, normalised latents) is theirs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CannotLower, RequestError, TooLarge
from . import reference
from .execution.call_context import without_autocast
from .execution.executor import Executor, Progress, ShouldStop
from .execution.parameters import ModuleParameters
from .kernels.compiled import multiplies_bfloat16, multiplies_float32
from .memory.device_memory import free_bytes
from .planning.conv_algorithms import TRANSFORM_FROM_CHANNELS, Arithmetic
from .planning.plan import WITHIN_ROUNDING, Mode, Plan, plan
from .planning.weight_forms import prepared_bytes
from .program.lowering import lower
from .program.module_structure import Structure
from .program.program import Task

_log = logging.getLogger(__name__)

#: What a strip's numbers should take on a CPU.  Measured, see benchmarks/LOG.md.
CPU_STRIP_BYTES = 16 * 2**20

#: Positions that a thread of a CPU attends with in one strip: twice what torch gives it at a time.
_ATTENDED_BY_A_THREAD = 512

#: Of a GPU's free memory a call may take this part: convolutions take some that no plan knows of.
_FREE_PART = 0.9

#: Free memory is counted in such steps, so that plans are found again.
_FREE_STEP_BYTES = 64 * 2**20

#: Plans for as many sizes and budgets are remembered: making one can take a tenth of a second.
_PLANS_KEPT = 256


def arithmetic_for(device_type: str, dtype: torch.dtype) -> Arithmetic:
    """How activations of this dtype are computed on such a device: ``cpu``, ``cuda``, …

    A CPU multiplies float32 in strips and with transforms.  Half precision is widened to that strip by strip, which
    is faster there than its own arithmetic and rounds less, unless the CPU has matrix instructions for it (AMX).
    Some of bfloat16 is multiplied as it is where that takes half of the time;
    see :func:`.planning.conv_algorithms.way_of`.

    With AVX-512, torch's float32 convolutions are four times as close to float64 as with AVX2.  Ours are made to be
    no further from it there, too, and take more time for that.
    """
    stored = dtype.itemsize
    if device_type == "cuda":
        return Arithmetic(stored, stored, measured_positions=None)
    if device_type != "cpu":
        return Arithmetic(stored, stored)
    attended = _ATTENDED_BY_A_THREAD * torch.get_num_threads()
    if stored < torch.float32.itemsize and _has_matrix_instructions(dtype):
        return Arithmetic(stored, stored, CPU_STRIP_BYTES, attended_positions=attended)
    computed = max(stored, torch.float32.itemsize)
    return Arithmetic(
        stored,
        computed,
        CPU_STRIP_BYTES,
        TRANSFORM_FROM_CHANNELS,
        attended_positions=attended,
        multiplies_float32=dtype == torch.float32 and multiplies_float32(),
        multiplies_bfloat16=dtype == torch.bfloat16 and multiplies_bfloat16(),
        is_fine=dtype == torch.float32 and torch.backends.cpu.get_cpu_capability() == "AVX512",
    )


def _has_matrix_instructions(dtype: torch.dtype) -> bool:
    names = {torch.bfloat16: "_is_amx_tile_supported", torch.float16: "_is_amx_fp16_supported"}
    supported = getattr(torch.cpu, names.get(dtype, ""), None)  # torch has no public name for it
    return supported is not None and bool(supported())


class Runner:
    """A diffusers VAE, lowered where that is possible, and again when anything but its weights has changed.

    Args:
        module: It owns the weights.
        spill_to: The folder in which mode ``spill`` parks activations on a CPU; None for the temporary one.
        reads_weights: As for :class:`.execution.executor.Executor`.
    """

    def __init__(self, module: nn.Module, spill_to: Path | None = None, *, reads_weights: bool = True) -> None:
        self._module, self._spill_to, self._reads_weights = module, spill_to, reads_weights
        self._overflows = False
        self._looking = threading.Lock()
        self._plans: dict[Task, Callable[..., Plan]] = {}
        self._executors: dict[Task, Executor] = {}
        self._not_lowered: dict[Task, str] = {}
        self._look()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are made of the module; what follows from it is made again."""
        return partial(type(self), reads_weights=self._reads_weights), (self._module, self._spill_to)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self._parameters.all()[0].dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self._parameters.all()[0].device

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The module's, as they are at the moment."""
        return self._parameters.all()

    def why_plain(self, task: Task) -> str | None:
        """Why this task runs as the plain module, whatever the budget; None if it does not.

        The module is looked at anew, which takes a fifth of a millisecond.
        """
        with self._looking:  # a server plans in one thread while another runs
            if not self._structure.is_as_it_was():
                self._look()
        if task in self._not_lowered:
            return self._not_lowered[task]
        parameters = self._parameters.all()
        dtypes = {parameter.dtype for parameter in parameters}
        if len(dtypes) > 1:
            return f"its weights are of several dtypes: {', '.join(sorted(str(dtype) for dtype in dtypes))}"
        if not self.dtype.is_floating_point or self.dtype.itemsize == 1:
            return f"its weights are {self.dtype}"
        devices = {parameter.device for parameter in parameters}
        if len(devices) > 1 or self.device.type == "meta":
            return f"its weights are on {', '.join(sorted(str(device) for device in devices))}"
        others = {type(parameter).__name__ for parameter in parameters} - {"Parameter", "Tensor"}
        if others:
            return f"its weights are kept as {', '.join(sorted(others))}"
        return None

    @property
    def prepared_bytes(self) -> int:
        """What is kept beside the module's weights once both tasks have run in strips."""
        return sum(
            prepared_bytes(executor.program, arithmetic_for(self.device.type, self.dtype))
            for task, executor in self._executors.items()
            if self.why_plain(task) is None
        )

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
            budget_bytes: What the call may take on top of the weights; None for no bound, but that on a GPU what is
                free is not passed where anything fits that.
            modes: Those to choose from.

        Raises:
            RequestError: when the picture is too small.
            TooLarge: when nothing fits the budget; names the smallest that would.
            CannotLower: when the module cannot be planned; see :meth:`why_plain`.
        """
        reason = self.why_plain(task)
        if reason is not None:
            raise CannotLower(reason)
        within = partial(
            self._plans[task],
            batch=batch,
            height=height,
            width=width,
            arithmetic=arithmetic_for(self.device.type, self._stored),
            modes=self._without_overflow(modes),
            tile=self._tile(task),
        )
        free = free_bytes(self.device) if budget_bytes is None else None
        if free is None:
            return within(budget_bytes=budget_bytes)
        try:
            return within(budget_bytes=max(1, int(_FREE_PART * free) // _FREE_STEP_BYTES * _FREE_STEP_BYTES))
        except TooLarge as refusal:  # nobody has bounded it: the device will say whether it has room for the least
            return within(budget_bytes=refusal.least_bytes)

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
            source: On the weights' device, of any floating dtype; it is answered in the weights' dtype.
            budget_bytes: As for :meth:`plan`.
            modes: As for :meth:`plan`.
            progress: Called with (strips done, strips in all) after every strip.
            should_stop: Asked after every strip; True ends the call.

        Raises:
            RequestError: when it is not what the module takes.
            TooLarge: when the budget is too small; nothing was allocated.
            Stopped: when ``should_stop`` said so.
            OutOfMemory: in mode ``spill``, when there is no room to park activations.
        """
        reason = self.why_plain(task)
        if reason is not None:
            _log.debug("%s runs as the plain module: %s", task, reason)
            return self._plainly(task, source)
        executor = self._executors[task]
        self.check_numbers(task, source)
        if source.ndim != 4 or source.shape[1] != executor.program.channels[0]:
            raise RequestError(
                f"nothing that can be {task}d",
                saw=f"shape {list(source.shape)}",
                expected=f"[batch, {executor.program.channels[0]}, height, width]",
            )
        chosen = self.plan(task, source.shape[0], *source.shape[2:], budget_bytes=budget_bytes, modes=modes)
        _log.debug("%s in mode %s: %s", task, chosen.mode, chosen.reason)
        source = source.to(self.dtype)
        with without_autocast(source.device.type):
            made = self._as_planned(chosen, task, source, progress, should_stop)
        if source.dtype != torch.float16 or bool(torch.isfinite(made).all()):
            return made
        if self._overflows or modes == ("whole",):
            return made  # that is not for being kept in float16, or it was asked for
        del made
        _log.warning("%s overflowed float16; activations are kept in bfloat16 from now on", task)
        self._overflows = True
        return self.run(
            task, source, budget_bytes=budget_bytes, modes=modes, progress=progress, should_stop=should_stop
        )

    def check_numbers(self, task: Task, source: torch.Tensor) -> None:
        """Raises a RequestError unless this holds floating-point numbers on the weights' device."""
        if not source.is_floating_point() or source.device != self.device:
            raise RequestError(
                f"nothing that can be {task}d",
                saw=f"{source.dtype} on {source.device}",
                expected=f"floating-point numbers on {self.device}",
            )

    @property
    def _stored(self) -> torch.dtype:
        """What activations are kept in: the weights' dtype, but for float16 that has overflowed."""
        return torch.bfloat16 if self._overflows and self.dtype == torch.float16 else self.dtype

    def _without_overflow(self, modes: tuple[Mode, ...]) -> tuple[Mode, ...]:
        """Those that can keep activations in another dtype than the weights', once those have overflowed."""
        if self._stored == self.dtype:
            return modes
        return tuple(mode for mode in modes if mode not in ("whole", "tiles")) or modes

    def _as_planned(
        self,
        chosen: Plan,
        task: Task,
        source: torch.Tensor,
        progress: Progress | None,
        should_stop: ShouldStop | None,
    ) -> torch.Tensor:
        if chosen.mode == "whole":
            return reference.untiled(self._module, task, source)
        if chosen.mode == "tiles":
            return reference.tiled(self._module, task, source)
        executor = self._executors[task]
        made = executor.run(source.to(self._stored), chosen, progress=progress, should_stop=should_stop)
        return made.to(source.dtype)

    def _tile(self, task: Task) -> tuple[int, int] | None:
        """The side of the module's own tiles, in latents or in pixels."""
        name = "tile_latent_min_size" if task == "decode" else "tile_sample_min_size"
        side = getattr(self._module, name, None)
        return None if side is None else (int(side), int(side))

    def _plainly(self, task: Task, source: torch.Tensor) -> torch.Tensor:
        return (reference.decode if task == "decode" else reference.moments)(self._module, source)

    def _look(self) -> None:
        """Takes the module for what it is now."""
        self._structure = Structure(self._module)
        self._parameters = ModuleParameters(self._module)
        self._lower("decode")
        self._lower("encode")

    def _lower(self, task: Task) -> None:
        known = self._not_lowered.pop(task, None)
        try:
            program = lower(self._module, task)
        except CannotLower as reason:
            self._executors.pop(task, None)
            self._not_lowered[task] = str(reason)
            if known != str(reason):
                _log.warning("%s runs as the plain module: %s", task, reason)
        else:
            before = self._executors.get(task)
            if before is None or before.program != program:
                self._plans[task] = lru_cache(_PLANS_KEPT)(partial(plan, program))
            make = partial(Executor, reads_weights=self._reads_weights)
            self._executors[task] = make(program, self._module, self._spill_to)
