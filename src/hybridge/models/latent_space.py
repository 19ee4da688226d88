"""Convert latents between the conventions of pipelines, full autoencoders and tiny autoencoders.

A full autoencoder works in *VAE space*.  Pipelines work on *normalised* latents, see :class:`Normalisation`.  A
tiny autoencoder takes and returns normalised latents.

The functions use only operators and methods that NumPy's arrays and torch's tensors have in common, and return an
array of the same type and dtype.
"""

from __future__ import annotations

from typing import Any, Literal

from ..errors import RequestError
from .layout import Layout
from .spec import ModelSpec
from .vae_class import Normalisation


def normalisation_of(
    spec: ModelSpec,
    by: Literal["none", "given", "model"],
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
) -> Normalisation | None:
    """Return the normalisation that a request's scaling means for a model; None is VAE space.

    Args:
        spec: The model.
        by: ``none`` for VAE space, ``given`` for the two factors, ``model`` for the model's own normalisation.
        scaling_factor: Used with ``given``; 1 if missing.
        shift_factor: Used with ``given``, 0 if missing; with ``model`` it replaces the model's own.

    Raises:
        RequestError: for a shift factor with a model that has a mean for each channel.
    """
    if by == "none":
        return None
    if by == "given":
        return Normalisation(scaling_factor or 1.0, shift_factor or 0.0)
    own = spec.normalisation
    if shift_factor is None or shift_factor == own.shift_factor:
        return own
    if own.mean and own.std:
        raise RequestError(
            f"{spec.name} has a mean for each latent channel, which no single shift factor can replace",
            saw=f"shift_factor {shift_factor:g} with do_scaling",
            hint="do_scaling without shift_factor",
        )
    return Normalisation(own.scaling_factor, shift_factor)


# Multiplication, division and addition are in the order of diffusers' pipelines, for the same rounding.


def normalise(latents: Any, by: Normalisation) -> Any:
    """Convert latents (B, C, h, w), (B, C, f, h, w) or (C, h, w) from VAE space to normalised.

    Raises:
        RequestError: as for :func:`check_sides`.
    """
    latents = _patched(latents, by.patch)
    if by.mean and by.std:
        mean, std = (_statistic(numbers, latents, by) for numbers in (by.mean, by.std))
        found = (latents - mean) * (1.0 / std) if by.divides else (latents - mean) * by.scaling_factor / std
    else:
        found = (latents - by.shift_factor) * by.scaling_factor
    return _unpatched(found, by.patch)


def denormalise(latents: Any, by: Normalisation) -> Any:
    """Convert latents (B, C, h, w), (B, C, f, h, w) or (C, h, w) from normalised to VAE space.

    Raises:
        RequestError: as for :func:`check_sides`.
    """
    latents = _patched(latents, by.patch)
    if by.mean and by.std:
        mean, std = (_statistic(numbers, latents, by) for numbers in (by.mean, by.std))
        found = latents / (1.0 / std) + mean if by.divides else latents * std / by.scaling_factor + mean
    elif by.divides:
        found = 1 / by.scaling_factor * latents + by.shift_factor
    else:
        found = latents / by.scaling_factor + by.shift_factor
    return _unpatched(found, by.patch)


def check_sides(spec: ModelSpec, by: Normalisation | None, height: int, width: int) -> None:
    """Check that latents can be converted between the module's convention and another one.

    Args:
        spec: The model.
        by: The normalisation of the latents as sent, or as wanted; None for VAE space.
        height: Rows of latents.
        width: Columns of latents.

    Raises:
        RequestError: where squares of latents are normalised together, and a side is not a multiple of theirs.
    """
    if spec.kind == "tiny":
        by = None if by else spec.normalisation
    if by is not None:
        _check_squares(by.patch, height, width)


def _check_squares(side: int, height: int, width: int) -> None:
    if height % side or width % side:
        raise RequestError(
            "latents of these sides cannot be normalised",
            saw=f"{height}×{width} latents",
            expected=f"multiples of {side}: {side}×{side} latents are normalised together",
            hint="a picture of other sides, or do_scaling=False",
        )


