"""The shapes of a picture and a mask that a decoder is shown beside its latents, checked by arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import RequestError
from .layout import Layout
from .spec import ModelSpec
from .vae_class import COLOURS


def check_inpainting(
    image: Sequence[int], mask: Sequence[int], layout: Layout, spec: ModelSpec, *, is_bytes: bool
) -> None:
    """Check the shapes of a picture and a mask.

    The picture is (B, 3, H, W), or of bytes also (B, H, W, 3), and the mask (B, 1, H, W), (B, H, W) or (H, W), with
    the size of the decoded pictures.  B is their number, or 1 for all of them.

    Args:
        image: The shape of the picture.
        mask: The shape of the mask.
        layout: The layout of the latents.
        spec: The model.
        is_bytes: Whether the picture has bytes.

    Raises:
        RequestError: for other shapes, and for a model whose decoder takes neither.
    """
    if not spec.vae_class.inpaints:
        raise RequestError(
            f"the decoder of {spec.name} takes no image and mask",
            saw=spec.class_name,
            expected="a model of the class AsymmetricAutoencoderKL",
            hint="the request without image and mask",
        )
    height, width = layout.picture
    size = (height, width)
    item = tuple(image[1:]) if len(image) == 4 else tuple(image)
    is_picture = item == (COLOURS, *size) or (is_bytes and item == (*size, COLOURS))
    is_mask = 2 <= len(mask) <= 4 and tuple(mask[-2:]) == size and (len(mask) < 4 or mask[1] == 1)
    counts = {image[0] if len(image) == 4 else 1, math.prod(mask[:-2])}
    if is_picture and is_mask and counts <= {1, layout.batch}:
        return
    many = "1" if layout.batch == 1 else f"1 or {layout.batch}"
    raise RequestError(
        "the image and the mask do not belong to these latents",
        saw=f"image {list(image)}, mask {list(mask)}",
        expected=f"image [{many}, {COLOURS}, {height}, {width}], mask [{many}, 1, {height}, {width}]",
        hint="both in the size of the picture that is decoded",
        cause="inpainting-size",
    )
