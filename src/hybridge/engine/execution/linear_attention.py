"""Linear attention in two steps: sum over all keys as their rows are made, then multiply queries by the sums.

For queries q, keys k and values v, with ReLU on q and k, a position's result is Σ v·(k·q) / (Σ k·q + eps), summed
over all positions.  As k·q is linear in q, the sums Σ v·kᵀ and Σ k are enough.  The same formula holds for the
quadratic form that the class uses for few positions.
"""

from __future__ import annotations

import torch

from ..program.layers import Norm
from .group_norm import Statistics

#: Rows are read in pieces of this many bytes, which stay in cache.
_PIECE_BYTES = 2**20


class KeySums(Statistics):
    """For every group of channels the sums of v·kᵀ, and below them of k, over positions: (groups, d, d + 1).

    Args:
        norm: The norm that needs them, of kind ``attention``.
    """

    #: They are one piece from the beginning.
    pieces = 1

    def __init__(self, norm: Norm) -> None:
        self._groups = norm.groups
        self.sums: torch.Tensor | None = None

    def add(self, rows: torch.Tensor) -> None:
        """Add rows (1, C, n, W), channels-last; each row may be added only once."""
        wide = torch.promote_types(rows.dtype, torch.float32)
        for some in torch.split(rows, _rows_at_once(rows, wide), dim=2):
            _, keys, values = _parted(some, self._groups)
            keys = keys.to(wide).relu()
            values = torch.nn.functional.pad(values.to(wide), (0, 1), value=1.0)
            made = torch.bmm(keys.transpose(1, 2), values)
            made = made if rows.device.type == "mps" else made.double()  # Apple's GPUs have no float64
            self.sums = made if self.sums is None else self.sums.add_(made)

    def merge(self) -> None:
        """Do nothing: the sums are one piece."""


class LinearAttention:
    """A norm of kind ``attention``: it makes of queries, keys and values their results.

    Args:
        norm: The norm in the program.
        dtype: The dtype to compute in.
    """

    def __init__(self, norm: Norm, dtype: torch.dtype) -> None:
        self._norm, self._dtype = norm, dtype
        self._sums: torch.Tensor | None = None

    def with_statistics(self, sums: Statistics | None) -> LinearAttention:
        """Return the norm for a picture with these :class:`KeySums`."""
        if not isinstance(sums, KeySums) or sums.sums is None:
            raise TypeError("linear attention reads a value whose keys are summed")
        made = LinearAttention(self._norm, self._dtype)
        made._sums = sums.sums.to(self._dtype)
        return made

    def __call__(self, rows: torch.Tensor, out: torch.Tensor) -> None:
        """Write the results of rows (1, C, n, W), channels-last, to ``out``, (1, C / 3, n, W)."""
        if self._sums is None:
            raise TypeError("linear attention needs its sums")
        at_once = _rows_at_once(rows, self._dtype)
        for first in range(0, rows.shape[2], at_once):
            some = rows[:, :, first : first + at_once]
            queries = _parted(some, self._norm.groups)[0].to(self._dtype).relu()
            made = torch.bmm(queries, self._sums)
            made = made[..., :-1].div_(made[..., -1:].add(self._norm.eps))
            place = out[0, :, first : first + at_once].permute(1, 2, 0)
            place = place.view(*place.shape[:2], self._norm.groups, -1)
            place.copy_(made.permute(1, 0, 2).view(place.shape))

    def with_silu(self, rows: torch.Tensor, out: torch.Tensor) -> None:
        """Apply it, and SiLU to its results."""
        self(rows, out)
        torch.nn.functional.silu(out, inplace=True)


def _parted(rows: torch.Tensor, groups: int) -> tuple[torch.Tensor, ...]:
    """Return queries, keys and values of rows (1, C, n, W), (groups, positions, d) each."""
    tokens = rows[0].permute(1, 2, 0).flatten(0, 1)
    return tokens.view(len(tokens), groups, 3, -1).permute(2, 1, 0, 3).unbind()


def _rows_at_once(rows: torch.Tensor, dtype: torch.dtype) -> int:
    return max(1, _PIECE_BYTES // (rows.shape[1] * rows.shape[3] * dtype.itemsize))
