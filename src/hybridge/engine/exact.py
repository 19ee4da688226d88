"""A drop-in for a pipeline's VAE that decodes and encodes untiled, within a memory budget.

::

    pipe.vae = hybridge.exact(pipe.vae, budget="2GiB")

Every call is planned for its shape: it runs in strips where that is faster or where the budget requires it, and as
the module's own forward otherwise.  A module that cannot run in strips runs as it is; :meth:`ExactVAE.why_plain`
says why.
"""

from __future__ import annotations

import inspect
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from ..errors import RequestError
from ..units import parse_bytes
from .encoded_output import encoded_output
from .execution.call_context import autocasts, is_recorded, why_not_now
from .execution.executor import Progress, ShouldStop
from .memory.offload import check_folder
from .planning.plan import IN_MEMORY, WITHIN_ROUNDING, Mode, Plan
from .program.program import Task
from .runner import Runner
from .vae_adapters import Call, adapter_of
from .wrapped_forward import ItsForward

_log = logging.getLogger(__name__)

#: The argument of ``decode`` that some programs need and others do not have.
_TIMESTEP = "temb"

#: The argument of ``decode`` of classes that take frames as items of a batch.
_FRAMES = "num_frames"

#: Arguments of ``decode`` and ``encode`` that programs do not have.
_OTHER = ("causal",)


def exact(
    vae: nn.Module, budget: int | str | None = None, *, spill: bool | str | os.PathLike[str] = True
) -> ExactVAE:
    """Wrap a diffusers VAE so that it runs untiled within ``budget``.

    The pictures equal those of ``vae`` without tiling in space and time, within rounding; see
    :mod:`.execution.executor`.  Of AutoencoderKLAllegro, whose tiles are part of the model, they equal its own.

    Args:
        vae: An AutoencoderKL, AutoencoderKLFlux2, AutoencoderTiny, AutoencoderKLQwenImage,
            AutoencoderKLHunyuanImage, AutoencoderKLWan, AutoencoderKLHunyuanVideo, AutoencoderKLHunyuanVideo15,
            AutoencoderKLMagvit, AutoencoderKLCogVideoX, AutoencoderKLMochi, AutoencoderKLLTXVideo,
            AutoencoderKLLTX2Video, AutoencoderKLTemporalDecoder, AutoencoderKLKVAE, AutoencoderKLKVAEVideo,
            AutoencoderKLCosmos, AutoencoderKLAllegro or AutoencoderDC; any other module is run as it is.  If it is
            an ExactVAE, the module that it wraps is used.
        budget: Bytes that one call may take on top of the weights, input and output included: a number, or a string
            such as ``"2GiB"`` or ``"800MiB"``.  None means the memory that is free at the time of the call, on a
            GPU and on a CPU where a container or ``ulimit`` bounds the process; elsewhere no bound.  The
            transformed copies of the weights, which the first call in strips makes and keeps, are not counted;
            ``hybridge plan`` prints their size.
        spill: Whether activations may be offloaded when nothing else fits the budget: on a CPU to an unnamed file
            in this folder, or in the system's temporary folder for True; on a GPU to the host's memory.  A
            temporary folder that lies in memory, as ``/tmp`` does on some systems, saves no memory.

    Raises:
        RequestError: when ``vae`` is not a module, the budget is not a size, or the folder does not exist.
    """
    if isinstance(vae, ExactVAE):
        vae = vae.vae
    if not isinstance(vae, nn.Module):
        hint = "its VAE: exact(pipe.vae)" if hasattr(vae, "vae") else None
        raise RequestError("not a VAE", saw=type(vae).__name__, expected="a module of diffusers", hint=hint)
    folder = None if isinstance(spill, bool) else check_folder(spill)
    modes = WITHIN_ROUNDING if spill is not False else IN_MEMORY
    return ExactVAE(vae, None if budget is None else parse_bytes(budget), modes, folder)


