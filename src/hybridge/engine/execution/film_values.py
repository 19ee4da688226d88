"""Where the frames and rows of a film's values lie while they are read and written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..kernels.compiled import supports_layout
from ..planning.courses import Axis
from .strips import Rows


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Slabs [first, end) of a value: (frames, C, rows, W), where one of frames and rows is the slabs'."""

    first: int
    end: int
    tensor: torch.Tensor


class FilmValue:
    """A value of which a few slabs exist, in one or several parts; where they overlap, the first part is read.

    Args:
        parts: The parts.
        axis: What a slab is.
    """

    def __init__(self, parts: list[Part], axis: Axis) -> None:
        self._parts, self._axis = parts, axis

    def behind(self, part: Part) -> FilmValue:
        """Return the value with another part before its own."""
        return FilmValue([part, *self._parts], self._axis)

    def pieces(self, frame: int, start: int, stop: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield rows [start, stop) of a frame in pieces (first row, (1, C, n, W))."""
        if self._axis == "frames":
            if start < stop:
                yield start, self.frame(frame)[:, :, start:stop]
            return
        while start < stop:
            part = self._holding(start)
            end = min(stop, part.end)
            yield start, part.tensor[frame : frame + 1, :, start - part.first : end - part.first]
            start = end

    def frame(self, frame: int) -> torch.Tensor:
        """Return all rows of a frame that a part has, (1, C, rows, W)."""
        part = self._holding(frame) if self._axis == "frames" else self._parts[0]
        at = frame - part.first if self._axis == "frames" else frame
        return part.tensor[at : at + 1]

    def slab(self, index: int) -> torch.Tensor:
        """Return one slab: (1, C, H, W) or (frames, C, 1, W)."""
        part = self._holding(index)
        at = index - part.first
        return part.tensor[at : at + 1] if self._axis == "frames" else part.tensor[:, :, at : at + 1]

    @property
    def is_laid_out(self) -> bool:
        """Whether compiled loops can read it."""
        return all(supports_layout(part.tensor[:1]) for part in self._parts)

    def _holding(self, slab: int) -> Part:
        return next(part for part in self._parts if part.first <= slab < part.end)


class FrameRows(Rows):
    """The rows of one frame of a value; :attr:`frame` says which, and the caller changes it."""

    def __init__(self, value: FilmValue, height: int, width: int) -> None:
        self._value, self.height, self.width = value, height, width
        self.frame = 0

    def pieces(self, start: int, stop: int, following: int) -> Iterator[tuple[int, torch.Tensor]]:
        return self._value.pieces(self.frame, start, stop)

    @property
    def is_laid_out(self) -> bool:
        return self._value.is_laid_out


class RowAbove:
    """The last row of a strip whose memory is written over, of all frames: the strip below reads it again.

    Args:
        rows: Memory for two rows of all frames, (T, C, 2, W): one is read while the other is written.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows, self._at = rows, 0

    def over(self, value: FilmValue, first: int) -> FilmValue:
        """Return the value with its own row above row ``first``."""
        return value if first == 0 else value.behind(Part(first - 1, first, self._rows[:, :, self._at, None]))

    def keep(self, value: FilmValue, frame: int, row: int) -> None:
        """Keep a frame's row for the next strip, before it is written over."""
        for _, piece in value.pieces(frame, row, row + 1):
            self._rows[frame, :, 1 - self._at] = piece[0, :, 0]

    def turn(self) -> None:
        """Let the next strip read what was kept for it."""
        self._at = 1 - self._at
