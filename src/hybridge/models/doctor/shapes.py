"""Why a shape is not that of a model's latents or pixels, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ..catalogue import CATALOGUE
from ..spec import ModelSpec
from ..vae_class import COLOURS
from .causes import Finding

#: Axes of a batch of pictures, and of videos.
_PICTURE_AXES, _VIDEO_AXES = 4, 5

#: Pixels with channels that latents have are taken for latents below this side.
_LEAST_PICTURE = 257

#: Most sizes and models that a sentence lists.
_MOST_SIZES = 4
_MOST_MODELS = 6

#: Pipelines of models with fewer latent channels never pack them.
_PACKED_FROM = 16

#: Largest ratio of the sides of a picture that is suggested.
_LARGEST_RATIO = 4.0


def explain_latents(shape: Sequence[int], spec: ModelSpec, height: int | None, width: int | None) -> Finding:
    """Return the cause for which latents of this shape are not the model's.

    Args:
        shape: A shape for which :func:`hybridge.models.latents_layout` finds no layout.
        spec: The model.
        height: Height of the picture in pixels, if the request has it.
        width: Width of the picture in pixels, if the request has it.
    """
    beside = spec.vae_class.beside
    if beside and len(shape) < len(spec.axes):
        return Finding("missing-axes", f"shape {list(shape)}", f"five axes; {spec.name} also has {beside}")
    if len(shape) < _PICTURE_AXES - 1:
        return Finding(
            "missing-axes",
            f"latents of {len(shape)} axes",
            "all axes, a batch axis among them: one `shape` parameter for each",
        )
    if len(shape) == _PICTURE_AXES - 1:
        return _three_axes(shape, spec, height, width)
    if len(shape) == _VIDEO_AXES and not spec.is_video:
        return _video_to_pictures(shape, spec)
    if len(shape) == _PICTURE_AXES and spec.is_video:
        return _pictures_to_video(shape, spec)
    return _as_many_axes(shape, spec)


def explain_pixels(shape: Sequence[int], spec: ModelSpec) -> Finding:
    """Return the cause for which pixels of this shape cannot be encoded.

    Args:
        shape: A shape for which :func:`hybridge.models.image_layout` finds no layout.
        spec: The model.
    """
    seen = f"shape {list(shape)}"
    if len(shape) == _VIDEO_AXES and shape[1] == COLOURS and not spec.is_video:
        return Finding("video-to-picture-model", seen, "a model of videos, or a request for each frame")
    if len(shape) not in (_PICTURE_AXES - 1, _PICTURE_AXES, _VIDEO_AXES):
        return Finding("not-an-image", seen)
    colours = shape[-3] if len(shape) < _VIDEO_AXES else shape[1]
    if shape[-1] == COLOURS:
        return Finding(
            "pixels-channels-last", seen, "tensor.permute(0, 3, 1, 2), or uint8, which may be in this order"
        )
    if spec.latent_channels in (colours, shape[1]) and max(shape[-2:]) < _LEAST_PICTURE:
        return Finding("latents-as-pixels", seen, "the decode endpoint, if these are latents")
    if COLOURS + 1 in (colours, shape[-1]):
        return Finding(
            "alpha-channel", seen, "the three colours without alpha; or the decode endpoint, if these are latents"
        )
    if 1 in (colours, shape[-1]) and len(shape) == _PICTURE_AXES:
        return Finding("grey-pixels", seen, "tensor.expand(-1, 3, -1, -1)")
    return Finding("not-an-image", seen, "the decode endpoint, if these are latents")


def models_with(channels: int, *, of_videos: bool = False) -> list[str]:
    """Return the names of the catalogue's models with this many latent channels, the likeliest first."""
    rows = [spec for spec in CATALOGUE.values() if spec.latent_channels == channels and spec.name != "starter"]
    return [spec.name for spec in sorted(rows, key=lambda row: (row.is_video != of_videos, row.kind == "tiny"))]


