"""The statistics of a film's value: of each frame, of each segment, or of all frames together."""

from __future__ import annotations

import torch

from ..planning.conv_algorithms import DeviceProfile
from ..program.layers import Norm
from .group_norm import MOST_PIECES, Moments
from .linear_attention import KeySums


class FilmMoments:
    """Moments of a value, or sums over its keys, for the norm that will read it.

    Args:
        norm: The norm.
        arithmetic: The device's arithmetic.
        frames: The value's number of frames.
    """

    def __init__(self, norm: Norm, arithmetic: DeviceProfile, frames: int) -> None:
        self._norm, self._arithmetic = norm, arithmetic
        self._twice = {0, frames - 1} if norm.ends_twice and frames > 1 else set()
        self._parts: dict[int, Moments | KeySums] = {}

    def of(self, frame: int) -> Moments | KeySums:
        """Return what a frame is normalised with."""
        return self._parts[self.part_of(frame)]

    def part_of(self, frame: int) -> int:
        """Return the number of the part of the film whose statistics a frame's are."""
        return self._norm.part_of(frame)

    def add(self, frame: int, rows: torch.Tensor) -> None:
        """Add rows (1, C, n, W) of a frame; each may be added only once."""
        part = self.part_of(frame)
        if part not in self._parts:
            is_summed = self._norm.kind == "attention"
            self._parts[part] = KeySums(self._norm) if is_summed else Moments(self._arithmetic)
        moments = self._parts[part]
        for _ in range(2 if frame in self._twice else 1):
            moments.add(rows)
        if moments.pieces >= MOST_PIECES:
            moments.merge()

    def merge(self) -> None:
        """Keep of each part one piece."""
        for moments in self._parts.values():
            moments.merge()
