"""Norms of the channels of each position, which need no statistics."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ..program.layers import Norm
from .group_norm import Statistics

#: Rows are normalised in pieces of this many bytes, which stay in cache between the steps.
_PIECE_BYTES = 2**20


class PositionNorm:
    """One of the norms that :class:`.layers.Norm` describes, other than ``group``.

    Args:
        norm: The norm in the program.
        weight: (C,), in float32 or wider; None where the layer has none.
        bias: (C,), in float32 or wider; None where the layer has none.
        channels: C.
        dtype: The dtype to normalise in.
    """

    def __init__(
        self,
        norm: Norm,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        channels: int,
        dtype: torch.dtype,
    ) -> None:
        self._eps, self._dtype, self._channels = norm.eps, dtype, channels
        self._divide = _DIVIDE[norm.kind]
        if norm.kind == "rms" and weight is not None:
            weight = (weight.double() * channels**0.5).to(dtype)
        self._weight, self._bias = (None if one is None else one.view(1, -1, 1, 1) for one in (weight, bias))

    def with_statistics(self, moments: Statistics | None) -> PositionNorm:
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
        at_once = max(1, _PIECE_BYTES // (self._channels * rows.shape[3] * self._dtype.itemsize))
        for first in range(0, rows.shape[2], at_once):
            made = self._divide(rows[:, :, first : first + at_once].to(self._dtype), self._eps)
            if self._weight is not None:
                made.mul_(self._weight)
            if self._bias is not None:
                made.add_(self._bias)
            out[:, :, first : first + at_once] = F.silu(made, inplace=True) if has_silu else made


def _by_norm(rows: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.div(rows, torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(eps))


def _by_mean_square(rows: torch.Tensor, eps: float) -> torch.Tensor:
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.mul(rows, norms.square_().div_(rows.shape[1]).add_(eps).rsqrt_())


def _by_deviation(rows: torch.Tensor, eps: float) -> torch.Tensor:
    variance, mean = torch.var_mean(rows, 1, correction=0, keepdim=True)
    return torch.sub(rows, mean).mul_(variance.add_(eps).rsqrt_())


#: By kind of norm; each returns memory of its own.
_DIVIDE: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "rms": _by_norm,
    "mean square": _by_mean_square,
    "layer": _by_deviation,
}
