"""What latents mean: unpacking them, and moving them between pipelines' scale and the VAE's own.

A full VAE lives in *VAE space*.  Pipelines work on normalised latents, ``(z - shift) * scale``.  A tiny
autoencoder eats and gives normalised latents itself, so for the same request full and tiny need opposite
treatment; both functions below take that into account.
"""

from __future__ import annotations

import torch

from ..errors import RequestError
from ..models import Layout, ModelSpec, Normalisation
from ..models.layout import PACK

#: No VAE's latents come near: SD's stay within ±50, in VAE space and out of it.
ABSURD = 1e4

#: As many bytes as an allocator writes over freed memory.  See :func:`check_finite`.
_ALLOCATOR_BYTES = 32


def unpack(latents: torch.Tensor, layout: Layout) -> torch.Tensor:
    """(B, tokens, 4·C), (C, h, w) or (B, C, h, w) → (B, C, h, w).

    A packed token holds 2×2 latents channel by channel, in the order of Flux's ``_unpack_latents`` in diffusers.
    """
    batch, channels, height, width = layout.batch, layout.channels, layout.height, layout.width
    if layout.is_packed:
        tokens = latents.reshape(batch, height // PACK, width // PACK, channels, PACK, PACK)
        return tokens.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)
    # Not where the shape is there already: reshaping a batch of one makes torch forget that it is channels-last.
    return latents if latents.ndim == 4 else latents.reshape(batch, channels, height, width)


def to_module(
    latents: torch.Tensor, spec: ModelSpec, sent: Normalisation | None, dtype: torch.dtype
) -> torch.Tensor:
    """Latents as they were sent → as the module wants them.

    Args:
        latents: (B, C, h, w).
        spec: The model.
        sent: The normalisation that they carry, or None if they are in VAE space.
        dtype: The module's.

    The arithmetic runs in the wider of both dtypes, so that half-precision latents lose nothing to a float32 VAE,
    and float32 latents are rounded once.
    """
    wide = latents.to(torch.promote_types(latents.dtype, dtype))
    if spec.kind == "tiny":
        wide = wide if sent else _normalise(wide, spec.normalisation)
    elif sent:
        wide = _denormalise(wide, sent)
    return wide.to(dtype)


def from_module(latents: torch.Tensor, spec: ModelSpec, wanted: Normalisation | None) -> torch.Tensor:
    """Latents as the module gives them → as they are wanted, None meaning VAE space.  (B, C, h, w) both."""
    if spec.kind == "tiny":
        return latents if wanted else _denormalise(latents, spec.normalisation)
    return _normalise(latents, wanted) if wanted else latents


# Multiplying, dividing and adding one after the other, in the order of the pipelines: the same rounding.


def _normalise(latents: torch.Tensor, by: Normalisation) -> torch.Tensor:
    if by.mean and by.std:
        return (latents - _per_channel(by.mean, latents)) * by.scaling_factor / _per_channel(by.std, latents)
    return (latents - by.shift_factor) * by.scaling_factor


def _denormalise(latents: torch.Tensor, by: Normalisation) -> torch.Tensor:
    if by.mean and by.std:
        return latents * _per_channel(by.std, latents) / by.scaling_factor + _per_channel(by.mean, latents)
    return latents / by.scaling_factor + by.shift_factor


def _per_channel(numbers: tuple[float, ...], latents: torch.Tensor) -> torch.Tensor:
    return torch.tensor(numbers, dtype=latents.dtype, device=latents.device).view(1, -1, 1, 1)


def check_finite(tensor: torch.Tensor, name: str) -> None:
    """Raises :class:`RequestError` for NaN, infinity, or numbers that no latents and no pixels have."""
    bad = ~(tensor.abs() <= ABSURD)  # a comparison with NaN is false
    if not bad.any():
        return
    flat = bad.reshape(-1)
    first, count = int(flat.nonzero()[0]), int(flat.sum())
    value = tensor.reshape(-1)[first].item()
    at_start = bool(flat[: _ALLOCATOR_BYTES // tensor.element_size()].sum() == count)
    raise RequestError(
        f"the {name} hold numbers that cannot be right",
        saw=f"{value:g} at element {first}, {count} of {flat.numel()} not finite or beyond ±{ABSURD:g}",
        expected="numbers such as a VAE has",
        hint="tensor.detach().cpu().contiguous() before sending: only the first bytes are damaged, which is what"
        " diffusers' remote_decode since 0.39 does to tensors on a GPU"
        if at_start
        else "a look at where they are made (float16 overflow gives infinities), and at the scaling factor",
    )
