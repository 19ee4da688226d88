"""Tiles of transformed convolutions in torch's operators: views of a workspace, and sums that matrices describe."""

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
