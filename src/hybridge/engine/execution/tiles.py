"""Tiles of transformed convolutions in torch's operators: views, sums that matrices describe, and filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from ..planning.winograd import Matrix


@dataclass(frozen=True, slots=True, eq=False)
class TileViews:
    """Views of a workspace's memory, in order of use."""

    source_lines: Sequence[torch.Tensor]
    rowwise: Sequence[torch.Tensor]
    rowwise_lines: Sequence[torch.Tensor]
    spectrum: Sequence[torch.Tensor]
    operands: torch.Tensor
    products: torch.Tensor
    biased: torch.Tensor
    product_lines: Sequence[torch.Tensor]
    columnwise: Sequence[torch.Tensor]
    columnwise_lines: Sequence[torch.Tensor]


def strided(first: int, step: int, count: int) -> slice:
    return slice(first, first + step * (count - 1) + 1, step)


def combine(matrix: Matrix, sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> None:
    """Compute ``targets[i] = Σ matrix[i][k] · sources[k]``."""
    for (first, others), target in zip(_recipe(matrix), targets, strict=True):
        if not others:
            target.copy_(sources[first])
            continue
        (second, factor), *rest = others
        torch.add(sources[first], sources[second], alpha=factor, out=target)
        for k, other in rest:
            target.add_(sources[k], alpha=other)


@cache
def _recipe(matrix: Matrix) -> list[tuple[int, list[tuple[int, float]]]]:
    """Return, for every row of a matrix, the index of an entry that is 1, and the other entries."""
    recipe = []
    for row in matrix:
        first = row.index(1)
        recipe.append((first, [(k, factor) for k, factor in enumerate(row) if factor and k != first]))
    return recipe


def view(memory: torch.Tensor, *shape: int) -> torch.Tensor:
    count = 1
    for side in shape:
        count *= side
    return memory[:count].view(shape)


def positions(rows: torch.Tensor) -> torch.Tensor:
    """View rows (1, C, n, W), channels-last, as positions (n·W, C)."""
    return rows[0].permute(1, 2, 0).flatten(0, 1)


def phase_kernels(weight: torch.Tensor) -> torch.Tensor:
    """Convert a filter (O, I, 3, 3) for use after nearest ×2 to filters (4·O, I, 2, 2) for use before it, by phase.

    Two of a doubled picture's rows y-1, y and y+1 come from the same source row: the last two for an even y, the
    first two for an odd y.  Their taps are summed; the same holds for columns.
    """
    taps = torch.tensor(
        [[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]],  # phase, tap of two, tap of three
        dtype=torch.promote_types(weight.dtype, torch.float32),
        device=weight.device,
    )
    kernels = torch.einsum("pua,qvb,oiab->pqoiuv", taps, taps, weight.to(taps.dtype))
    return kernels.flatten(0, 2).to(weight.dtype).contiguous(memory_format=torch.channels_last)
