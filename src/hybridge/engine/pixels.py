"""Convert pixels between the ranges that clients use and the VAE's [-1, 1]."""

from __future__ import annotations

import torch

from ..errors import RequestError
from ..models import ModelSpec, image_layout
from .latents import check_finite

#: With ``auto``, floats above this are taken for bytes that were not divided by 255.
_LARGEST_GUESSED = 2.0


def to_signed(image: torch.Tensor, spec: ModelSpec, value_range: str = "auto") -> torch.Tensor:
    """Convert an image as sent to (B, 3, H, W) in [-1, 1], in float32 or its own float dtype.

    Args:
        image: uint8 (B, H, W, 3) or (B, 3, H, W), or float (B, 3, H, W); the batch axis may be missing.
        spec: The model; the sides must be multiples of its factor.
        value_range: For floats: ``unit`` is [0, 1], ``signed`` is [-1, 1]; ``auto`` is signed if anything is below
            zero, else unit, which is the rule of diffusers' VaeImageProcessor.

    Raises:
        RequestError: for another layout or size, for NaN, and with ``auto`` for floats that look like bytes.
    """
    is_bytes = image.dtype == torch.uint8
    batch, height, width = image_layout(image.shape, spec, is_bytes=is_bytes)
    if is_bytes and image.shape[-1] == 3:
        # Not made contiguous: VaeImageProcessor leaves pictures in this layout too, and the convolutions that torch
        # takes for it differ from those for the other in the last bits.
        image = image.reshape(batch, height, width, 3).permute(0, 3, 1, 2)
    elif image.ndim == 3:
        image = image[None]
    if is_bytes:
        return image.to(torch.float32) / 255.0 * 2.0 - 1.0
    check_finite(image, "pixels")
    if value_range == "auto":
        low, high = image.min(), image.max()
        if high > _LARGEST_GUESSED:
            raise RequestError(
                "the pixels are outside both ranges that can be meant",
                saw=f"floats from {low:g} to {high:g}",
                expected="[0, 1] or [-1, 1]",
                hint="send 0..255 as uint8; or say value_range=unit or signed, if this is on purpose",
            )
        value_range = "signed" if low < 0 else "unit"
    return image if value_range == "signed" else image * 2.0 - 1.0


def to_unit(sample: torch.Tensor) -> torch.Tensor:
    """Map [-1, 1] to [0, 1], clamped, in the sample's dtype, as diffusers' VaeImageProcessor.denormalize does."""
    return (sample * 0.5 + 0.5).clamp(0, 1)


def to_pixels(sample: torch.Tensor) -> torch.Tensor:
    """Convert (B, 3, H, W) in [-1, 1] to uint8 (B, H, W, 3), rounded half to even, as diffusers' PIL pictures."""
    return (to_unit(sample).permute(0, 2, 3, 1).float() * 255).round().to(torch.uint8)
