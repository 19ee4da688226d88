"""The facade: one loaded VAE on one device, decoding and encoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..errors import EngineFailure, RequestError
from ..models import ModelSpec, Normalisation, latents_layout
from . import latents as latent_space
from . import loading, pixels, reference
from .memory import failures_named
from .options import Choice, EngineOptions, choose_device, choose_dtype


@dataclass(frozen=True, slots=True)
class Engine:
    """One VAE, ready.  Not thread-safe: one thread owns the device.

    Attributes:
        spec: What the model is.
        module: diffusers' module.
        device: Where it runs, and why there.
        dtype: In which precision, and why in this one.
    """

    spec: ModelSpec
    module: Any
    device: Choice[torch.device]
    dtype: Choice[torch.dtype]

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
        return cls(spec, loading.load(spec, dtype.value, device.value), device, dtype)

    @property
    def config(self) -> dict[str, Any]:
        """What the module was made with, as its ``config.json`` has it, without where it came from."""
        return {name: value for name, value in self.module.config.items() if not name.startswith("_")}

    @property
    def weights_bytes(self) -> int:
        """Bytes that the weights take on the device."""
        return sum(parameter.nbytes for parameter in self.module.parameters())

    @torch.inference_mode()
    def decode(
        self,
        latents: torch.Tensor,
        *,
        sent: Normalisation | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> torch.Tensor:
        """Latents → pictures (B, 3, H, W), about [-1, 1], on the engine's device and in its dtype.

        Args:
            latents: (B, C, h, w), one item (C, h, w), or packed (B, tokens, 4·C), of any dtype, on any device.
            sent: The normalisation that they carry, ``spec.normalisation`` for a pipeline's latents; None if they
                are in VAE space.
            height: Of the picture, in pixels; needed for packed latents.
            width: The same.

        Raises:
            RequestError: when the latents are not this model's, or hold NaN.
            OutOfMemory: when the device has no room.
            EngineFailure: when the forward fails or overflows.
        """
        layout = latents_layout(latents.shape, self.spec, height, width)
        latent_space.check_finite(latents, "latents")
        with failures_named(f"decoding {layout.batch} × {layout.picture}", self.device.value):
            z = latent_space.unpack(latents.to(self.device.value), layout)
            z = latent_space.to_module(z, self.spec, sent, self.dtype.value)
            latent_space.check_finite(z, "latents, once scaled,")
            sample = reference.decode(self.module, z)
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
    ) -> torch.Tensor:
        """Pictures → latents (B, C, H / factor, W / factor), on the engine's device and in its dtype.

        Args:
            image: uint8 (B, H, W, 3) or (B, 3, H, W), or float (B, 3, H, W); see :func:`.pixels.to_signed`.
            wanted: The normalisation to give the latents; None for VAE space.
            value_range: What floats mean: ``auto``, ``unit`` or ``signed``.
            sample: A draw from the posterior instead of its mode.
            seed: Makes the draw repeatable.

        Raises:
            RequestError: when it is not an image, or a side is no multiple of the model's factor.
            OutOfMemory: when the device has no room.
            EngineFailure: when the forward fails or overflows.
        """
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        with failures_named(f"encoding {list(image.shape)}", self.device.value):
            signed = pixels.to_signed(image.to(self.device.value), self.spec, value_range).to(self.dtype.value)
            z = reference.encode(self.module, signed, sample=sample, generator=generator)
            self._check_finite(z)
            z = latent_space.from_module(z, self.spec, wanted)
        latent_space.check_finite(z, "latents, once scaled,")
        return z

    @torch.inference_mode()
    def moments(self, image: torch.Tensor, *, value_range: str = "auto") -> torch.Tensor:
        """Pictures → their posteriors in VAE space, (B, 2·C, H / factor, W / factor), on the engine's device.

        The first C channels are the mean, the others the logarithm of the variance, as the module gives them.

        Args:
            image: As :meth:`encode` has it.
            value_range: The same.

        Raises:
            RequestError: as :meth:`encode` has it, and for a tiny autoencoder, which has no posterior.
            OutOfMemory: when the device has no room.
            EngineFailure: when the forward fails or overflows.
        """
        if self.spec.kind == "tiny":
            raise RequestError(
                f"{self.spec.name} has no posterior",
                saw="moments=True to a tiny autoencoder",
                hint="encoding without moments",
            )
        with failures_named(f"encoding {list(image.shape)}", self.device.value):
            signed = pixels.to_signed(image.to(self.device.value), self.spec, value_range).to(self.dtype.value)
            posterior = reference.moments(self.module, signed)
            self._check_finite(posterior)
        return posterior

    def _check_finite(self, output: torch.Tensor) -> None:
        if bool(torch.isfinite(output).all()):
            return
        dtype = str(self.dtype.value).removeprefix("torch.")
        raise EngineFailure(
            f"{self.spec.name} gave NaN or infinity in {dtype}",
            hint="--dtype float32" if dtype != "float32" else "other input; this is far outside of its range",
        )
