"""One row for each class: a small model with random weights, and its pipeline's own decode and encode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch

#: Pixels on each side of everything here.
SIDE = 32


@dataclass(frozen=True)
class Row:
    """A model of the catalogue in small.

    Attributes:
        name: The catalogue's name of the model.
        make: Makes the module.
        latents: The shape of a pipeline's latents.
        decode: The pipeline's own way from such latents to its VAE's output; (vae, latents) → pixels.
        encode: The pipeline's own way from pixels in [-1, 1] to latents; None where the model does not encode.
        pixels: The shape of pixels for ``encode``.
        query: Parameters of the request to decode.
        rtol: How far from the pipeline the answer may be, as a part of the largest number; 0: the same bits.
    """

    name: str
    make: Callable[[], Any]
    latents: tuple[int, ...]
    decode: Callable[[Any, torch.Tensor], torch.Tensor]
    encode: Callable[[Any, torch.Tensor], torch.Tensor] | None = None
    pixels: tuple[int, ...] = (1, 3, SIDE, SIDE)
    query: dict[str, Any] = field(default_factory=dict)
    rtol: float = 0.0


def make(component: type, **config: Any) -> Any:
    """A frozen module of random weights; zeros, with which training starts, are replaced, so that all count."""
    torch.manual_seed(0)
    module = component(**config)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.05)
    return module.eval().requires_grad_(False)


def _per_channel(numbers: Any, like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(numbers).view(1, -1, 1, 1, 1).to(like)


def decode_wan(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """WanPipeline.__call__"""
    mean = _per_channel(vae.config.latents_mean, latents)
    std = 1.0 / _per_channel(vae.config.latents_std, latents)
    sample: torch.Tensor = vae.decode(latents / std + mean, return_dict=False)[0]
    return sample


def encode_wan(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """WanVideoToVideoPipeline.prepare_latents"""
    z = vae.encode(pixels).latent_dist.mode()
    mean = _per_channel(vae.config.latents_mean, z)
    std = 1.0 / _per_channel(vae.config.latents_std, z)
    latents: torch.Tensor = (z - mean) * std
    return latents


ROWS = (
    Row(
        "wan-2.1",
        lambda: make(diffusers.AutoencoderKLWan, base_dim=4, num_res_blocks=1),
        (1, 16, 3, 4, 4),
        decode_wan,
        encode_wan,
        (1, 3, 9, SIDE, SIDE),
    ),
)
