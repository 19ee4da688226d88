"""Compute some frames and rows of one op's target: a few rows at a time, one frame after another.

A convolution over several frames has a window in which the rows of these frames lie side by side, as channels.
From frame to frame they move along by one, so that each row is normalised once for all frames that need it.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch

from ..memory.arena import Scratch
from ..planning.courses import Extent, Span
from ..program.ops import OF_ROUNDED
from .convolution import Workspace
from .executor import begins_at
from .film_values import FilmValue, FrameRows
from .strips import AttentionStrips, ConvolutionStrips, Enter, Reading, Rows, Stored, add_pieces


@dataclass(frozen=True, slots=True, eq=False)
class FilmCall:
    """What one step computes of an op.

    Attributes:
        source: The value that is convolved or attended to.
        residual: The value that is added.
        target: Where the target is written.
        frames: The target's frames to compute.
        rows: The target's rows to compute.
        at_once: Number of target rows computed at a time.
        converted: As in :class:`.strips.Reading`.
        source_extent: (frames, height, width) of the source.
    """

    source: FilmValue
    residual: FilmValue | None
    target: FilmValue
    frames: Span
    rows: Span
    at_once: int
    converted: int
    source_extent: Extent

    def place(self, frame: int, first: int, end: int) -> torch.Tensor:
        """Return the memory of rows [first, end) of a target frame, (1, C, n, W)."""
        [(_, place)] = self.target.pieces(frame, first, end)
        return place


class FilmConvolution(ConvolutionStrips):
    """A convolution of films."""

    def run(self, call: FilmCall, scratch: Scratch) -> Generator[None]:
        """Compute what the call asks for, yielding after every few rows of all of its frames."""
        _, height, width = call.source_extent
        time = self._op.in_time
        enter = self._enter(None)
        room = self._convolution.begin(scratch, call.at_once, width)
        added = None
        if call.residual is not None:
            added = FrameRows(call.residual, *_target_size(self, call))
        reading = Reading(FrameRows(call.source, height, width), None, added, call.converted, height, call.at_once)
        residual, is_added_within = self._residual(reading, room, scratch)
        computed = call.frames[0] if time is None else max(call.frames[0], time.first_computed)
        spread = 1 if time is None else time.spread
        for first in range(*call.rows, call.at_once):
            end = min(first + call.at_once, call.rows[1])
            if call.frames[0] < computed:
                for row, piece in call.source.pieces(0, first, end):
                    call.place(0, first, end)[:, :, row - first : row - first + piece.shape[2]] = piece
            start, stop = self._op.rows_read(first, end)
            _clear_outside(room, start, stop, height)
            before: Span | None = None
            for frame in range(computed, call.frames[1], spread):
                before = self._fill(room, call, frame, before, (start, stop), enter)
                if added is not None:
                    added.frame = frame
                self._compute(room, call, frame, (first, end), residual, scratch, is_added_within=is_added_within)
            yield

    def _fill(
        self, room: Workspace, call: FilmCall, frame: int, before: Span | None, rows: Span, enter: Enter
    ) -> Span:
        """Fill the window for a target frame, and return the source frames that it then has."""
        time = self._op.in_time
        first, end = (frame, frame + 1) if time is None else time.window_of(frame)
        channels = room.window.shape[1] // (end - first)
        seen = 0 if time is None else time.first_seen
        start, stop = max(rows[0], 0), min(rows[1], call.source_extent[1])
        for slot in range(end - first):
            inside = room.inside[:, slot * channels : (slot + 1) * channels, start - rows[0] : stop - rows[0]]
            if before is not None and first + slot < before[1]:
                kept = slot + first - before[0]
                inside.copy_(
                    room.inside[:, kept * channels : (kept + 1) * channels, start - rows[0] : stop - rows[0]]
                )
            elif first + slot < seen:
                inside.zero_()
            else:
                for row, piece in call.source.pieces(first + slot, start, stop):
                    enter(piece, inside[:, :, row - start : row - start + piece.shape[2]])
        return first, end

    def _compute(
        self,
        room: Workspace,
        call: FilmCall,
        frame: int,
        rows: Span,
        residual: Rows | None,
        scratch: Scratch,
        *,
        is_added_within: bool,
    ) -> None:
        first, end = rows
        spread = 1 if self._op.in_time is None else self._op.in_time.spread
        place = target = call.place(frame, first, end) if spread == 1 else None
        if place is not None and place.dtype != scratch.like.dtype and self._op.leaving not in OF_ROUNDED:
            place = None  # or the sum would be rounded before the function is applied
        if residual is None:
            made = room.convolve(end - first, place)
        else:
            pieces = residual.pieces(first, end, end)
            together = list(pieces) if is_added_within else []
            if len(together) == 1:
                made = room.convolve(end - first, place, together[0][1])
            else:
                made = add_pieces(
                    room.convolve(end - first, None), iter(together) if together else pieces, first, place
                )
        if self._leaving:
            self._leaving(made)
        if target is not None:
            if not begins_at(made, target):
                target.copy_(made)
            return
        for offset, part in enumerate(made.chunk(spread, dim=1)):
            call.place(frame + offset, first, end).copy_(part)


def _target_size(strips: ConvolutionStrips, call: FilmCall) -> tuple[int, int]:
    return strips._op.output_size(*call.source_extent[1:])


def _clear_outside(room: Workspace, start: int, stop: int, height: int) -> None:
    """Zero the window's rows outside of the source; the window begins at source row ``start``."""
    room.window[:, :, : max(0, -start)].zero_()
    room.window[:, :, max(0, height - start) : stop - start].zero_()


class FilmAttention(AttentionStrips):
    """Attention within each frame."""

    def run(self, call: FilmCall, scratch: Scratch) -> Generator[None]:
        """Compute what the call asks for, yielding after every few rows of a frame."""
        for frame in range(*call.frames):
            scratch.clear()  # the pieces of the frame before
            source = call.source.frame(frame)
            reading = Reading(Stored(source), None, None, 0, source.shape[2], call.at_once)
            for strip in self.strips(reading, scratch):
                call.place(frame, strip.first, strip.end).copy_(strip.made)
                yield
