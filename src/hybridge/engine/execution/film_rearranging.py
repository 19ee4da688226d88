"""Move numbers of a film between channels and positions, a few rows of all frames at a time."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch

from ..memory.arena import Scratch
from ..planning.conv_algorithms import DeviceProfile
from ..planning.courses import Span
from ..program.ops import Rearrange
from ..program.rearranging import Arrangement, Part
from .film_ops import FilmCall
from .film_values import FilmValue
from .pointwise import IN_PLACE


class FilmRearrangement:
    """A :class:`.ops.Rearrange`.

    Args:
        op: The op.
        arithmetic: The device's arithmetic.
    """

    def __init__(self, op: Rearrange, arithmetic: DeviceProfile) -> None:
        del arithmetic  # nothing is multiplied
        self._op = op
        self._source = _Arranged(op.by, op.channels)
        self._residual = _Arranged(op.residual_by, op.residual_channels) if op.residual is not None else None
        self._leaving = IN_PLACE[op.leaving] if op.leaving else None
        self._own = op.by.channels(op.channels)
        self._channels = self._own + (op.residual_by.channels(op.residual_channels) if op.joins else 0)

    def run(self, call: FilmCall, scratch: Scratch) -> Generator[None]:
        """Compute what the call asks for, yielding after every few rows of all of its frames."""
        width = self._op.output_size(*call.source_extent[1:])[1]
        room = scratch.picture(self._channels, call.at_once, width)
        for first in range(*call.rows, call.at_once):
            end = min(first + call.at_once, call.rows[1])
            made = room[:, :, : end - first]
            for frame in range(*call.frames):
                made.zero_()
                self._source.add(call.source, frame, (first, end), made[:, : self._own])
                if self._residual is not None and call.residual is not None:
                    beside = made[:, self._own :] if self._op.joins else made
                    self._residual.add(call.residual, frame, (first, end), beside)
                if self._leaving:
                    self._leaving(made)
                call.place(frame, first, end).copy_(made)
            call.measure(call.frames, (first, end))
            yield


@dataclass(frozen=True, slots=True, eq=False)
class _Pick:
    """A :class:`.rearranging.Part` of frame 0 or of the others, whose frames are counted from a block's first."""

    part: Part
    channels: torch.Tensor | slice
    targets: torch.Tensor | None


class _Arranged:
    """An arrangement of a value of so many channels."""

    def __init__(self, by: Arrangement, channels: int) -> None:
        self._by, self._channels = by, channels
        self._picks: dict[tuple[int, torch.device], list[_Pick]] = {}

    def add(self, value: FilmValue, frame: int, rows: Span, made: torch.Tensor) -> None:
        """Add rows [first, end) of a target frame to ``made``, (1, C, end - first, W)."""
        by, (first, end) = self._by, rows
        like = by.like(frame)
        moved = by.frames_read(frame, frame + 1)[0] - by.frames_read(like, like + 1)[0]
        start, stop = by.rows_read(first, end)
        for pick in self._picked(like, made.device):
            part = pick.part
            for row, piece in value.pieces(part.frame + moved, start, stop):
                self._add(pick, piece, row - (start if by.goes_up else 0), first, made)

    def _add(self, pick: _Pick, piece: torch.Tensor, row: int, first: int, made: torch.Tensor) -> None:
        by, part = self._by, pick.part
        if by.goes_up:
            count = piece.shape[2]
            place = made[:, :, row * by.rows + part.row :: by.rows, part.column :: by.columns][:, :, :count]
        else:  # the rows of the piece that are this row of a block
            skipped = (part.row - row) % by.rows
            piece = piece[:, :, skipped :: by.rows, part.column :: by.columns]
            at = (row + skipped) // by.rows - first
            place = made[:, :, at : at + piece.shape[2]]
        if not piece.shape[2]:
            return
        if isinstance(pick.channels, torch.Tensor):
            piece = piece.index_select(1, pick.channels)
        else:
            piece = piece[:, pick.channels]
        if pick.targets is None:
            place.add_(piece, alpha=part.share)
        else:
            place.index_add_(1, pick.targets, piece.to(place.dtype), alpha=part.share)

    def _picked(self, frame: int, device: torch.device) -> list[_Pick]:
        if (frame, device) not in self._picks:
            out = self._by.channels(self._channels)
            self._picks[frame, device] = [
                _Pick(part, _indices(part.channels, device), _targets(part, out, device))
                for part in self._by.parts(frame, self._channels)
            ]
        return self._picks[frame, device]


def _indices(channels: tuple[int, ...], device: torch.device) -> torch.Tensor | slice:
    """Return channels as a slice where they are one."""
    first, last = channels[0], channels[-1]
    step = channels[1] - first if len(channels) > 1 else 1
    if step > 0 and channels == tuple(range(first, last + 1, step)):
        return slice(first, last + 1, step)
    return torch.tensor(channels, dtype=torch.int64, device=device)


def _targets(part: Part, out: int, device: torch.device) -> torch.Tensor | None:
    """Return the target channels; None for all of them, in order."""
    if part.targets == tuple(range(out)):
        return None
    return torch.tensor(part.targets, dtype=torch.int64, device=device)
