"""Find the layout of a tensor of latents or pixels, and the size of the picture, by arithmetic on shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import RequestError
from .spec import ModelSpec

#: Flux's pipelines pack 2×2 latents into the channels of one token.
PACK = 2


@dataclass(frozen=True, slots=True)
class Layout:
    """The shape of latents as (batch, channels, height, width), and whether they are packed.

    ``height`` and ``width`` count latents; the picture is ``spatial_factor`` times as large.
    """

    batch: int
    channels: int
    height: int
    width: int
    is_packed: bool
    spatial_factor: int

    @property
    def picture(self) -> tuple[int, int]:
        """(height, width) of the picture in pixels."""
        return self.height * self.spatial_factor, self.width * self.spatial_factor

    @property
    def pixels(self) -> int:
        """Number of pixels of the whole batch."""
        return self.batch * math.prod(self.picture)


def latents_layout(shape: Sequence[int], spec: ModelSpec, height: int | None, width: int | None) -> Layout:
    """Return the layout of latents of this shape for this model.

    Four axes are (B, C, h, w), and ``height`` and ``width`` are ignored: clients send them anyway, and for videos
    ComfyUI's nodes send wrong ones.  Three axes are packed, (B, tokens, 4·C), when the last axis and the number
    of tokens fit ``height`` and ``width``; otherwise they are one item without its batch axis, (C, h, w), as
    SD.Next sends it.  Sides that are not multiples of a token's pixels are rounded down, as in diffusers.

    Raises:
        RequestError: when the shape is none of these.
    """
    channels, factor = spec.latent_channels, spec.spatial_factor
    token = factor * PACK
    if len(shape) == 4 and shape[1] == channels:
        return Layout(shape[0], channels, shape[2], shape[3], False, factor)
    if len(shape) == 3 and shape[2] == channels * PACK**2 and height and width:
        rows, columns = height // token, width // token
        if shape[1] == rows * columns:
            return Layout(shape[0], channels, rows * PACK, columns * PACK, True, factor)
    if len(shape) == 3 and shape[0] == channels:
        return Layout(1, channels, shape[1], shape[2], False, factor)
    raise RequestError(
        f"these latents are not {spec.name}'s",
        saw=f"shape {list(shape)}, height {height}, width {width}",
        expected=f"[batch, {channels}, height/{factor}, width/{factor}], or packed"
        f" [batch, (height/{token})·(width/{token}), {channels * PACK**2}] with height and width",
        hint=_hint(shape, spec, height, width),
    )


def image_layout(shape: Sequence[int], spec: ModelSpec, *, is_bytes: bool) -> tuple[int, int, int]:
    """Return (batch, height, width) of an image tensor for this model.

    Floats are (B, 3, H, W); bytes may also be (B, H, W, 3); the batch axis may be missing.

    Raises:
        RequestError: for any other layout, and for sides that are not multiples of the model's factor.
    """
    batch, *item = shape if len(shape) == 4 else (1, *shape)
    if is_bytes and len(item) == 3 and item[2] == 3:
        height, width = item[0], item[1]
    elif len(item) == 3 and item[0] == 3:
        height, width = item[1], item[2]
    else:
        raise RequestError(
            "not an image tensor",
            saw=f"shape {list(shape)}",
            expected="[batch, 3, height, width], or for uint8 also [batch, height, width, 3]",
            hint="the decode endpoint, if these are latents" if len(shape) in (3, 4) else None,
        )
    factor = spec.spatial_factor
    if height % factor or width % factor:
        above = "×".join(str(-(-side // factor) * factor) for side in (height, width))
        raise RequestError(
            "an image tensor must have sides that are multiples of the model's factor",
            saw=f"{height}×{width}",
            expected=f"multiples of {factor}, such as {above}",
            hint="crop or pad the tensor, or send a picture file, which is resized",
        )
    return batch, height, width


def _hint(shape: Sequence[int], spec: ModelSpec, height: int | None, width: int | None) -> str:
    channels, token = spec.latent_channels, spec.spatial_factor * PACK
    if len(shape) == 3 and shape[2] == channels * PACK**2:
        if not (height and width):
            return "height and width of the picture in pixels, which packed latents need"
        tokens = (height // token) * (width // token)
        return f"other height and width: {height}×{width} has {tokens} tokens, the tensor has {shape[1]}"
    if len(shape) == 4 and shape[1] == 3:
        return "the encode endpoint, if these are pixels"
    if len(shape) == 4:
        return f"a model with {shape[1]} latent channels; {spec.name} has {channels}"
    return "a picture model decodes pictures; videos need a video model" if len(shape) == 5 else "a batch axis"
