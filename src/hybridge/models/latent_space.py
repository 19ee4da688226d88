"""What latents mean: the conventions by which pipelines, full autoencoders and tiny ones exchange them.

A full autoencoder works in *VAE space*.  Pipelines work on *normalised* latents, see :class:`Normalisation`.  A
tiny autoencoder takes and gives normalised latents itself.

The functions use nothing of an array but its operators and methods that NumPy's arrays and torch's tensors have in
common, and give back an array of the kind and dtype that they were given.
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
    """The normalisation that a request's scaling means for a model; None is VAE space.

    Args:
        spec: The model.
        by: ``none`` for VAE space, ``given`` for the two factors, ``model`` for what the model's own pipelines do.
        scaling_factor: With ``given``; 1 where it is missing.
        shift_factor: With ``given``, 0 where it is missing.  With ``model``, instead of the model's own.

    Raises:
        RequestError: for a shift factor in place of the model's own where that has a mean for each channel.
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


# Multiplying, dividing and adding one after the other, in the order of diffusers' pipelines: the same rounding.


def normalise(latents: Any, by: Normalisation) -> Any:
    """VAE space → normalised; (B, C, h, w) or (C, h, w) both."""
    if by.mean and by.std:
        return (latents - _per_channel(by.mean, latents)) * by.scaling_factor / _per_channel(by.std, latents)
    return (latents - by.shift_factor) * by.scaling_factor


def denormalise(latents: Any, by: Normalisation) -> Any:
    """Normalised → VAE space; (B, C, h, w) or (C, h, w) both."""
    if by.mean and by.std:
        return latents * _per_channel(by.std, latents) / by.scaling_factor + _per_channel(by.mean, latents)
    return latents / by.scaling_factor + by.shift_factor


def to_module(latents: Any, spec: ModelSpec, sent: Normalisation | None) -> Any:
    """Latents as they were sent → as the model's module takes them.

    Args:
        latents: (B, C, h, w) or (C, h, w).
        spec: The model.
        sent: The normalisation that they carry, or None if they are in VAE space.
    """
    if spec.kind == "tiny":
        return latents if sent else normalise(latents, spec.normalisation)
    return denormalise(latents, sent) if sent else latents


def from_module(latents: Any, spec: ModelSpec, wanted: Normalisation | None) -> Any:
    """Latents as the model's module gives them → as they are wanted, None meaning VAE space."""
    if spec.kind == "tiny":
        return latents if wanted else denormalise(latents, spec.normalisation)
    return normalise(latents, wanted) if wanted else latents


def to_pipeline(latents: Any, spec: ModelSpec, sent: Normalisation | None) -> Any:
    """Latents as they were sent → normalised as the model's own pipelines have them."""
    if sent == spec.normalisation or (sent and spec.kind == "tiny"):
        return latents
    return normalise(denormalise(latents, sent) if sent else latents, spec.normalisation)


def unpack(latents: Any, layout: Layout) -> Any:
    """(B, tokens, 4·C), (C, h, w) or (B, C, h, w) → (B, C, h, w).

    A packed token holds 2×2 latents channel by channel, in the order of Flux's ``_unpack_latents`` in diffusers.
    """
    batch, channels, height, width = layout.batch, layout.channels, layout.height, layout.width
    if layout.is_packed:
        # (B, rows, columns, C, 2, 2) → (B, C, rows, 2, columns, 2)
        tokens = latents.reshape(batch, height // PACK, width // PACK, channels, PACK, PACK)
        return tokens.swapaxes(1, 3).swapaxes(2, 3).swapaxes(3, 4).reshape(batch, channels, height, width)
    # Not where the shape is there already: reshaping a batch of one makes torch forget that it is channels-last.
    return latents if latents.ndim == 4 else latents.reshape(batch, channels, height, width)


def _per_channel(numbers: tuple[float, ...], like: Any) -> Any:
    """(C, 1, 1) in the dtype of ``like``, by way of float32 as in diffusers' pipelines."""
    if hasattr(like, "new_tensor"):
        return like[:0].float().new_tensor(numbers).to(like.dtype).reshape(-1, 1, 1)
    import numpy as np

    return np.asarray(numbers, np.float32).astype(like.dtype).reshape(-1, 1, 1)
