"""The facade: one loaded VAE on one device, decoding and encoding."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import CannotLower, EngineFailure, RequestError
from ..models import ModelSpec, Normalisation, latent_space, latents_layout
from . import loading, pixels
from .execution.executor import Progress, ShouldStop
from .latents import check_finite, to_module
from .machine.own_thread import run_in_own_thread
from .memory.device_memory import map_torch_errors, release_memory
from .options import Choice, EngineOptions, choose_device, choose_dtype
from .planning.plan import IN_MEMORY, WITHIN_ROUNDING, Mode, Plan
from .planning.weight_forms import prepared_bytes
from .program.lowering import lower
from .program.program import Task
from .runner import Runner, arithmetic_for


@dataclass(slots=True)
class Engine:
    """One VAE, ready.  Not thread-safe: one thread owns the device.

    Attributes:
        spec: What the model is.
        module: diffusers' module.
        device: Where it runs, and why there.
        dtype: In which precision, and why in this one.
        modes: Of running it, those that are allowed.
        spill: Folder in which a CPU parks activations, if mode ``spill`` is allowed; None for the temporary one.
        weights_bytes: What it keeps between runs: the module's weights, and the forms of them that runs in strips
            work with.  Those are made by the first run of a task, and counted from the beginning.
    """

    spec: ModelSpec
    module: Any
    device: Choice[torch.device]
    dtype: Choice[torch.dtype]
    modes: tuple[Mode, ...] = IN_MEMORY
    spill: Path | None = None
    weights_bytes: int = field(init=False)
    _runner: Runner = field(init=False, repr=False)

    def __post_init__(self) -> None:
        runner = Runner(self.module, self.spill, reads_weights=False)  # nobody else has hands on them
        own = sum(tensor.nbytes for tensor in (*self.module.parameters(), *self.module.buffers()))
        kept_bytes = own + (0 if self.modes == ("whole",) else runner.prepared_bytes)
        self._runner = runner
        self.weights_bytes = kept_bytes

    @classmethod
    def load(cls, spec: ModelSpec, options: EngineOptions | None = None) -> Engine:
        """Loads the weights, from the hub if they are not on this machine.

        Raises:
            ModelUnavailable: when they cannot be had.
            EngineFailure: when device or dtype cannot be used for this model.
        """
        options = options or EngineOptions()
        device = choose_device(options.device)
        dtype = choose_dtype(options.dtype, spec, device.value)
        release_memory()  # what models have left that went before
        module = run_in_own_thread(lambda: loading.load(spec, dtype.value, device.value))
        keeps_off_the_disk = device.value.type == "cpu" and options.spill is None
        modes: tuple[Mode, ...] = IN_MEMORY if keeps_off_the_disk else WITHIN_ROUNDING
        if options.exactness == "bitwise":
            modes = ("whole",)
        return cls(spec, module, device, dtype, modes, options.spill)

    @property
    def config(self) -> dict[str, Any]:
        """What the module was made with, as its ``config.json`` has it, without where it came from."""
        return {name: value for name, value in self.module.config.items() if not name.startswith("_")}

    @staticmethod
    def expected_bytes(spec: ModelSpec, options: EngineOptions | None = None) -> int:
        """``weights_bytes`` of an engine that is not loaded yet, from what its files say; fetches them if need be.

        Raises:
            ModelUnavailable: when they cannot be had.
            EngineFailure: when device or dtype cannot be used for this model.
        """
        options = options or EngineOptions()
        device = choose_device(options.device).value
        dtype = choose_dtype(options.dtype, spec, device).value
        own = loading.weights_bytes(spec, dtype)
        if options.exactness == "bitwise":
            return own
        module = loading.shape_before_loading(spec)
        arithmetic = arithmetic_for(device.type, dtype)
        tasks: tuple[Task, ...] = ("decode", "encode")
        for task in tasks:
            with suppress(CannotLower):
                own += prepared_bytes(lower(module, task), arithmetic)
        return own

    def plan(self, task: Task, batch: int, height: int, width: int, *, budget_bytes: int | None = None) -> Plan:
        """How pictures of this size would be decoded or encoded, and why; arithmetic only.

        Args:
            task: ``decode`` or ``encode``.
            batch: Pictures.
            height: Of a picture, in pixels.
            width: The same.
            budget_bytes: What one call may take on top of the weights; None for no bound.

        Raises:
            RequestError: when a picture is too small.
            TooLarge: when nothing fits the budget; names the smallest that would.
            CannotLower: when the module cannot be planned; it then runs as it is.
        """
        factor = self.spec.spatial_factor if task == "decode" else 1
        return self._runner.plan(
            task, batch, height // factor, width // factor, budget_bytes=budget_bytes, modes=self.modes
        )

    @torch.inference_mode()
    def decode(
        self,
        latents: torch.Tensor,
        *,
        sent: Normalisation | None = None,
        height: int | None = None,
        width: int | None = None,
        budget_bytes: int | None = None,
        progress: Progress | None = None,
        should_stop: ShouldStop | None = None,
    ) -> torch.Tensor:
        """Latents → pictures (B, 3, H, W), about [-1, 1], on the engine's device and in its dtype.

        Args:
            latents: (B, C, h, w), one item (C, h, w), or packed (B, tokens, 4·C), of any dtype, on any device.
            sent: The normalisation that they carry, ``spec.normalisation`` for a pipeline's latents; None if they
                are in VAE space.
            height: Of the picture, in pixels; needed for packed latents.
            width: The same.
            budget_bytes: As for :meth:`plan`.
            progress: Called with (strips done, strips in all) after every strip.  Another call may be made from
                within it: the two share nothing but the weights.
            should_stop: Asked after every strip; True ends the call.

        Raises:
            Stopped: when ``should_stop`` said so.
            TooLarge: when nothing fits the budget.
            RequestError: when the latents are not this model's, or hold NaN.
            OutOfMemory: when the device has no room.
            EngineFailure: when the forward fails or overflows.
        """
        layout = latents_layout(latents.shape, self.spec, height, width)
        check_finite(latents, "latents")
        with map_torch_errors(f"decoding {layout.batch} × {layout.picture}", self.device.value):
            z = latent_space.unpack(latents.to(self.device.value), layout)
            z = to_module(z, self.spec, sent, self.dtype.value)
            check_finite(z, "latents, once scaled,")
            sample = self._run("decode", z, budget_bytes, progress, should_stop)
            self._check_finite(sample)
        return sample

    @torch.inference_mode()
    def encode(
        self,
        image: torch.Tensor,
        *,
        wanted: Normalisation | None = None,
        value_range: str = "auto",
        sample: bool = False,
        seed: int | None = None,
        budget_bytes: int | None = None,
        progress: Progress | None = None,
        should_stop: ShouldStop | None = None,
    ) -> torch.Tensor:
        """Pictures → latents (B, C, H / factor, W / factor), on the engine's device and in its dtype.

        Args:
            image: uint8 (B, H, W, 3) or (B, 3, H, W), or float (B, 3, H, W); see :func:`.pixels.to_signed`.
            wanted: The normalisation to give the latents; None for VAE space.
            value_range: What floats mean: ``auto``, ``unit`` or ``signed``.
            sample: A draw from the posterior instead of its mode.
            seed: Makes the draw repeatable.
            budget_bytes: As for :meth:`decode`.
            progress: The same.
            should_stop: The same.

        Raises:
            Stopped: when ``should_stop`` said so.
            TooLarge: when nothing fits the budget.
            RequestError: when it is not an image, or a side is no multiple of the model's factor.
            OutOfMemory: when the device has no room.
            EngineFailure: when the forward fails or overflows.
        """
        # Here, because it takes seconds, and whoever made an engine has it loaded by now.
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        generator = None if seed is None else torch.Generator("cpu").manual_seed(seed)
        with map_torch_errors(f"encoding {list(image.shape)}", self.device.value):
            z = self._encoded(image, value_range, budget_bytes, progress, should_stop)
            if self.spec.kind != "tiny":  # a tiny autoencoder has no posterior
                posterior = DiagonalGaussianDistribution(z)
                z = posterior.sample(generator) if sample else posterior.mode()
            scaled: torch.Tensor = latent_space.from_module(z, self.spec, wanted)
        check_finite(scaled, "latents, once scaled,")
        return scaled

    @torch.inference_mode()
    def moments(
        self,
        image: torch.Tensor,
        *,
        value_range: str = "auto",
        budget_bytes: int | None = None,
        progress: Progress | None = None,
        should_stop: ShouldStop | None = None,
    ) -> torch.Tensor:
        """Pictures → their posteriors in VAE space, (B, 2·C, H / factor, W / factor), on the engine's device.

        The first C channels are the mean, the others the logarithm of the variance, as the module gives them.
        Arguments and errors are those of :meth:`encode`.

        Raises:
            RequestError: also for a tiny autoencoder, which has no posterior.
        """
        if self.spec.kind == "tiny":
            raise RequestError(
                f"{self.spec.name} has no posterior",
                saw="moments=True to a tiny autoencoder",
                hint="encoding without moments",
            )
        with map_torch_errors(f"encoding {list(image.shape)}", self.device.value):
            return self._encoded(image, value_range, budget_bytes, progress, should_stop)

    def _encoded(
        self,
        image: torch.Tensor,
        value_range: str,
        budget_bytes: int | None,
        progress: Progress | None,
        should_stop: ShouldStop | None,
    ) -> torch.Tensor:
        """As the module gives it: moments, or a tiny autoencoder's latents."""
        self.spec.check_encodes()
        signed = pixels.to_signed(image.to(self.device.value), self.spec, value_range).to(self.dtype.value)
        encoded = self._run("encode", signed, budget_bytes, progress, should_stop)
        self._check_finite(encoded)
        return encoded

    def _run(
        self,
        task: Task,
        source: torch.Tensor,
        budget_bytes: int | None,
        progress: Progress | None,
        should_stop: ShouldStop | None,
    ) -> torch.Tensor:
        return self._runner.run(
            task,
            source,
            budget_bytes=budget_bytes,
            modes=self.modes,
            progress=progress,
            should_stop=should_stop,
        )

    def _check_finite(self, output: torch.Tensor) -> None:
        if bool(torch.isfinite(output).all()):
            return
        dtype = str(self.dtype.value).removeprefix("torch.")
        raise EngineFailure(
            f"{self.spec.name} gave NaN or infinity in {dtype}",
            hint="--dtype float32" if dtype != "float32" else "other input; this is far outside of its range",
        )
