"""A drop-in for a pipeline's VAE that decodes and encodes untiled, within a memory budget.

::

    pipe.vae = hybridge.exact(pipe.vae, budget="2GiB")

Every call is planned for its shape: in strips where that is faster or where the budget asks for it, else as the
module's own forward.  What cannot run in strips runs as the plain module; :meth:`ExactVAE.why_plain` says why.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from ..errors import RequestError
from ..units import parse_bytes
from .execute import Progress, ShouldStop
from .plan import IN_MEMORY, WITHIN_ROUNDING, Mode, Plan
from .program import Task
from .runner import Runner

_log = logging.getLogger(__name__)


def exact(
    vae: nn.Module, budget: int | str | None = None, *, spill: bool | str | os.PathLike[str] = True
) -> ExactVAE:
    """Wraps a diffusers VAE so that it runs untiled within ``budget``.

    The pictures are those of ``vae`` without tiling, within rounding; see :mod:`.execute`.

    Args:
        vae: An AutoencoderKL, AutoencoderKLFlux2 or AutoencoderTiny; any other module is run as it is.  Of an
            ExactVAE the wrapped module is taken.
        budget: Bytes that one call may take on top of the weights, input and output included: a number, or a string
            such as ``"2GiB"`` or ``"800MiB"``.  None for no bound on a CPU, and on a GPU for what is free when the
            call comes.  Not counted are other forms of the weights, which the first call in strips makes and keeps;
            ``hybridge plan`` says how many bytes.
        spill: Whether activations may be parked when nothing else fits the budget: on a CPU in a nameless file in
            this folder, or in the system's temporary one for True, on a GPU in the host's memory.  A temporary
            folder that lies in memory, as ``/tmp`` does on some systems, saves none.

    Raises:
        RequestError: for what is no module, a budget that is none, or a folder that is not there.
    """
    if isinstance(vae, ExactVAE):
        vae = vae.vae
    if not isinstance(vae, nn.Module):
        hint = "its VAE: exact(pipe.vae)" if hasattr(vae, "vae") else None
        raise RequestError("not a VAE", saw=type(vae).__name__, expected="a module of diffusers", hint=hint)
    folder = None if isinstance(spill, bool) else check_folder(spill)
    modes = WITHIN_ROUNDING if spill is not False else IN_MEMORY
    return ExactVAE(vae, None if budget is None else parse_bytes(budget), modes, folder)


def check_folder(path: str | os.PathLike[str]) -> Path:
    """A folder to spill to.

    Raises:
        RequestError: when it is none, or cannot be written to.
    """
    folder = Path(path).expanduser()
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        saw = f"{folder}: {error.strerror}"
        raise RequestError("cannot spill there", saw=saw, expected="a folder that can be written to") from None
    return folder


class ExactVAE(nn.Module):
    """A VAE that pipelines take for their own; made by :func:`exact`.

    Whatever is not here is looked up in the wrapped module.

    Attributes:
        vae: The wrapped module; it owns the weights.
        budget_bytes: What one call may take on top of them, or None.
        modes: Ways of running that a call may take.
        use_tiling: False, but for a wrapped module of which nothing runs in strips: its own.
        use_slicing: Whether the plain forward takes one item at a time; strips always do.
    """

    def __init__(
        self,
        vae: nn.Module,
        budget_bytes: int | None = None,
        modes: tuple[Mode, ...] = WITHIN_ROUNDING,
        spill_to: Path | None = None,
    ) -> None:
        super().__init__()
        self.vae = vae
        self.training = vae.training
        self.budget_bytes = budget_bytes
        self.modes = modes
        self.use_slicing = bool(getattr(vae, "use_slicing", False))
        self.use_tiling = bool(getattr(vae, "use_tiling", False))
        self._runner = Runner(vae, spill_to)
        if not self._has_strips:
            self.forward = vae.forward  # type: ignore[method-assign] # pipelines read what it takes from its signature
        elif self.use_tiling:
            self.disable_tiling()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("vae"), name)

    @property
    def config(self) -> Any:
        """The wrapped module's."""
        return self.vae.config

    @property
    def dtype(self) -> torch.dtype:
        """The wrapped module's."""
        return self._runner.dtype

    @property
    def device(self) -> torch.device:
        """The wrapped module's."""
        return self._runner.device

    def why_plain(self, task: Task, source: torch.Tensor | None = None) -> str | None:
        """Why this task runs as the plain module, whatever the budget; None if it does not.

        Args:
            task: ``decode`` or ``encode``.
            source: What would be decoded or encoded; without it, only the module is looked at.
        """
        reason = self._runner.why_plain(task)
        if reason is not None:
            return reason
        trains = self.training and any(parameter.requires_grad for parameter in self.vae.parameters())
        if source is not None and torch.is_grad_enabled() and (source.requires_grad or trains):
            return "gradients are wanted"
        return None

    def plan(self, task: Task, batch: int, height: int, width: int) -> Plan:
        """How an input (batch, C, height, width) would be run, and why.

        Args:
            task: ``decode`` or ``encode``.
            batch: Items.
            height: Of the latents for ``decode``, of the picture for ``encode``.
            width: The same.

        Raises:
            RequestError: when the picture is too small.
            TooLarge: when nothing fits the budget; names the smallest that would.
            CannotLower: when the module cannot be planned; see :meth:`why_plain`.
        """
        return self._runner.plan(task, batch, height, width, budget_bytes=self.budget_bytes, modes=self.modes)

    @apply_forward_hook  # type: ignore[untyped-decorator] # lets accelerate bring the weights to the device
    def decode(
        self,
        z: torch.Tensor,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        *,
        progress: Progress | None = None,
        should_stop: ShouldStop | None = None,
        **others: Any,
    ) -> Any:
        """Latents (B, C, h, w) in VAE space → a DecoderOutput with ``sample`` (B, 3, H, W), or a tuple of that.

        Args:
            z: What the wrapped module's ``decode`` takes.
            return_dict: False for the tuple.
            generator: For a wrapped module that decodes with noise; strips need none.
            progress: Called with (strips done, strips in all) after every strip.
            should_stop: Asked after every strip; True ends the call.
            others: What a wrapped module of another kind takes besides, such as ``num_frames``; it is run as it is.

        Raises:
            RequestError: when strips would run on latents of another shape, or with NaN or infinity.
            TooLarge: when the budget is too small; nothing was allocated.
            Stopped: when ``should_stop`` said so.
        """
        if others or self.why_plain("decode", z):
            if generator is not None:
                others["generator"] = generator
            return self.vae.decode(z, return_dict=return_dict, **others)  # type: ignore[operator] # diffusers' own
        sample = self._run("decode", z, progress, should_stop)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode(
        self,
        x: torch.Tensor,
        return_dict: bool = True,
        *,
        progress: Progress | None = None,
        should_stop: ShouldStop | None = None,
        **others: Any,
    ) -> Any:
        """A picture (B, 3, H, W) in [-1, 1] → what the wrapped module's ``encode`` gives.

        That is an AutoencoderKLOutput with a ``latent_dist``, or an AutoencoderTinyOutput with ``latents``, or the
        one or the other in a tuple.  Arguments and errors are those of :meth:`decode`.
        """
        if others or self.why_plain("encode", x):
            return self.vae.encode(x, return_dict=return_dict, **others)  # type: ignore[operator] # diffusers' own
        encoded = self._run("encode", x, progress, should_stop)
        if type(self.vae).__name__ == "AutoencoderTiny":
            return AutoencoderTinyOutput(latents=encoded) if return_dict else (encoded,)
        posterior = DiagonalGaussianDistribution(encoded)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def forward(
        self,
        sample: torch.Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> Any:
        """A picture → latents → a picture: by the posterior's mode, or by what ``generator`` draws from it."""
        encoded = self.encode(sample)
        if hasattr(encoded, "latents"):
            latents = encoded.latents
        elif sample_posterior:
            latents = encoded.latent_dist.sample(generator=generator)
        else:
            latents = encoded.latent_dist.mode()
        return self.decode(latents, return_dict=return_dict)

    @property
    def _has_strips(self) -> bool:
        tasks: tuple[Task, ...] = ("decode", "encode")
        return any(self._runner.why_plain(task) is None for task in tasks)

    def enable_tiling(self, *sizes: Any, **named: Any) -> None:
        """Left undone where anything runs in strips: tiling changes the picture, the budget bounds the memory."""
        if self._has_strips:
            _log.warning(
                "tiling stays off: strips bound the memory without changing the picture; set a budget instead"
            )
            return
        self.vae.enable_tiling(*sizes, **named)  # type: ignore[operator] # diffusers' own
        self.use_tiling = True

    def disable_tiling(self) -> None:
        """The wrapped module takes pictures as a whole again."""
        self.use_tiling = False
        self.vae.disable_tiling()  # type: ignore[operator] # diffusers' own

    def enable_slicing(self) -> None:
        """One item at a time where the plain forward runs; strips do so anyway."""
        self.use_slicing = True
        self.vae.enable_slicing()  # type: ignore[operator] # diffusers' own

    def disable_slicing(self) -> None:
        """The plain forward takes the whole batch at once again."""
        self.use_slicing = False
        self.vae.disable_slicing()  # type: ignore[operator] # diffusers' own

    @torch.no_grad()
    def _run(
        self, task: Task, source: torch.Tensor, progress: Progress | None, should_stop: ShouldStop | None
    ) -> torch.Tensor:
        if not bool(torch.isfinite(source).all()):
            what = "latents" if task == "decode" else "pixels"
            hint = "a look at where they are made: float16 overflows, for one"
            raise RequestError(f"the {what} hold NaN or infinity", saw=f"{list(source.shape)}", hint=hint)
        return self._runner.run(
            task,
            source,
            budget_bytes=self.budget_bytes,
            modes=self.modes,
            progress=progress,
            should_stop=should_stop,
        )