class ExactVAE(nn.Module):
    """A VAE that replaces a pipeline's own; made by :func:`exact`.

    ``isinstance`` also accepts it as the wrapped module's class.  It has the wrapped module's parts and weights
    under their own names; any other attribute is looked up, set and deleted in the wrapped module.

    Attributes:
        vae: The wrapped module; it owns the weights.
        budget_bytes: Bytes that one call may take on top of the weights, or None.
        modes: Modes of running that a call may use.
    """

    vae: nn.Module
    forward = ItsForward()

    def __init__(
        self,
        vae: nn.Module,
        budget_bytes: int | None = None,
        modes: tuple[Mode, ...] = WITHIN_ROUNDING,
        spill_to: Path | None = None,
    ) -> None:
        super().__init__()
        self.__dict__["vae"] = vae  # not as a submodule: its submodules become this module's own
        for name in ("_modules", "_parameters", "_buffers"):
            self.__dict__[name] = getattr(vae, name)
        self.__dict__["__module__"] = type(vae).__module__  # pipelines save this together with the class's name
        self.budget_bytes = budget_bytes
        self.modes = modes
        self._runner = Runner(vae, spill_to)
        self._told: set[tuple[Task, str]] = set()
        if self._replaces_tiling and self.use_tiling:
            self.disable_tiling()

    @property  # type: ignore[misc] # it cannot be set
    def __class__(self) -> Any:
        """The wrapped module's class, for ``isinstance`` in pipelines; ``type`` returns the real class."""
        vae = self.__dict__.get("vae")
        return ExactVAE if vae is None else type(vae)

    def __reduce__(self) -> tuple[Any, ...]:
        """Name the real class, because copying and pickling would otherwise use ``__class__``."""
        return _blank, (), self.__dict__

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "vae" not in self.__dict__:
                raise
            return getattr(self.vae, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_of_the_vae(name):
            setattr(self.vae, name, value)
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if self._is_of_the_vae(name):
            delattr(self.vae, name)
        else:
            super().__delattr__(name)

    def _is_of_the_vae(self, name: str) -> bool:
        vae = self.__dict__.get("vae")
        is_own = name in self.__dict__ or isinstance(getattr(ExactVAE, name, None), property)
        return vae is not None and not is_own and name in vars(vae)

    def _get_name(self) -> str:
        return ExactVAE.__name__

    @property
    def config(self) -> Any:
        """The wrapped module's."""
        return self.vae.config

    @property
    def dtype(self) -> torch.dtype:
        """The wrapped module's."""
        return self.vae.dtype  # type: ignore[return-value] # diffusers' modules have one

    @property
    def device(self) -> torch.device:
        """The wrapped module's."""
        return self.vae.device  # type: ignore[return-value] # diffusers' modules have one

    @property
    def training(self) -> bool:
        """The wrapped module's."""
        return self.vae.training

    @training.setter
    def training(self, mode: bool) -> None:
        if "vae" in self.__dict__:  # torch sets it before
            self.vae.training = mode

    @property
    def use_tiling(self) -> bool:
        """False; for a wrapped module that never runs in strips, that module's own value."""
        return bool(getattr(self.vae, "use_tiling", False))

    @use_tiling.setter
    def use_tiling(self, wanted: bool) -> None:
        self.enable_tiling() if wanted else self.disable_tiling()

    def to(self, *args: Any, **kwargs: Any) -> ExactVAE:
        """Move or convert the wrapped module with its own ``to``."""
        self.vae.to(*args, **kwargs)
        return self

    def why_plain(self, task: Task, source: torch.Tensor | None = None) -> str | None:
        """Return why this task runs as the plain module whatever the budget is; None if it can run in strips.

        Args:
            task: ``decode`` or ``encode``.
            source: The input that would be decoded or encoded; without it, only the module is checked.
        """
        reason = self._runner.why_plain(task)
        if reason is not None or source is None:
            return reason
        return why_not_now(source, self._runner.parameters)

    def plan(self, task: Task, batch: int, height: int, width: int, frames: int = 1) -> Plan:
        """Return the plan for an input (batch, C, height, width), or with frames, and its reason.

        Args:
            task: ``decode`` or ``encode``.
            batch: Number of items.
            height: Height of the latents for ``decode``, of the picture for ``encode``.
            width: Width of the latents for ``decode``, of the picture for ``encode``.
            frames: Frames of the latents for ``decode``, of the video for ``encode``.

        Raises:
            RequestError: when the picture is too small.
            TooLarge: when no plan fits the budget; it names the smallest budget that would do.
            CannotLower: when the module cannot be planned; see :meth:`why_plain`.
        """
        options: Any = {"budget_bytes": self.budget_bytes, "modes": self.modes}
        return self._runner.plan(task, batch, height, width, frames=frames, **options)

    @apply_forward_hook  # type: ignore[untyped-decorator] # lets accelerate bring the weights to the device
    def decode(
        self, *given: Any, progress: Progress | None = None, should_stop: ShouldStop | None = None, **named: Any
    ) -> Any:
        """Decode latents (B, C, h, w) in VAE space to a DecoderOutput with ``sample`` (B, 3, H, W), or to a tuple.

        Latents may have any floating dtype; the picture has the module's.  A wrapped module of another kind returns
        the result of its own ``decode``.

        Args:
            given: Positional arguments of the wrapped module's ``decode``.
            progress: Called with (strips done, strips in total) after every strip.
            should_stop: Called after every strip; True ends the call.
            named: Keyword arguments of the wrapped module's ``decode``.

        Raises:
            RequestError: for integers, and when strips would run on latents that have another shape, are on another
                device, or contain NaN or infinity.
            TooLarge: when the budget is too small; nothing was allocated.
            Stopped: when ``should_stop`` returned True.
        """
        answer = self._in_strips("decode", given, named, progress, should_stop)
        if isinstance(answer, _Plain):
            return self.vae.decode(*answer.given, **answer.named)  # type: ignore[operator] # diffusers' own
        sample, return_dict = answer
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode(
        self, *given: Any, progress: Progress | None = None, should_stop: ShouldStop | None = None, **named: Any
    ) -> Any:
        """Encode a picture (B, 3, H, W) in [-1, 1]; return the same type as the wrapped module's ``encode``.

        That is an AutoencoderKLOutput with a ``latent_dist``, an AutoencoderTinyOutput with ``latents`` or an
        EncoderOutput with ``latent``, or a tuple of it.  Arguments and errors are those of :meth:`decode`.
        """
        answer = self._in_strips("encode", given, named, progress, should_stop)
        if isinstance(answer, _Plain):
            return self.vae.encode(*answer.given, **answer.named)  # type: ignore[operator] # diffusers' own
        encoded, return_dict = answer
        return encoded_output(type(self.vae).__name__, encoded, return_dict=return_dict)

    @property
    def has_strips(self) -> bool:
        """Whether a task can run in strips."""
        tasks: tuple[Task, ...] = ("decode", "encode")
        return any(self._runner.why_plain(task) is None for task in tasks)

    @property
    def _replaces_tiling(self) -> bool:
        """Whether a task can run in strips, of a class that runs without tiling as well."""
        return self.has_strips and not adapter_of(self.vae).always.get("use_tiling")

    def enable_tiling(self, *sizes: Any, **named: Any) -> None:
        """Do nothing where a task can run in strips: tiling changes the picture; the budget bounds the memory.

        Of a class that always blends tiles (AutoencoderKLAllegro), strips compute these tiles, and the wrapped
        module's own forward needs this call.
        """
        if self._replaces_tiling:
            _log.warning(
                "tiling stays off: strips bound the memory without changing the picture; set a budget instead"
            )
            return
        self.vae.enable_tiling(*sizes, **named)  # type: ignore[operator] # diffusers' own

    def disable_tiling(self) -> None:
        """Turn off the wrapped module's own tiling."""
        self.vae.disable_tiling()  # type: ignore[operator] # diffusers' own

    def _in_strips(
        self,
        task: Task,
        given: tuple[Any, ...],
        named: dict[str, Any],
        progress: Progress | None,
        should_stop: ShouldStop | None,
    ) -> _Plain | tuple[torch.Tensor, bool]:
        """Return (output, ``return_dict``), or the arguments for the wrapped module's own method."""
        if is_recorded() or not (given or named):
            return _Plain(given, named)
        reason = self._runner.why_plain(task)
        if reason is None:
            asked = inspect.signature(getattr(self.vae, task)).bind(*given, **named).arguments
            source = next(iter(asked.values()))
            if isinstance(source, torch.Tensor) and not source.is_floating_point():
                self._runner.check_numbers(task, source)
            reason = why_not_now(source, self._runner.parameters)
            reason = reason or self._why_other(task, asked)
            if reason is None:
                call = Call(is_bitwise=False, temb=asked.get(_TIMESTEP), frames=asked.get(_FRAMES) or 1)
                return self._run(task, source, progress, should_stop, call), bool(asked.get("return_dict", True))
            self._tell(task, reason)
        if given:
            return _Plain((self._converted(given[0]), *given[1:]), named)
        first = next(iter(inspect.signature(getattr(self.vae, task)).parameters))
        return _Plain((), {name: self._converted(one) if name == first else one for name, one in named.items()})

    @torch.no_grad()
    def _run(
        self,
        task: Task,
        source: torch.Tensor,
        progress: Progress | None,
        should_stop: ShouldStop | None,
        call: Call,
    ) -> torch.Tensor:
        self._runner.check_numbers(task, source)
        source = source.to(self._runner.dtype)
        in_batch = call.frames if adapter_of(self.vae).has_frames_in_batch else None
        if in_batch is not None:
            source = source.reshape(-1, in_batch, *source.shape[1:]).transpose(1, 2)
        if not bool(torch.isfinite(source).all()):
            what = "latents" if task == "decode" else "pixels"
            hint = "a look at where they are made: float16 overflows, for one"
            raise RequestError(f"the {what} hold NaN or infinity", saw=f"{list(source.shape)}", hint=hint)
        made = self._runner.run(
            task,
            source,
            budget_bytes=self.budget_bytes,
            modes=self.modes,
            progress=progress,
            should_stop=should_stop,
            call=call,
        )
        if task == "decode" and adapter_of(self.vae).gives_frames_first:
            return made.transpose(1, 2)
        return made if in_batch is None else made.transpose(1, 2).flatten(0, 1)

    def _why_other(self, task: Task, asked: dict[str, Any]) -> str | None:
        """Return which argument of a call asks for another computation, or is missing; None if none is."""
        has_time = asked.get(_TIMESTEP) is not None
        frames = asked.get(_FRAMES)
        if frames is not None and (frames < 1 or len(next(iter(asked.values()))) % frames):
            return f"it is called with {_FRAMES}={frames} for another number"
        if task == "decode" and has_time != self._runner.takes_time:
            return f"it is called with {_TIMESTEP}" if has_time else f"it is called without {_TIMESTEP}"
        return next((f"it is called with {name}" for name in _OTHER if asked.get(name) is not None), None)

    def _converted(self, source: Any) -> Any:
        """Return floating-point input in the module's dtype, where it has one and autocast is off."""
        dtypes = {parameter.dtype for parameter in self._runner.parameters}
        if len(dtypes) != 1 or not isinstance(source, torch.Tensor) or not source.is_floating_point():
            return source
        [dtype] = dtypes
        is_left = autocasts(source.device.type) or not dtype.is_floating_point
        return source if is_left or dtype.itemsize == 1 else source.to(dtype)

    def _tell(self, task: Task, reason: str) -> None:
        if (task, reason) not in self._told:
            self._told.add((task, reason))
            _log.warning("%s runs as the plain module: %s", task, reason)


@dataclass(frozen=True, slots=True)
class _Plain:
    """A call for the wrapped module's own method."""

    given: tuple[Any, ...]
    named: dict[str, Any]


def _blank() -> ExactVAE:
    return ExactVAE.__new__(ExactVAE)
