"""The plain forward: diffusers' own modules, untouched.  The oracle for whatever is faster."""

from __future__ import annotations

from typing import Any

import torch


def decode(module: Any, latents: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) as the module wants them → (B, 3, H, W), about [-1, 1]."""
    sample: torch.Tensor = module.decode(latents, return_dict=False)[0]
    return sample


def moments(module: Any, image: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [-1, 1] → the posterior (B, 2·C, h, w): mean, then the logarithm of the variance."""
    parameters: torch.Tensor = module.encode(image, return_dict=False)[0].parameters
    return parameters


def encode(module: Any, image: torch.Tensor, *, sample: bool, generator: torch.Generator | None) -> torch.Tensor:
    """(B, 3, H, W) in [-1, 1] → latents (B, C, h, w): the posterior's mode, or a draw from it."""
    encoded = module.encode(image, return_dict=False)[0]
    if isinstance(encoded, torch.Tensor):  # a tiny autoencoder has no posterior
        return encoded
    latents: torch.Tensor = encoded.sample(generator) if sample else encoded.mode()
    return latents