def sizes_of(tokens: int, token: int, height: int | None = None, width: int | None = None) -> list[tuple[int, int]]:
    """Return the sizes (height, width) in pixels of pictures with this many tokens, the likeliest first.

    Args:
        tokens: Number of tokens of one picture.
        token: Side of a token in pixels.
        height: Height that was asked for; the nearest ratio of sides comes first.
        width: Width that was asked for.
    """
    wanted = math.log(height / width) if height and width else 0.0
    rows = [row for row in range(1, math.isqrt(tokens) + 1) if tokens % row == 0]
    pairs = {pair for row in rows for pair in ((row, tokens // row), (tokens // row, row))}
    usual = [pair for pair in pairs if max(pair) <= _LARGEST_RATIO * min(pair)] or [*pairs]
    nearest = sorted(usual, key=lambda pair: (round(abs(math.log(pair[0] / pair[1]) - wanted), 6), pair))
    return [(row * token, column * token) for row, column in nearest[:_MOST_SIZES]]


def _as_many_axes(shape: Sequence[int], spec: ModelSpec) -> Finding:
    """Explain a shape with as many axes as the model's latents have."""
    channels, at = spec.latent_channels, spec.axes.index("C")
    seen = shape[at]
    others = models_with(seen, of_videos=spec.is_video)
    if shape[-1] == channels and not (others and _ratio(shape[-2:]) <= _ratio(shape[-3:-1])):
        last = len(shape) - 1
        order = ", ".join(map(str, (0, last, *range(1, last))))
        if spec.axes == "BTCHW":
            order = "0, 1, 4, 2, 3"
        return Finding(
            "channels-last", f"the {channels} channels on the last axis", f"tensor.permute({order}).contiguous()"
        )
    if spec.is_video and shape[3 - at] == channels:
        return Finding(
            "frames-and-channels-swapped",
            f"the {channels} channels on axis {3 - at}, where {spec.name} has frames",
            "tensor.transpose(1, 2).contiguous()",
        )
    if COLOURS in (seen, shape[-1]):
        return _pixels()
    if spec.pack > 1 and channels >= _PACKED_FROM and seen == channels * spec.pack**2:
        return Finding(
            "patchified-latents",
            f"{seen} channels, {spec.pack}×{spec.pack} times the model's {channels}",
            "the pipeline's own unpacking to [batch, channels, height, width], or packed tokens [batch, tokens,"
            f" {seen}] with height and width",
        )
    if others:
        return _of_others(others, seen, spec)
    if shape[0] == channels:
        return Finding(
            "batch-and-channels-swapped",
            f"the {channels} channels on the first axis",
            f"tensor.transpose(0, {at}).contiguous()",
        )
    if seen == 2 * channels:
        return Finding(
            "moments-as-latents",
            f"{seen} channels, twice the model's {channels}",
            f"tensor[:, :{channels}], the mean, if these are an encoder's moments",
        )
    return Finding(
        "unknown-channels",
        f"{seen} channels",
        f"a model with {seen} latent channels; {spec.name} has {channels}, and no model that hybridge knows has"
        f" {seen}",
    )


def _ratio(sides: Sequence[int]) -> float:
    """Return the ratio of a picture's sides: of two readings of a shape, the one nearer to a square is likelier."""
    return max(sides) / min(sides)


def _pixels() -> Finding:
    seen = "three channels, which pictures have"
    return Finding("pixels-as-latents", seen, "the encode endpoint, if these are pixels", is_certain=True)


def _of_others(others: Sequence[str], seen: int, spec: ModelSpec) -> Finding:
    named = ", ".join(others[:_MOST_MODELS])
    hint = f"a model with {seen} latent channels, such as {named}; {spec.name} has {spec.latent_channels}"
    if seen == 2 * spec.latent_channels:
        hint += f"; or tensor[:, :{spec.latent_channels}], the mean, if these are an encoder's moments"
    return Finding("latents-of-another-model", f"{seen} channels, as {named}", hint)


def _three_axes(shape: Sequence[int], spec: ModelSpec, height: int | None, width: int | None) -> Finding:
    channels, packed = spec.latent_channels, spec.latent_channels * spec.pack**2
    if packed and shape[2] == packed:
        return _packed(shape[1], spec, height, width)
    if packed and shape[1] == packed:
        return Finding(
            "tokens-and-channels-swapped",
            f"the {packed} channels of tokens on axis 1",
            "tensor.transpose(1, 2).contiguous()",
        )
    if COLOURS in (shape[0], shape[2]):
        return _pixels()
    if shape[2] == channels:
        return Finding(
            "channels-last",
            f"the {channels} channels on the last axis, and no batch axis",
            "tensor.permute(2, 0, 1).contiguous()",
        )
    others = models_with(shape[0])
    if others and not spec.is_video:
        return _of_others(others, shape[0], spec)
    packing = [row.name for row in CATALOGUE.values() if row.pack and row.latent_channels * row.pack**2 == shape[2]]
    if packing:
        named = ", ".join(packing[:_MOST_MODELS])
        hint = (
            f"one of them; tokens of {spec.name} have {packed}"
            if packed
            else f"one of them; {spec.name} packs none"
        )
        return Finding("packed-of-another-model", f"tokens of {shape[2]} channels, as {named}", hint)
    if spec.is_video:
        return Finding("missing-axes", "three axes", "a batch axis and an axis of frames")
    return Finding("unknown-channels", f"{shape[0]} channels, or tokens of {shape[2]}", "a batch axis")


def _packed(tokens: int, spec: ModelSpec, height: int | None, width: int | None) -> Finding:
    token = spec.spatial_factor * spec.pack
    sizes = sizes_of(tokens, token, height, width)
    named = " or ".join(f"height={row} width={column}" for row, column in sizes)
    each = " for each latent frame" if spec.is_video else ""
    if not (height and width):
        return Finding(
            "packed-without-size",
            "packed latents without height and width",
            "height and width of the picture in pixels, which packed latents need"
            + ("" if spec.is_video else f": {named}"),
        )
    count = (height // token) * (width // token)
    return Finding(
        "packed-size-mismatch",
        f"{tokens} tokens, where {height}×{width} has {count}",
        f"other height and width: {height}×{width} has {count} tokens{each}, the tensor has {tokens}"
        + ("" if spec.is_video else f", as {named}"),
    )


def _video_to_pictures(shape: Sequence[int], spec: ModelSpec) -> Finding:
    channels = spec.latent_channels
    if shape[1] == channels and shape[2] == 1:
        return Finding(
            "video-to-picture-model",
            "a frame axis",
            "tensor.squeeze(2): a picture model decodes pictures; videos need a video model",
        )
    if spec.frames.has_axis and channels in shape[1:3]:
        return _as_many_axes(shape, spec) if shape[1] != channels else _several_frames(spec)
    others = [name for name in models_with(shape[1], of_videos=True) if CATALOGUE[name].is_video]
    named = f" such as {', '.join(others[:_MOST_MODELS])}" if others else ""
    return Finding(
        "video-to-picture-model",
        f"{len(shape)} axes, which videos have",
        f"a picture model decodes pictures; videos need a video model{named}",
    )


def _several_frames(spec: ModelSpec) -> Finding:
    return Finding(
        "video-to-picture-model", "several frames", f"one request for each: {spec.name} decodes pictures"
    )


def _pictures_to_video(shape: Sequence[int], spec: ModelSpec) -> Finding:
    if COLOURS in (shape[1], shape[3]):
        return _pixels()
    others = [name for name in models_with(shape[1]) if not CATALOGUE[name].is_video]
    if others:
        return _of_others(others, shape[1], spec)
    axes = (
        "[batch, frames, channels, height, width]"
        if spec.axes == "BTCHW"
        else "[batch, channels, frames, height, width]"
    )
    return Finding(
        "picture-to-video-model", "four axes, which pictures have", f"{axes}, with {spec.latent_channels} channels"
    )


def cropped_sides(
    sides: tuple[int, int], height: int | None, width: int | None, *, is_packed: bool
) -> Iterator[Finding]:
    """Yield a finding if the picture is smaller than the height and width that the request names.

    Args:
        sides: (height, width) of the picture that will be made, in pixels.
        height: Height in the request.
        width: Width in the request.
        is_packed: Whether the latents are packed, so that the request's sides decide.
    """
    if not (height and width) or (height, width) == sides:
        return
    shown = f"{sides[1]}x{sides[0]}"
    if is_packed:
        yield Finding(
            "size-cropped",
            f"the picture has {shown} pixels and not {width}x{height}, because packed latents come in whole tokens",
        )
    elif (sides[0] <= height < 2 * sides[0]) and (sides[1] <= width < 2 * sides[1]):
        # Others send sides of another meaning, which never counted.
        yield Finding(
            "size-cropped",
            f"the picture has {shown} pixels, as its latents say, and not {width}x{height}",
        )
