"""Run one module in the mode that fits: in strips, or as it is.

Inputs and outputs are the program's: latents in VAE space → a picture, a picture → the posterior's moments.
Callers convert these to what they need (diffusers' outputs, normalised latents).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ..errors import CannotLower, RequestError, TooLarge
from . import reference
from .device_profile import device_profile_for
from .execution.call_context import without_autocast
from .execution.executor import Executor, Progress, ShouldStop
from .execution.film_executor import FilmExecutor
from .execution.parameters import ModuleParameters
from .execution.tiled_film_executor import TiledFilmExecutor
from .memory.device_memory import free_bytes
from .planning.film_plan import plan_film
from .planning.plan import WITHIN_ROUNDING, Mode, Plan, plan
from .planning.tiled_film_plan import plan_tiles
from .planning.weight_forms import prepared_bytes
from .program.folding import folded
from .program.lowering import lower
from .program.module_structure import Structure
from .program.program import Program, Task
from .vae_adapters import Call, adapter_of, mixed_with_noise, seeded, timestep_of

_Kind = TypeVar("_Kind", bound=Executor)

_log = logging.getLogger(__name__)

#: Part of a GPU's free memory that a call may take: convolutions take some memory that no plan counts.
_FREE_PART = 0.9

#: Free memory is rounded down to multiples of this, so that cached plans are reused.
_FREE_STEP_BYTES = 64 * 2**20

#: Number of plans that are cached, by size and budget: making one can take a tenth of a second.
_PLANS_KEPT = 256


class Runner:
    """A diffusers VAE, lowered to programs where possible, and lowered again when anything but its weights changes.

    Args:
        module: The module, which owns the weights.
        spill_to: The folder for activations that mode ``spill`` offloads on a CPU; None for the system's temporary
            folder.
        reads_weights: As for :class:`.execution.executor.Executor`.

    Attributes:
        takes_films: Whether inputs have frames, (B, C, T, h, w); known of modules that can be lowered.
    """

    def __init__(self, module: nn.Module, spill_to: Path | None = None, *, reads_weights: bool = True) -> None:
        self._module, self._spill_to, self._reads_weights = module, spill_to, reads_weights
        self._overflows = False
        self._looking = threading.Lock()
        self._plans: dict[Task, Callable[..., Plan]] = {}
        self._executors: dict[Task, Executor] = {}
        self._film_plans: dict[Task, Callable[..., Plan]] = {}
        self._film_executors: dict[Task, FilmExecutor] = {}
        self._not_lowered: dict[Task, str] = {}
        self.takes_films = False
        self._look()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the module alone; everything derived from it is made again."""
        return partial(type(self), reads_weights=self._reads_weights), (self._module, self._spill_to)

    @property
    def takes_time(self) -> bool:
        """Whether decoding in strips needs a timestep."""
        executor = self._executors.get("decode")
        return executor is not None and executor.program.takes_time

    @property
    def dtype(self) -> torch.dtype:
        """Taken from the weights."""
        return self._parameters.all()[0].dtype

    @property
    def device(self) -> torch.device:
        """Taken from the weights."""
        return self._parameters.all()[0].device

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return the module's current parameters."""
        return self._parameters.all()

    def why_plain(self, task: Task) -> str | None:
        """Return why this task runs as the plain module whatever the budget is; None if it can run in strips.

        The module is checked at every call, which takes a fifth of a millisecond.
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
        """Return the bytes kept in addition to the module's weights once both tasks have run in strips."""
        return sum(
            prepared_bytes(executor.program, device_profile_for(self.device.type, self.dtype))
            for task, executor in (self._executors | self._film_executors).items()
            if self.why_plain(task) is None
        )

    def plan(
        self,
        task: Task,
        batch: int,
        height: int,
        width: int,
        *,
        frames: int = 1,
        budget_bytes: int | None = None,
        modes: tuple[Mode, ...] = WITHIN_ROUNDING,
        frames_leave: bool = False,
    ) -> Plan:
        """Return the plan for an input (batch, C, height, width), or (batch, C, frames, …), and its reason.

        Args:
            task: ``decode`` or ``encode``.
            batch: Number of items.
            height: Height of the latents for ``decode``, of the picture for ``encode``.
            width: Width of the latents for ``decode``, of the picture for ``encode``.
            frames: Number of frames of the latents for ``decode``, of the video for ``encode``.
            budget_bytes: Bytes that the call may take on top of the weights; None for no bound, except that on a
                GPU a plan that fits in the free memory is preferred.
            modes: The modes to choose from.
            frames_leave: As for :func:`.plan_film`; a plan that gives frames early is preferred.

        Raises:
            RequestError: when the picture is too small.
            TooLarge: when no plan fits the budget; it names the smallest budget that would do.
            CannotLower: when the module cannot be planned; see :meth:`why_plain`.
        """
        reason = self.why_plain(task)
        if reason is not None:
            raise CannotLower(reason)
        is_film = self.takes_films and frames != 1
        frames_leave = frames_leave and is_film and self.dtype != torch.float16  # which may overflow, see below
        early = tuple(mode for mode in modes if mode in ("whole", "frames"))
        is_tiled = is_film and self._film_executors[task].program.tiles is not None  # then they leave in any mode
        if frames_leave and not is_tiled and "frames" in early and early != modes:
            with suppress(TooLarge):
                return self.plan(
                    *(task, batch, height, width),
                    frames=frames,
                    budget_bytes=budget_bytes,
                    modes=early,
                    frames_leave=True,
                )
        given: dict[str, Any] = {"tile": self._tile(task)}
        if is_film:
            given = {"frames": frames, "frames_leave": frames_leave}
        if not is_film and self._executors[task].program.is_film:
            given = {"frames": 1}
        within = partial(
            self._film_plans[task] if is_film else self._plans[task],
            batch=batch,
            height=height,
            width=width,
            arithmetic=device_profile_for(self.device.type, self._stored),
            modes=self._without_overflow(modes),
            **given,
        )
        free = free_bytes(self.device) if budget_bytes is None else None
        if free is None:
            return within(budget_bytes=budget_bytes)
        try:
            return within(budget_bytes=max(1, int(_FREE_PART * free) // _FREE_STEP_BYTES * _FREE_STEP_BYTES))
        except TooLarge as refusal:  # the caller set no bound: the device decides whether the smallest plan fits
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
        call: Call | None = None,
    ) -> torch.Tensor:
        """Decode latents (B, C, h, w) to pictures (B, 3, H, W), or encode pictures to moments (B, 2·C, h, w).

        A tiny autoencoder's ``encode`` gives latents (B, C, h, w) instead.  A module with frames takes and gives
        (B, C, T, H, W).

        Args:
            task: ``decode`` or ``encode``.
            source: The input, on the weights' device, of any floating dtype; the output has the weights' dtype.
            budget_bytes: As for :meth:`plan`.
            modes: As for :meth:`plan`.
            progress: Called with (strips done, strips in total) after every strip.
            should_stop: Called after every strip; True ends the call.
            call: How the plain module is called, if it comes to that.

        Raises:
            RequestError: when the module cannot take this input.
            TooLarge: when the budget is too small; nothing was allocated.
            Stopped: when ``should_stop`` returned True.
            OutOfMemory: in mode ``spill``, when there is no room to offload activations.
        """
        call = call or Call(is_bitwise=False)
        reason = self.why_plain(task)
        if reason is not None:
            _log.debug("%s runs as the plain module: %s", task, reason)
            return adapter_of(self._module).run(self._module, task, source, call)
        if self.takes_films and modes == ("whole",):  # whose memory the caller has counted
            return self._whole_film(task, source, call)
        executor = self._executors[task]
        self.check_numbers(task, source)
        if source.ndim != 4 + self.takes_films or source.shape[1] != executor.program.channels[0]:
            frames = "frames, " if self.takes_films else ""
            raise RequestError(
                f"nothing that can be {task}d",
                saw=f"shape {list(source.shape)}",
                expected=f"[batch, {executor.program.channels[0]}, {frames}height, width]",
            )
        if task == "decode" and call.chunk is not None and adapter_of(self._module).has_frames_in_batch:
            bounds: Any = {"budget_bytes": budget_bytes, "modes": modes, "should_stop": should_stop}
            parts = torch.split(source, call.chunk, dim=2)
            call = replace(call, chunk=None)
            return torch.cat([self.run(task, part, progress=progress, call=call, **bounds) for part in parts], 2)
        chosen = self._plan_for(task, source, budget_bytes, modes, call)
        _log.debug("%s in mode %s: %s", task, chosen.mode, chosen.reason)
        source = source.to(self.dtype)
        with without_autocast(source.device.type):
            made = self._as_planned(chosen, task, source, progress, should_stop, call)
        if source.dtype != torch.float16 or bool(torch.isfinite(made).all()):
            return made
        if self._overflows or modes == ("whole",):
            return made  # the overflow is not due to float16, or the caller asked for this mode
        del made
        _log.warning("%s overflowed float16; activations are kept in bfloat16 from now on", task)
        self._overflows = True
        return self.run(
            task,
            source,
            budget_bytes=budget_bytes,
            modes=modes,
            progress=progress,
            should_stop=should_stop,
            call=call,
        )

    def _plan_for(
        self, task: Task, source: torch.Tensor, budget_bytes: int | None, modes: tuple[Mode, ...], call: Call
    ) -> Plan:
        frames = source.shape[2] if self.takes_films else 1
        size = source.shape[0], *source.shape[-2:]
        bounds: dict[str, Any] = {"budget_bytes": budget_bytes, "modes": modes}
        return self.plan(task, *size, frames=frames, frames_leave=call.on_chunk is not None, **bounds)

    def check_numbers(self, task: Task, source: torch.Tensor) -> None:
        """Raise a RequestError unless the input holds floating-point numbers on the weights' device."""
        if not source.is_floating_point() or source.device != self.device:
            raise RequestError(
                f"nothing that can be {task}d",
                saw=f"{source.dtype} on {source.device}",
                expected=f"floating-point numbers on {self.device}",
            )

    @property
    def _stored(self) -> torch.dtype:
        """Return the dtype of stored activations: the weights' dtype, except for float16 that has overflowed."""
        return torch.bfloat16 if self._overflows and self.dtype == torch.float16 else self.dtype

    def _without_overflow(self, modes: tuple[Mode, ...]) -> tuple[Mode, ...]:
        """Once float16 has overflowed, return only the modes that can store activations in another dtype."""
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
        call: Call,
    ) -> torch.Tensor:
        if chosen.mode == "whole" and self.takes_films:
            return self._whole_film(task, source, call)
        if chosen.mode == "whole":
            return reference.untiled(self._module, task, source)
        if chosen.mode == "tiles":
            return reference.tiled(self._module, task, source)
        # Frames of float16 may overflow, and are then computed again: they are not final.
        deliver = None if source.dtype == torch.float16 else call.on_chunk
        run: Callable[..., torch.Tensor] = self._executors[task].run
        if self.takes_films and source.shape[2] > 1:
            run = self._film_executors[task].run
        # A film of one frame may run as a picture, and a picture as a film of one frame.
        runs_films = bool(chosen.sections)
        if runs_films:
            run = partial(run, deliver=deliver)
            source = source if self.takes_films else source[:, :, None]
        elif self.takes_films:
            source = source[:, :, 0]
        with ExitStack() as context:
            if task == "decode" and self.takes_time:
                run = partial(run, timestep=timestep_of(self._module, source, call))
                source = mixed_with_noise(self._module, source, call)
                context.enter_context(seeded(self._module, source, call))
            made = run(source.to(self._stored), chosen, progress=progress, should_stop=should_stop).to(source.dtype)
        if runs_films == self.takes_films:
            return made
        return made[:, :, 0] if runs_films else made[:, :, None]

    def _whole_film(self, task: Task, source: torch.Tensor, call: Call) -> torch.Tensor:
        with reference.without_tiling(self._module):
            return adapter_of(self._module).run(self._module, task, source, call)

    def _tile(self, task: Task) -> tuple[int, int] | None:
        """Return (height, width) of the module's own tiles, in latents or in pixels."""
        name = "tile_latent_min_size" if task == "decode" else "tile_sample_min_size"
        side = getattr(self._module, name, None)
        return None if side is None else (int(side), int(side))

    def _look(self) -> None:
        """Lower the module as it is now."""
        self._structure = Structure(self._module)
        self._parameters = ModuleParameters(self._module)
        self.takes_films = False
        self._lower("decode")
        self._lower("encode")

    def _lower(self, task: Task) -> None:
        known = self._not_lowered.pop(task, None)
        try:
            program = lower(self._module, task)
        except CannotLower as reason:
            self._executors.pop(task, None)
            self._film_executors.pop(task, None)
            self._not_lowered[task] = str(reason)
            if known != str(reason):
                _log.warning("%s runs as the plain module: %s", task, reason)
        else:
            self.takes_films = program.is_film and not program.is_of_pictures
            if self.takes_films:
                films = self._film_executors.get(task)
                if films is None or films.program != program:
                    self._film_plans[task] = lru_cache(_PLANS_KEPT)(partial(_film_planner(program), program))
                self._film_executors[task] = self._make(_film_kind(program), program)
            program = folded(program)
            before = self._executors.get(task)
            if before is None or before.program != program:
                makes = _film_planner(program) if program.is_film else plan
                self._plans[task] = lru_cache(_PLANS_KEPT)(partial(makes, program))
            self._executors[task] = self._make(_film_kind(program) if program.is_film else Executor, program)

    def _make(self, kind: type[_Kind], program: Program) -> _Kind:
        return kind(program, self._module, self._spill_to, reads_weights=self._reads_weights)


def _film_planner(program: Program) -> Callable[..., Plan]:
    return plan_film if program.tiles is None else plan_tiles


def _film_kind(program: Program) -> type[FilmExecutor]:
    return FilmExecutor if program.tiles is None else TiledFilmExecutor
