"""The plain forward: diffusers' own modules, unchanged.  The reference for all faster modes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def decode(module: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents (B, C, h, w), normalised as the module needs them, to pictures (B, 3, H, W), about [-1, 1]."""
    sample: torch.Tensor = module.decode(latents, return_dict=False)[0]
    return sample


def moments(module: Any, image: torch.Tensor) -> torch.Tensor:
    """Encode (B, 3, H, W) in [-1, 1] to mean and log variance (B, 2·C, h, w); a tiny VAE gives (B, C, h, w)."""
    encoded = module.encode(image, return_dict=False)[0]
    found: torch.Tensor = encoded if isinstance(encoded, torch.Tensor) else encoded.parameters
    return found


def tiled(module: Any, task: str, source: torch.Tensor) -> torch.Tensor:
    """Run :func:`decode` or :func:`moments` with the module's own tiling: an approximation, with blended seams."""
    was = module.use_tiling
    module.enable_tiling()
    try:
        return decode(module, source) if task == "decode" else moments(module, source)
    finally:
        module.use_tiling = was


def untiled(module: Any, task: str, source: torch.Tensor) -> torch.Tensor:
    """Run :func:`decode` or :func:`moments` untiled, even if the module's own tiling is on."""
    with without_tiling(module):
        return decode(module, source) if task == "decode" else moments(module, source)


@contextmanager
def without_tiling(module: Any) -> Iterator[None]:
    """Turn the module's own tiling off."""
    was = getattr(module, "use_tiling", False)  # not every class has tiles
    if not was:
        yield
        return
    module.use_tiling = False
    try:
        yield
    finally:
        module.use_tiling = was
