"""An RMS norm: every position's channels are divided by their own L2 norm, so it needs no statistics."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..program.ops import Norm
from .group_norm import Moments

#: Rows are normalised in pieces of this many bytes, which stay in cache between the steps.
_PIECE_BYTES = 2**20


class RmsNorm:
    """``√C · gamma · x / max(‖x‖, eps)`` over the channels of a position.

    Args:
        norm: The norm in the program.
        gamma: (C,), in float32 or wider.
    """

    def __init__(self, norm: Norm, gamma: torch.Tensor) -> None:
        self._eps = norm.eps
        self._scale = (gamma.double() * len(gamma) ** 0.5).to(gamma.dtype).view(1, -1, 1, 1)

    def with_statistics(self, moments: Moments | None) -> RmsNorm:
        """Return itself: it needs no statistics."""
        del moments
        return self

    def __call__(self, rows: torch.Tensor, out: torch.Tensor) -> None:
        """Normalise rows (1, C, n, W) into ``out``, which may have another dtype and layout."""
        self._apply(rows, out, has_silu=False)

    def with_silu(self, rows: torch.Tensor, out: torch.Tensor) -> None:
        """Normalise rows and apply SiLU."""
        self._apply(rows, out, has_silu=True)

    def _apply(self, rows: torch.Tensor, out: torch.Tensor, *, has_silu: bool) -> None:
        channels, width = rows.shape[1], rows.shape[3]
        at_once = max(1, _PIECE_BYTES // (channels * width * self._scale.itemsize))
        for first in range(0, rows.shape[2], at_once):
            some = rows[:, :, first : first + at_once].to(self._scale.dtype)
            norms = torch.linalg.vector_norm(some, dim=1, keepdim=True).clamp_min_(self._eps)
            made = torch.div(some, norms).mul_(self._scale)
            out[:, :, first : first + at_once] = F.silu(made, inplace=True) if has_silu else made
