"""The engine's public interface: one loaded VAE on one device that decodes and encodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import CannotLower, RequestError, TooLarge
from ..models import ModelSpec, Normalisation, latent_space, latents_layout
from . import loading, pixels
from .device_profile import device_profile_for
from .execution.executor import Progress, ShouldStop
from .identity import Identity, library_versions
from .inpainting import to_inpainting
from .latents import check_finite, check_output, check_vae_space, statistics_of, to_module, with_statistics
from .machine.cpu import threads_of
from .machine.own_thread import run_in_own_thread
from .memory.device_memory import map_torch_errors, release_memory
from .options import Choice, EngineOptions, choose_device, choose_dtype
from .planning.plan import IN_MEMORY, WITHIN_ROUNDING, Mode, Plan
from .planning.weight_forms import prepared_bytes
from .program.lowering import lower
from .program.program import Task
from .runner import Runner
from .vae_adapters import Call, OnFrames, adapter_of
from .whole_plan import WholePlanner


@dataclass(slots=True)
class Engine:
    """One loaded VAE.  Not thread-safe: one thread owns the device.

    Attributes:
        spec: The model's row of the catalogue.
        module: The diffusers module.
        device: The device that it runs on, and the reason for it.
        dtype: The precision that it runs in, and the reason for it.
        modes: The allowed modes of running; see :mod:`.planning.plan`.
        spill: Folder to which a CPU spills activations, if mode ``spill`` is allowed; None for the system's
            temporary folder.
        weights_bytes: Bytes kept between runs: the module's weights, and the transformed copies of them that strip
            runs use.  The first run of a task makes these copies; they are counted from the beginning.
        identity: What the module was made from, if it was loaded from files.
        statistics: Those of latents that are among the weights, by the names of their buffers.
    """

    spec: ModelSpec
    module: Any
    device: Choice[torch.device]
    dtype: Choice[torch.dtype]
    modes: tuple[Mode, ...] = IN_MEMORY
    spill: Path | None = None
    identity: Identity | None = None
    weights_bytes: int = field(init=False)
    statistics: Mapping[str, Sequence[float]] = field(init=False, repr=False)
    _runner: Runner = field(init=False, repr=False)
    _whole: WholePlanner = field(init=False, repr=False)

    def __post_init__(self) -> None:
        runner = Runner(self.module, self.spill, reads_weights=False)  # no other code writes to them
        own = sum(tensor.nbytes for tensor in (*self.module.parameters(), *self.module.buffers()))
        self.weights_bytes = own + (0 if self.modes == ("whole",) else runner.prepared_bytes)
        self.statistics = statistics_of(self.module)
        self._runner = runner
        dtype, is_bitwise = self.dtype.value, self.modes == ("whole",)
        profile = device_profile_for(self.device.value.type, dtype)
        self._whole = WholePlanner(self.spec, self.module, profile, dtype, is_bitwise)

    @classmethod
    def load(cls, spec: ModelSpec, options: EngineOptions | None = None) -> Engine:
        """Load the weights, from the Hugging Face hub if they are not on this machine.

        Raises:
            ModelUnavailable: when the weights cannot be loaded or downloaded.
            EngineFailure: when device or dtype cannot be used for this model.
        """
        options = options or EngineOptions()
        device = choose_device(options.device)
        dtype = choose_dtype(options.dtype, spec, device.value)
        release_memory()  # memory that earlier models have left
        module = run_in_own_thread(lambda: loading.load(spec, dtype.value, device.value))
        keeps_off_the_disk = device.value.type == "cpu" and options.spill is None
        modes: tuple[Mode, ...] = IN_MEMORY if keeps_off_the_disk else WITHIN_ROUNDING
        if options.exactness == "bitwise":
            modes = ("whole",)
        identity = Identity.of_model(spec)
        return cls(with_statistics(spec, module), module, device, dtype, modes, options.spill, identity)

    @property
    def facts(self) -> dict[str, object]:
        """Return what decides about a picture's numbers, besides the hash of the weights."""
        return {
            "model": self.spec.name,
            "revision": self.identity.revision if self.identity else None,
            "dtype": str(self.dtype.value).removeprefix("torch."),
            "device": self.device.value.type,
            "threads": threads_of(self.device.value),
            "exactness": "bitwise" if self.modes == ("whole",) else "rounding",
            "hybridge": __version__,
            **library_versions(),
        }

    @property
    def config(self) -> dict[str, Any]:
        """Return the module's configuration as in its ``config.json``, without the path that it came from."""
        return {name: value for name, value in self.module.config.items() if not name.startswith("_")}

    @staticmethod
    def expected_bytes(spec: ModelSpec, options: EngineOptions | None = None) -> int:
        """Return ``weights_bytes`` of an engine before loading, from its files' headers; download them if needed.

        Raises:
            ModelUnavailable: when the weights cannot be loaded or downloaded.
            EngineFailure: when device or dtype cannot be used for this model.
        """
        options = options or EngineOptions()
        device = choose_device(options.device).value
        dtype = choose_dtype(options.dtype, spec, device).value
        own = loading.weights_bytes(spec, dtype)
        if options.exactness == "bitwise":
            return own
        module = loading.shape_before_loading(spec)
        arithmetic = device_profile_for(device.type, dtype)
        tasks: tuple[Task, ...] = ("decode", "encode")
        for task in tasks:
            with suppress(CannotLower):
                own += prepared_bytes(lower(module, task), arithmetic)
        return own

    def plan(
        self,
        task: Task,
        batch: int,
        height: int,
        width: int,
        frames: int = 1,
        *,
        budget_bytes: int | None = None,
        frames_leave: bool = False,
        inpaints: bool = False,
    ) -> Plan:
        """Return the plan for decoding or encoding pictures of this size, and its reason.  Nothing is run.

        Args:
            task: ``decode`` or ``encode``.
            batch: Number of pictures or videos.
            height: Height of a picture in pixels.
            width: Width of a picture in pixels.
            frames: Frames of a video.
            budget_bytes: Bytes that one call may take on top of the weights; None for no bound.
            frames_leave: Whether the call is given ``on_frames``.
            inpaints: Whether it is given ``image`` and ``mask``.

        Raises:
            RequestError: when a picture is too small.
            TooLarge: when no plan fits the budget; it names the smallest budget that would do.
            CannotLower: when the module cannot be planned; it then runs its own forward.
        """
        factor = self.spec.spatial_factor if task == "decode" else 1
        height, width = height // factor, width // factor
        reason = self._why_whole(task)
        rule = self.spec.frames
        times = (rule.latent_frames(frames) if task == "decode" else frames,) if rule.has_axis else ()
        if reason is None:
            bounds: dict[str, Any] = {
                "budget_bytes": budget_bytes,
                "modes": self.modes,
                "frames_leave": frames_leave,
            }
            return self._runner.plan(task, batch, height, width, frames=times[0] if times else 1, **bounds)
        channels = self.spec.latent_channels if task == "decode" else self.spec.vae_class.pixel_channels
        shape = (batch, channels, *times, height, width)
        return self._whole.plan(task, shape, reason, budget_bytes, inpaints=inpaints)

    def _why_whole(self, task: Task) -> str | None:
        """Return why a call runs the class's own forward, whose memory is then counted without weights."""
        is_bitwise_film = self._runner.takes_films and self.modes == ("whole",)
        return self._runner.why_plain(task) or ("exactness is bitwise" if is_bitwise_film else None)

    def smaller_budget(self, task: Task, *size: int, peak_bytes: int, inpaints: bool = False) -> int | None:
        """Return the budget for another attempt after a run with this planned peak ran out of memory.

        It is half of the peak, or the least that works; None if that is not less.

        Args:
            task: As for :meth:`plan`.
            size: Batch, height, width and frames, as for :meth:`plan`.
            peak_bytes: The peak of the plan that failed.
            inpaints: As for :meth:`plan`.
        """
        half_bytes = peak_bytes // 2
        try:
            self.plan(task, *size, budget_bytes=half_bytes, inpaints=inpaints)
        except TooLarge as refusal:
            least_bytes = refusal.least_bytes
            return least_bytes if least_bytes is not None and least_bytes < peak_bytes else None
        return half_bytes

    def exactness_told(self) -> str:
        """Return what this engine computes if its class's own call is something else; "" where both agree."""
        why = adapter_of(self.module).why
        if not why:
            return ""
        which = "bitwise, the class's own call" if self.modes == ("whole",) else "rounding, all at once"
        return f"{which}: {why}"

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
        on_frames: OnFrames | None = None,
        timestep: float | None = None,
        noise_scale: float | None = None,
        seed: int | None = None,
        chunk: int | None = None,
        image: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> Any:
        """Decode latents to pictures (B, 3, H, W), about [-1, 1], on the engine's device and in its dtype.

        A model of videos gives (B, 3, F, H, W).

        Args:
            latents: (B, C, h, w), one item (C, h, w), or packed (B, tokens, 4·C), of any dtype, on any device; of
                a model with frames in the order of ``spec.axes``.
            sent: The normalisation of the latents: ``spec.normalisation`` for a pipeline's latents, None for
                latents in VAE space.
            height: Height of the picture in pixels; needed for packed latents.
            width: Width of the picture in pixels; needed for packed latents.
            budget_bytes: As for :meth:`plan`.
            progress: Called with (strips done, strips in total) after every strip.  It may itself call the engine:
                the two calls share nothing but the weights.
            should_stop: Called after every strip; True ends the call.
            on_frames: Called with uint8 (f, H, W, 3) on the CPU, in order, as soon as these frames of the one item
                are final.  The frames are not kept, and nothing is returned.
            timestep: For a decoder that is conditioned on one, 0 to 1; 0 if None, as in diffusers' pipelines.
            noise_scale: For such a decoder, the part of noise mixed into the latents; ``timestep`` if None.
            seed: Of this noise; 0 if None.
            chunk: Frames that Stable Video Diffusion's decoder takes at once, which changes them; all if None.
            image: The picture that was inpainted, for a decoder that is shown it; see :func:`.to_inpainting`.
            mask: With ``image``: what was painted anew.

        Raises:
            Stopped: when ``should_stop`` returned True.
            TooLarge: when no plan fits the budget.
            RequestError: when the latents do not fit this model, or contain NaN; for ``on_frames`` and a batch.
            OutOfMemory: when the device has too little memory.
            EngineFailure: when the forward fails or overflows.
        """
        layout = latents_layout(latents.shape, self.spec, height, width)
        if on_frames is not None and layout.batch != 1:
            raise RequestError("frames are delivered of one item", saw=f"{layout.batch} items", expected="one")
        check_finite(latents, "latents")
        with map_torch_errors(f"decoding {layout.batch} × {layout.picture}", self.device.value):
            z = latent_space.unpack(latents.to(self.device.value), layout)
            z = to_module(z, self.spec, sent, self.dtype.value)
            check_finite(z, "latents, once scaled,")
            image, mask = to_inpainting(image, mask, layout, self.spec, z)
            on_chunk = None if on_frames is None else partial(self._deliver, on_frames)
            call = Call(
                self.modes == ("whole",),
                on_chunk,
                progress,
                should_stop,
                frames=layout.video_frames,
                timestep=timestep or 0.0,
                noise_scale=noise_scale,
                seed=seed or 0,
                chunk=chunk,
                image=image,
                mask=mask,
            )
            sample = self._run("decode", z, budget_bytes, call)
            if on_chunk is not None:
                return on_chunk(sample) if sample.numel() else None  # of a run in strips
            check_output(self.spec, self.dtype.value, sample)
        return sample[:, :, 0] if self.spec.frames.has_axis and not self.spec.is_video else sample

    def _deliver(self, on_frames: OnFrames, chunk: torch.Tensor) -> None:
        parts = pixels.in_parts(chunk)
        check_output(self.spec, self.dtype.value, *parts)
        for part in parts:
            on_frames(pixels.to_pixels(pixels.frames_of(part)).cpu())

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
        """Encode to latents (B, C, H / factor, W / factor) or in the order of ``spec.axes``, in the engine's dtype.

        Args:
            image: uint8 (B, H, W, 3) or (B, 3, H, W), or float (B, 3, H, W); of videos float (B, 3, F, H, W), or
                the frames of one, (F, …); see :func:`.pixels.to_signed`.
            wanted: The normalisation to give the latents; None for VAE space.
            value_range: The range of floating-point pixels: ``auto``, ``unit`` or ``signed``.
            sample: Whether to draw a sample from the posterior instead of taking its mode.
            seed: Makes the sample repeatable.
            budget_bytes: As for :meth:`decode`.
            progress: As for :meth:`decode`.
            should_stop: As for :meth:`decode`.

        Raises:
            Stopped: when ``should_stop`` returned True.
            TooLarge: when no plan fits the budget.
            RequestError: when the input is not an image, or a side is not a multiple of the model's factor.
            OutOfMemory: when the device has too little memory.
            EngineFailure: when the forward fails or overflows.
        """
        # Imported here because it takes seconds; loading an engine has already imported it.
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        if wanted is None:
            check_vae_space(self.spec)
        generator = None if seed is None else torch.Generator("cpu").manual_seed(seed)
        with map_torch_errors(f"encoding {list(image.shape)}", self.device.value):
            z = self._encoded(image, value_range, budget_bytes, progress, should_stop)
            if self.spec.vae_class.has_posterior:
                posterior = DiagonalGaussianDistribution(z)
                z = posterior.sample(generator) if sample else posterior.mode()
            if (fold := adapter_of(self.module).fold) is not None:
                z = fold(z)
            scaled: torch.Tensor = latent_space.to_axes(latent_space.from_module(z, self.spec, wanted), self.spec)
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
        """Encode pictures to posteriors in VAE space, (B, 2·C, H / factor, W / factor), on the engine's device.

        The first C channels are the mean and the others the logarithm of the variance, as the module returns them.
        Arguments and errors are those of :meth:`encode`.

        Raises:
            RequestError: also for a tiny autoencoder, which has no posterior.
        """
        if not self.spec.vae_class.has_posterior:
            raise RequestError(
                f"{self.spec.name} has no posterior",
                saw=f"moments=True to an {self.spec.class_name}",
                hint="encoding without moments",
            )
        with map_torch_errors(f"encoding {list(image.shape)}", self.device.value):
            found = self._encoded(image, value_range, budget_bytes, progress, should_stop)
        moments: torch.Tensor = latent_space.to_axes(found, self.spec)
        return moments

    def _encoded(
        self,
        image: torch.Tensor,
        value_range: str,
        budget_bytes: int | None,
        progress: Progress | None,
        should_stop: ShouldStop | None,
    ) -> torch.Tensor:
        """Return the module's output: moments, or a tiny autoencoder's latents."""
        self.spec.check_encodes()
        signed = pixels.to_signed(image.to(self.device.value), self.spec, value_range).to(self.dtype.value)
        call = Call(self.modes == ("whole",), None, progress, should_stop)
        encoded = self._run("encode", signed, budget_bytes, call)
        check_output(self.spec, self.dtype.value, encoded)
        return encoded

    def _run(self, task: Task, source: torch.Tensor, budget_bytes: int | None, call: Call) -> torch.Tensor:
        reason = self._why_whole(task)
        if reason is not None and budget_bytes is not None:
            with suppress(CannotLower):
                self._whole.plan(task, tuple(source.shape), reason, budget_bytes, inpaints=call.image is not None)
        how: dict[str, Any] = {"progress": call.progress, "should_stop": call.should_stop, "call": call}
        return self._runner.run(task, source, budget_bytes=budget_bytes, modes=self.modes, **how)
