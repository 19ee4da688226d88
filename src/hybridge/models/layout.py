"""Find the layout of a tensor of latents or pixels, and the size of the picture, by arithmetic on shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import RequestError
from .doctor.shapes import explain_latents, explain_pixels
from .spec import ModelSpec
from .vae_class import COLOURS, PACK, Axes

__all__ = ["PACK", "ImageLayout", "Layout", "image_layout", "latents_layout"]


@dataclass(frozen=True, slots=True)
class Layout:
    """The shape of latents, and how they are sent.

    ``height`` and ``width`` count latents; the picture is ``spatial_factor`` times as large.

    Attributes:
        batch: Number of items.
        channels: Latent channels.
        height: Rows of latents.
        width: Columns of latents.
        is_packed: Whether tokens of ``pack`` × ``pack`` latents were sent.
        spatial_factor: Pixels per latent on each side.
        frames: Latent frames; 1 for pictures.
        video_frames: Frames that they decode to; 1 for pictures.
        axes: The order of the axes that were sent, with the batch.
        pack: The side of a token's square.
        has_frame_axis: Whether the module's latents have an axis of frames.
    """

    batch: int
    channels: int
    height: int
    width: int
    is_packed: bool
    spatial_factor: int
    frames: int = 1
    video_frames: int = 1
    axes: Axes = "BCHW"
    pack: int = PACK
    has_frame_axis: bool = False

    @property
    def picture(self) -> tuple[int, int]:
        """(height, width) of the picture in pixels."""
        return self.height * self.spatial_factor, self.width * self.spatial_factor

    @property
    def pixels(self) -> int:
        """Number of pixels of the whole batch, all frames together."""
        return self.batch * self.video_frames * math.prod(self.picture)


def latents_layout(shape: Sequence[int], spec: ModelSpec, height: int | None, width: int | None) -> Layout:
    """Return the layout of latents of this shape for this model.

    As many axes as the model's latents have are (B, C, h, w), or (B, C, f, h, w) and (B, f, C, h, w) of a model
    with frames, and ``height`` and ``width`` are ignored: clients send them anyway, and for videos ComfyUI's nodes
    send wrong ones.  One axis less is one item without its batch axis, as SD.Next sends it, or for a model with
    frames (B, C, h, w): one frame.  Three axes are packed, (B, tokens, p²·C), when the last axis and the number of
    tokens fit ``height`` and ``width``.  Sides that are not multiples of a token's pixels are rounded down, as in
    diffusers.

    Raises:
        RequestError: when the shape is none of these.
    """
    found = _packed(shape, spec, height, width) or _unpacked(tuple(shape), spec)
    if found is None:
        finding = explain_latents(shape, spec, height, width)
        raise RequestError(
            f"these latents are not {spec.name}'s",
            saw=f"shape {list(shape)}, height {height}, width {width}",
            expected=_expected(spec),
            hint=finding.hint,
            cause=finding.code,
        )
    spec.frames.check_latent_frames(spec.name, found.frames)
    return found


def _packed(shape: Sequence[int], spec: ModelSpec, height: int | None, width: int | None) -> Layout | None:
    channels, factor, pack = spec.latent_channels, spec.spatial_factor, spec.pack
    if len(shape) != 3 or not pack or shape[2] != channels * pack**2 or not (height and width):
        return None
    rows, columns = height // (factor * pack), width // (factor * pack)
    frames, left = divmod(shape[1], rows * columns) if rows * columns else (0, 1)
    if left or frames < 1 or (frames != 1 and not spec.is_video):
        return None
    return _layout(spec, shape[0], frames, rows * pack, columns * pack, is_packed=True)


def _unpacked(shape: tuple[int, ...], spec: ModelSpec) -> Layout | None:
    channels, axes = spec.latent_channels, spec.axes
    if len(shape) == len(axes) - 1:
        if shape[axes.index("C") - 1] == channels:
            shape = (1, *shape)
        elif spec.frames.has_axis and shape[1] == channels:
            at = axes.index("T")
            shape = (*shape[:at], 1, *shape[at:])
    if len(shape) != len(axes) or shape[axes.index("C")] != channels:
        return None
    frames = shape[axes.index("T")] if "T" in axes else 1
    return _layout(spec, shape[0], frames, shape[-2], shape[-1], is_packed=False)


def _layout(spec: ModelSpec, batch: int, frames: int, height: int, width: int, *, is_packed: bool) -> Layout:
    return Layout(
        batch,
        spec.latent_channels,
        height,
        width,
        is_packed,
        spec.spatial_factor,
        frames,
        spec.frames.frames_out(frames),
        spec.axes,
        spec.pack,
        spec.frames.has_axis,
    )


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """The shape of pixels to encode.

    Attributes:
        batch: Number of pictures, or of videos.
        frames: Frames of each; 1 for pictures.
        height: In pixels.
        width: In pixels.
        is_last: Whether the colours are the last axis.
    """

    batch: int
    frames: int
    height: int
    width: int
    is_last: bool


def image_layout(shape: Sequence[int], spec: ModelSpec, *, is_bytes: bool) -> ImageLayout:
    """Return the layout of pixels for this model.

    Floats are (B, 3, H, W), and (B, 3, F, H, W) for a model of videos; bytes may also be (B, H, W, 3); the batch
    axis may be missing.  For a model of videos, four axes are the frames of one, (F, 3, H, W) or (F, H, W, 3).

    Raises:
        RequestError: for any other layout, and for sides that are not multiples of the model's factor.
    """
    found = _image_layout(tuple(shape), spec, is_bytes=is_bytes)
    if found is None:
        finding = explain_pixels(shape, spec)
        videos = ", [1, 3, frames, height, width]" if spec.is_video else ""
        first = "frames" if spec.is_video else "batch"
        raise RequestError(
            "not an image tensor",
            saw=f"shape {list(shape)}",
            expected=f"[{first}, 3, height, width]{videos}, or for uint8 also [{first}, height, width, 3]",
            hint=finding.hint,
            cause=finding.code,
        )
    height, width, factor = found.height, found.width, spec.spatial_factor
    if height % factor or width % factor:
        above = "×".join(str(-(-side // factor) * factor) for side in (height, width))
        raise RequestError(
            "an image tensor must have sides that are multiples of the model's factor",
            saw=f"{height}×{width}",
            expected=f"multiples of {factor}, such as {above}",
            hint="crop or pad the tensor, or send a picture file, which is resized",
            cause="side-not-a-multiple",
        )
    return found


def _image_layout(shape: tuple[int, ...], spec: ModelSpec, *, is_bytes: bool) -> ImageLayout | None:
    channels = (COLOURS, spec.vae_class.pixel_channels)
    if len(shape) == 5:
        is_clip = shape[1] in channels and (spec.is_video or (spec.frames.has_axis and shape[2] == 1))
        return ImageLayout(shape[0], shape[2], shape[3], shape[4], False) if is_clip else None
    first, *item = shape if len(shape) == 4 else (1, *shape)
    batch, frames = (1, first) if spec.is_video else (first, 1)
    if is_bytes and len(item) == 3 and item[2] in channels:
        return ImageLayout(batch, frames, item[0], item[1], True)
    if len(item) == 3 and item[0] in channels:
        return ImageLayout(batch, frames, item[1], item[2], False)
    return None


def _expected(spec: ModelSpec) -> str:
    channels, factor, pack = spec.latent_channels, spec.spatial_factor, spec.pack
    names = {"B": "batch", "C": str(channels), "T": "frames", "H": f"height/{factor}", "W": f"width/{factor}"}
    expected = f"[{', '.join(names[axis] for axis in spec.axes)}]"
    if pack:
        tokens = ("frames·" if spec.is_video else "") + f"(height/{factor * pack})·(width/{factor * pack})"
        expected += f", or packed [batch, {tokens}, {channels * pack**2}] with height and width"
    return expected