def _patched(latents: Any, side: int) -> Any:
    """(…, C, h, w) → (…, C·side², h/side, w/side)"""
    if side == 1:
        return latents
    *batch, channels, height, width = latents.shape
    _check_squares(side, height, width)
    # (…, C, rows, side, columns, side) → (…, C, side, side, rows, columns)
    squares = latents.reshape(*batch, channels, height // side, side, width // side, side)
    ordered = squares.swapaxes(-4, -3).swapaxes(-3, -1).swapaxes(-2, -1)
    return ordered.reshape(*batch, channels * side**2, height // side, width // side)


def _unpatched(latents: Any, side: int) -> Any:
    """(…, C·side², rows, columns) → (…, C, rows·side, columns·side)"""
    if side == 1:
        return latents
    *batch, channels, rows, columns = latents.shape
    squares = latents.reshape(*batch, channels // side**2, side, side, rows, columns)
    ordered = squares.swapaxes(-2, -1).swapaxes(-3, -1).swapaxes(-4, -3)
    return ordered.reshape(*batch, channels // side**2, rows * side, columns * side)


def to_module(latents: Any, spec: ModelSpec, sent: Normalisation | None) -> Any:
    """Convert latents as sent to the convention of the model's module.

    Args:
        latents: (B, C, h, w) or (C, h, w).
        spec: The model.
        sent: The normalisation of the latents, or None if they are in VAE space.
    """
    if spec.kind == "tiny":
        return latents if sent else normalise(latents, spec.normalisation)
    return denormalise(latents, sent) if sent else latents


def from_module(latents: Any, spec: ModelSpec, wanted: Normalisation | None) -> Any:
    """Convert latents from the model's module to the wanted normalisation; None is VAE space."""
    if spec.kind == "tiny":
        return latents if wanted else denormalise(latents, spec.normalisation)
    return normalise(latents, wanted) if wanted else latents


def to_pipeline(latents: Any, spec: ModelSpec, sent: Normalisation | None) -> Any:
    """Convert latents as sent to the normalisation of the model's own pipelines."""
    if sent == spec.normalisation or (sent and spec.kind == "tiny"):
        return latents
    return normalise(denormalise(latents, sent) if sent else latents, spec.normalisation)


def unpack(latents: Any, layout: Layout) -> Any:
    """Convert latents as sent to (B, C, h, w), or (B, C, f, h, w) for a module with frames.

    A packed token has 2×2 latents channel by channel, in the order of Flux's ``_unpack_latents`` in diffusers.
    """
    batch, channels, frames = layout.batch, layout.channels, layout.frames
    height, width, pack = layout.height, layout.width, layout.pack
    middle = (frames,) if layout.has_frame_axis else ()
    if layout.is_packed:
        # (B, f, rows, columns, C, p, p) → (B, C, f, rows, p, columns, p)
        tokens = latents.reshape(batch, frames, height // pack, width // pack, channels, pack, pack)
        ordered = tokens.swapaxes(1, 4).swapaxes(2, 4).swapaxes(3, 4).swapaxes(4, 5)
        return ordered.reshape(batch, channels, *middle, height, width)
    if layout.axes == "BTCHW":
        return latents.reshape(batch, frames, channels, height, width).swapaxes(1, 2)
    # No reshape if the shape is right: reshaping a batch of one makes torch forget that it is channels-last.
    return latents if latents.ndim == 4 + len(middle) else latents.reshape(batch, channels, *middle, height, width)


def to_axes(latents: Any, spec: ModelSpec) -> Any:
    """Convert (B, C, f, h, w) or (B, C, h, w) to the order of axes that pipelines have."""
    return latents.swapaxes(1, 2) if spec.axes == "BTCHW" else latents


def _statistic(numbers: tuple[float, ...], like: Any, by: Normalisation) -> Any:
    """Return the numbers to broadcast against (B, C, …) or (C, h, w), rounded to float32 first as in diffusers."""
    if not by.per_frame:
        rest = (1,) * (like.ndim - 2 if like.ndim > 3 else 2)
        return _as_array(numbers, like).reshape(-1, *rest)
    channels, frames = like.shape[1:3]
    return _as_array(numbers, like).reshape(1, channels, -1, 1, 1)[:, :, :frames]


def _as_array(numbers: tuple[float, ...], like: Any) -> Any:
    if hasattr(like, "new_tensor"):
        return like[:0].float().new_tensor(numbers).to(like.dtype)
    import numpy as np

    return np.asarray(numbers, np.float32).astype(like.dtype)
