"""Tiles that a class computes by themselves, and blends where they overlap: part of what its model is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from .layers import Weights

#: (frames, rows, columns)
Block = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles of one size, at equal distances.  What no tile covers at the end of an axis is zero in the output.

    Attributes:
        source: The size of a tile of the input.
        source_step: The distance from one to the next.
        target: The size of a tile of the output.
        target_step: The distance from one to the next.
        last: A 1×1 convolution of what the tiles give together.
    """

    source: Block
    source_step: Block
    target: Block
    target_step: Block
    last: Weights | None = None

    def grid(self, frames: int, height: int, width: int) -> Block:
        """Return the number of tiles along each axis for an input of this size."""
        extent = frames, height, width
        frames, rows, columns = (
            max(0, (length - size) // step + 1)
            for length, size, step in zip(extent, self.source, self.source_step, strict=True)
        )
        return frames, rows, columns

    def count(self, frames: int, height: int, width: int) -> int:
        """Return the number of tiles for an input of this size."""
        return math.prod(self.grid(frames, height, width))

    def output_extent(self, frames: int, height: int, width: int) -> Block:
        """Return (frames, height, width) of the output for an input of this size."""
        frames, rows, columns = (
            length * made // size
            for length, size, made in zip((frames, height, width), self.source, self.target, strict=True)
        )
        return frames, rows, columns

    @property
    def overlap(self) -> Block:
        """Frames, rows and columns of the output that a tile shares with the next one."""
        frames, rows, columns = (size - step for size, step in zip(self.target, self.target_step, strict=True))
        return frames, rows, columns


def places(grid: Block) -> Iterator[Block]:
    """Yield the number of every tile along each axis; columns run fastest."""
    frames, rows, columns = grid
    yield from ((i, j, k) for i in range(frames) for j in range(rows) for k in range(columns))
