"""The picture and the mask that a decoder is shown beside its latents, as its module takes them."""

from __future__ import annotations

import torch

from ..errors import RequestError
from ..models import Layout, ModelSpec, check_inpainting
from .latents import check_finite
from .pixels import to_signed


def to_inpainting(
    image: torch.Tensor | None, mask: torch.Tensor | None, layout: Layout, spec: ModelSpec, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """Return the picture (B, 3, H, W) in [-1, 1] and the mask (B, 1, H, W) in [0, 1], where 1 is painted anew.

    Without both of them, nothing is returned of either.

    Args:
        image: Floats in [-1, 1], or bytes; see :func:`.models.inpainting.check_inpainting` for the shape.
        mask: Floats in [0, 1], or bytes, 255 for 1.
        layout: The layout of the latents.
        spec: The model.
        like: The module's latents, whose dtype and device both get.

    Raises:
        RequestError: for one of both alone, other shapes, NaN, and numbers that no mask has.
    """
    if image is None and mask is None:
        return None, None
    if image is None or mask is None:
        raise RequestError("an image and its mask belong together", saw="one of them", expected="both, or neither")
    check_inpainting(image.shape, mask.shape, layout, spec, is_bytes=image.dtype == torch.uint8)
    signed = to_signed(image.to(like.device), spec, "signed").to(like.dtype)
    mask = mask.to(like.device).reshape(-1, 1, *mask.shape[-2:])
    if mask.dtype == torch.uint8:
        if bool((mask == 1).any()) and not bool((mask > 1).any()):
            raise _no_mask("bytes that are all 0 or 1", "255 for what is painted anew")
        mask = mask / 255
    check_finite(mask, "mask's numbers")
    low, high = mask.aminmax()
    if low < 0 or high > 1:
        raise _no_mask(f"numbers from {low:g} to {high:g}", "0 to 1, where 1 is painted anew")
    return signed.expand(layout.batch, -1, -1, -1), mask.to(like.dtype).expand(layout.batch, -1, -1, -1)


def _no_mask(saw: str, expected: str) -> RequestError:
    return RequestError("this is no mask", saw=saw, expected=expected, cause="no-mask")
