"""Convert pixels between the ranges that clients use and the VAE's [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import RequestError
from ..models import ModelSpec, image_layout
from .latents import check_finite

#: With ``auto``, floats above this are taken for bytes that were not divided by 255.
_LARGEST_GUESSED = 2.0

#: Frames of a video that are converted at a time, and a video's axes.
_FRAMES_AT_ONCE, _VIDEO_AXES = 16, 5


def to_signed(image: torch.Tensor, spec: ModelSpec, value_range: str = "auto") -> torch.Tensor:
    """Convert pixels as sent to the module's input in [-1, 1], in float32 or their own float dtype.

    This is (B, 3, H, W), and (B, 3, F, H, W) for a module with frames.

    Args:
        image: See :func:`hybridge.models.image_layout`.
        spec: The model; the sides must be multiples of its factor.
        value_range: For floats: ``unit`` is [0, 1], ``signed`` is [-1, 1]; ``auto`` is signed if anything is below
            zero, else unit, which is the rule of diffusers' VaeImageProcessor.

    Raises:
        RequestError: for another layout or size, for NaN, and with ``auto`` for floats that look like bytes.
    """
    is_bytes = image.dtype == torch.uint8
    layout = image_layout(image.shape, spec, is_bytes=is_bytes)
    if layout.is_last:
        # Not made contiguous: VaeImageProcessor leaves pictures in this layout too, and the convolutions that torch
        # takes for it differ from those for the other in the last bits.
        image = image.reshape(-1, layout.height, layout.width, image.shape[-1]).permute(0, 3, 1, 2)
    elif image.ndim == 3:
        image = image[None]
    if spec.frames.has_axis and image.ndim == 4:
        # The frames of one video, or pictures of one frame each.
        image = image.transpose(0, 1)[None] if spec.is_video else image[:, :, None]
    if is_bytes:
        return _with_alpha(image.to(torch.float32) / 255.0 * 2.0 - 1.0, spec)
    check_finite(image, "pixels")
    if value_range == "auto":
        low, high = image.min(), image.max()
        if high > _LARGEST_GUESSED:
            raise RequestError(
                "the pixels are outside both ranges that can be meant",
                saw=f"floats from {low:g} to {high:g}",
                expected="[0, 1] or [-1, 1]",
                hint="send 0..255 as uint8; or say value_range=unit or signed, if this is on purpose",
                cause="bytes-as-floats",
            )
        value_range = "signed" if low < 0 else "unit"
    return _with_alpha(image if value_range == "signed" else image * 2.0 - 1.0, spec)


def _with_alpha(signed: torch.Tensor, spec: ModelSpec) -> torch.Tensor:
    """Add an opaque alpha channel for a model that has one, as a picture gets it in diffusers."""
    if signed.shape[1] == spec.vae_class.pixel_channels:
        return signed
    return torch.cat((signed, torch.ones_like(signed[:, :1])), 1)


def to_unit(sample: torch.Tensor) -> torch.Tensor:
    """Map [-1, 1] to [0, 1], clamped, in the sample's dtype, as diffusers' VaeImageProcessor.denormalize does."""
    return (sample * 0.5 + 0.5).clamp(0, 1)


def frames_of(sample: torch.Tensor) -> torch.Tensor:
    """Return the frames (F, 3, H, W) of one video (1, 3, F, H, W); of pictures (B, 3 or 4, H, W) the colours."""
    return sample[0].transpose(0, 1) if sample.ndim == 5 else sample[:, :3]


def in_parts(chunk: torch.Tensor) -> Sequence[torch.Tensor]:
    """Return a video (B, 3, F, H, W) in parts of a few frames, whose conversion takes several times their bytes."""
    return torch.split(chunk, _FRAMES_AT_ONCE, 2) if chunk.ndim == _VIDEO_AXES else (chunk,)


def to_pixels(sample: torch.Tensor) -> torch.Tensor:
    """Convert (B, 3, H, W) in [-1, 1] to uint8 (B, H, W, 3), rounded half to even, as diffusers' PIL pictures."""
    return (to_unit(sample).permute(0, 2, 3, 1).float() * 255).round().to(torch.uint8)
