"""Convert latents between the conventions of pipelines, full autoencoders and tiny autoencoders.

A full autoencoder works in *VAE space*.  Pipelines work on *normalised* latents, see :class:`Normalisation`.  A
tiny autoencoder takes and returns normalised latents.

The functions use only operators and methods that NumPy's arrays and torch's tensors have in common, and return an
array of the same type and dtype.
"""

from __future__ import annotations

from typing import Any, Literal

from ..errors import RequestError
from .layout import PACK, Layout
from .spec import ModelSpec, Normalisation


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
    """Convert latents (B, C, h, w) or (C, h, w) from VAE space to normalised."""
    if by.mean and by.std:
        return (latents - _per_channel(by.mean, latents)) * by.scaling_factor / _per_channel(by.std, latents)
    return (latents - by.shift_factor) * by.scaling_factor


def denormalise(latents: Any, by: Normalisation) -> Any:
    """Convert latents (B, C, h, w) or (C, h, w) from normalised to VAE space."""
    if by.mean and by.std:
        return latents * _per_channel(by.std, latents) / by.scaling_factor + _per_channel(by.mean, latents)
    return latents / by.scaling_factor + by.shift_factor


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
    """Convert (B, tokens, 4·C), (C, h, w) or (B, C, h, w) to (B, C, h, w).

    A packed token has 2×2 latents channel by channel, in the order of Flux's ``_unpack_latents`` in diffusers.
    """
    batch, channels, height, width = layout.batch, layout.channels, layout.height, layout.width
    if layout.is_packed:
        # (B, rows, columns, C, 2, 2) → (B, C, rows, 2, columns, 2)
        tokens = latents.reshape(batch, height // PACK, width // PACK, channels, PACK, PACK)
        return tokens.swapaxes(1, 3).swapaxes(2, 3).swapaxes(3, 4).reshape(batch, channels, height, width)
    # No reshape if the shape is right: reshaping a batch of one makes torch forget that it is channels-last.
    return latents if latents.ndim == 4 else latents.reshape(batch, channels, height, width)


def _per_channel(numbers: tuple[float, ...], like: Any) -> Any:
    """Return (C, 1, 1) in the dtype of ``like``, rounded to float32 first as in diffusers' pipelines."""
    if hasattr(like, "new_tensor"):
        return like[:0].float().new_tensor(numbers).to(like.dtype).reshape(-1, 1, 1)
    import numpy as np

    return np.asarray(numbers, np.float32).astype(like.dtype).reshape(-1, 1, 1)
