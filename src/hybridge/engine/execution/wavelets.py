"""Haar transforms of blocks, as a part of the weights of the convolution beside them."""

from __future__ import annotations

from typing import Any

import torch

from ..program.layers import Wavelets

#: Frames, rows and columns.
_AXES = 3


def with_wavelets(
    wavelets: Wavelets, owner: Any, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return weight (O, I, …) and bias of a convolution that reads positions for wavelets, or gives them."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    channels = weight.shape[1] if wavelets.is_read else len(weight)
    matrix = _matrix(owner, channels, is_inverse=not wavelets.is_read).to(wide)
    if wavelets.is_read:
        return torch.einsum("oi...,ip->op...", weight.to(wide), matrix), bias
    bias = None if bias is None else matrix @ bias.detach().to(wide)
    return torch.einsum("po,oi...->pi...", matrix, weight.to(wide)), bias


def _matrix(owner: Any, channels: int, *, is_inverse: bool) -> torch.Tensor:
    """Return the transform, wavelets × positions, or its inverse, positions × wavelets, in float64."""
    levels = owner.patch_size.bit_length() - 1
    size = float(owner.wavelets[0])  # √½, in the module's dtype
    scale = size**_AXES * 8 ** (0.5 if is_inverse else -0.5)
    one = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64, device=owner.wavelets.device)
    level = scale * torch.kron(torch.kron(one, one), one)
    matrix = torch.ones(1, 1, dtype=torch.float64, device=one.device)
    for _ in range(levels):
        matrix = torch.kron(matrix, level)
    # Positions are (t, y, x) of the coarsest level, then of finer ones: those of an axis belong together.
    count = 2**levels
    axes = [1 + level * _AXES + axis for axis in range(_AXES) for level in range(levels)]
    matrix = matrix.view(-1, *(2,) * (_AXES * levels)).permute(0, *axes).reshape(-1, count**_AXES)
    colours = channels // count**_AXES
    together = torch.eye(colours, dtype=torch.float64, device=one.device)
    # (wavelets, positions) and (channels, channels) → (wavelets, channels, channels, positions)
    both = torch.einsum("wp,ck->wckp", matrix, together).reshape(channels, channels)
    return both.T.contiguous() if is_inverse else both
