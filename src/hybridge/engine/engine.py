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
            sample = reference.decode(self.module, z)
            overflowed = not bool(torch.isfinite(sample).all())
        if overflowed:
            dtype = str(self.dtype.value).removeprefix("torch.")
            raise EngineFailure(
                f"{self.spec.name} gave NaN or infinity in {dtype}",
                hint="--dtype float32" if dtype != "float32" else "other latents; these are far outside its range",
            )
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
        signed = pixels.to_signed(image.to(self.device.value), value_range)
        self._check_sides(signed)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        with failures_named(f"encoding {list(signed.shape)}", self.device.value):
            z = reference.encode(self.module, signed.to(self.dtype.value), sample=sample, generator=generator)
            z = latent_space.from_module(z, self.spec, wanted)
            overflowed = not bool(torch.isfinite(z).all())
        if overflowed:
            raise EngineFailure(f"{self.spec.name} gave NaN or infinity", hint="--dtype float32")
        return z

    def _check_sides(self, image: torch.Tensor) -> None:
        factor = self.spec.spatial_factor
        height, width = image.shape[-2:]
        if height % factor or width % factor:
            above = tuple(-(-side // factor) * factor for side in (height, width))
            raise RequestError(
                "an image tensor must have sides that are multiples of the model's factor",
                saw=f"{height}×{width}",
                expected=f"multiples of {factor}, such as {above[0]}×{above[1]}",
                hint="crop or pad the tensor, or send a picture file, which is resized",
            )
