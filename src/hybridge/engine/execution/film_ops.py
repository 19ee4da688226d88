"""Compute some frames and rows of one op's target: a few rows at a time, one frame after another.

A convolution over several frames has a window in which the rows of these frames lie side by side, as channels.
From frame to frame they move along by one, so that each row is normalised once for all frames that need it.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch

from ..memory.arena import Scratch
from ..planning.conv_algorithms import ConvAlgorithm, DeviceProfile
from ..planning.courses import Extent, Span
from ..program.layers import Maps
from ..program.ops import OF_ROUNDED, Convolve
from .conditioning import NOTHING, Conditions
from .executor import begins_at
from .film_statistics import FilmMoments
from .film_values import FilmValue, FrameRows, RowAbove
from .group_norm import Statistics
from .latent_maps import LatentMaps
from .parameters import Parameters
from .pointwise import IN_PLACE
from .strips import (
    AttentionRoom,
    AttentionStrips,
    ConvolutionStrips,
    Enter,
    Reading,
    Rows,
    Stored,
    add_pieces,
)
from .workspace import Workspace


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
        maps: How the op's maps are read, where it has some.
        latents: The program's input, (T, C, h, w), which maps are made of.
        moments: The source's statistics, where the op normalises it.
        gather: Takes the target's statistics, for the norm that will read it.
        above: The row above a strip, where the target is written over the source.
        conditions: What is read beside values.
    """

    source: FilmValue
    residual: FilmValue | None
    target: FilmValue
    frames: Span
    rows: Span
    at_once: int
    converted: int
    source_extent: Extent
    maps: Maps | None
    latents: torch.Tensor
    moments: FilmMoments | None = None
    gather: FilmMoments | None = None
    above: RowAbove | None = None
    conditions: Conditions = NOTHING

    def place(self, frame: int, first: int, end: int) -> torch.Tensor:
        """Return the memory of rows [first, end) of a target frame, (1, C, n, W)."""
        [(_, place)] = self.target.pieces(frame, first, end)
        return place

    def measure(self, frames: Span, rows: Span) -> None:
        """Gather the statistics of finished rows."""
        if self.gather is not None:  # of the values as stored, which the norm will read
            for frame in range(*frames):
                self.gather.add(frame, self.place(frame, *rows))

    def moments_of(self, frame: int) -> Statistics | None:
        """Return the statistics of a source frame."""
        return None if self.moments is None else self.moments.of(frame)


class FilmConvolution(ConvolutionStrips):
    """A convolution of films."""

    def __init__(self, op: Convolve, way: ConvAlgorithm, parameters: Parameters, arithmetic: DeviceProfile) -> None:
        super().__init__(op, way, parameters, arithmetic)
        maps = op.norm.maps if op.norm is not None else None
        self._maps = None if maps is None else LatentMaps(maps, parameters)

    def run(self, call: FilmCall, scratch: Scratch) -> Generator[None]:
        """Compute what the call asks for, yielding after every few rows of all of its frames."""
        _, height, width = call.source_extent
        time = self._op.in_time
        enters = _Enters(self, call)
        room = self._convolution.begin(scratch, call.at_once, width)
        added = None
        if call.residual is not None:
            added = FrameRows(call.residual, *_target_size(self, call))
        reading = Reading(FrameRows(call.source, height, width), None, added, call.converted, height, call.at_once)
        residual, is_added_within = self._residual(reading, room, scratch)
        computed = call.frames[0] if time is None else max(call.frames[0], time.first_computed)
        windows = range(*call.frames) if time is None else time.windows(*call.frames)
        for first in range(*call.rows, call.at_once):
            end = min(first + call.at_once, call.rows[1])
            if call.frames[0] < computed:
                for row, piece in call.source.pieces(0, first, end):
                    call.place(0, first, end)[:, :, row - first : row - first + piece.shape[2]] = piece
            source = call.source if call.above is None else call.above.over(call.source, first)
            before: Span | None = None
            for frame in windows:
                before = self._fill(room, source, call, frame, before, self._op.rows_read(first, end), enters)
                if call.above is not None:
                    call.above.keep(call.source, frame, end - 1)
                if added is not None:
                    added.frame = frame
                self._compute(room, call, frame, (first, end), residual, scratch, is_added_within=is_added_within)
            if call.above is not None:
                call.above.turn()
            call.measure(call.frames, (first, end))
            yield

    def _fill(
        self,
        room: Workspace,
        source: FilmValue,
        call: FilmCall,
        frame: int,
        before: Span | None,
        rows: Span,
        enters: _Enters,
    ) -> Span:
        """Fill the window for a target frame, and return the source frames that it then has."""
        time = self._op.in_time
        first, end = (frame, frame + 1) if time is None else time.window_of(frame)
        channels = room.window.shape[1] // (end - first)
        seen = 0 if time is None else time.first_seen
        is_nearest = time is not None and time.outside == "nearest"
        length, height, _ = call.source_extent
        start, stop = max(rows[0], 0), min(rows[1], height)
        for slot in range(end - first):
            inside = room.inside[:, slot * channels : (slot + 1) * channels, start - rows[0] : stop - rows[0]]
            if before is not None and first + slot < before[1]:
                kept = slot + first - before[0]
                inside.copy_(
                    room.inside[:, kept * channels : (kept + 1) * channels, start - rows[0] : stop - rows[0]]
                )
            elif not is_nearest and not seen <= first + slot < length:
                inside.zero_()
            else:
                read = min(max(first + slot, 0), length - 1)
                for row, piece in source.pieces(read, start, stop):
                    enters.enter(read, row, piece, inside[:, :, row - start : row - start + piece.shape[2]])
        room.pad(rows[0], *rows, height)
        return first, end

    def _entered(self, room: Workspace, rows: int) -> torch.Tensor:
        """Return what entered of the target's own frame and rows, of a convolution without neighbours in space."""
        time = self._op.in_time
        kernel, ahead = (1, 0) if time is None else (time.kernel, time.ahead)
        channels = self._op.weights.out_channels
        first = (kernel - 1 - ahead) * channels
        return room.inside[:, first : first + channels, :rows]

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
        noise, of_noise = call.conditions.noise, call.conditions.of_noise
        is_rounded = place is not None and place.dtype != scratch.like.dtype
        if is_rounded and (self._op.leaving not in OF_ROUNDED or noise is not None or self._op.adds_entered):
            place = None  # or the sum would be rounded before the function is applied, or before more is added
        if residual is None:
            made = self._convolved(room, end - first, place)
        else:
            pieces = residual.pieces(first, end, end)
            together = list(pieces) if is_added_within else []
            if len(together) == 1:
                made = room.convolve(end - first, place, together[0][1])
            else:
                made = self._convolved(room, end - first, None)
                made = add_pieces(made, iter(together) if together else pieces, first, place)
        if self._op.adds_entered:
            made.add_(self._entered(room, end - first))
        if noise is not None and of_noise is not None:
            rows_of_noise = noise[None, None, first:end].to(made.dtype)
            made.addcmul_(rows_of_noise, of_noise.to(made.dtype).view(1, -1, 1, 1))
        if self._leaving:
            self._leaving(made)
        if target is not None:
            if not begins_at(made, target):
                target.copy_(made)
            return
        for offset, part in enumerate(made.chunk(spread, dim=1)):
            if frame + offset >= 0:  # frame 0 comes alone
                call.place(frame + offset, first, end).copy_(part)

    def _convolved(self, room: Workspace, rows: int, place: torch.Tensor | None) -> torch.Tensor:
        if self._normed is None:
            return room.convolve(rows, place)
        made = room.convolve(rows, None)
        self._normed.with_statistics(None)(made, made)
        return made


def _target_size(strips: ConvolutionStrips, call: FilmCall) -> tuple[int, int]:
    return strips._op.output_size(*call.source_extent[1:])


class _Enters:
    """Normalises and activates the rows of each frame, which may have statistics of its own."""

    def __init__(self, strips: FilmConvolution, call: FilmCall) -> None:
        self._strips, self._call = strips, call
        self._made: dict[int, Enter] = {}

    def enter(self, frame: int, row: int, rows: torch.Tensor, out: torch.Tensor) -> None:
        """Write rows of a frame, of which the first is ``row``, to their place in the window."""
        call, strips = self._call, self._strips
        part = 0 if call.moments is None else call.moments.part_of(frame)
        if part not in self._made:
            self._made[part] = self._enter_with(call.moments_of(frame))
        self._made[part](rows, out)
        if strips._maps is not None and call.maps is not None:
            strips._maps.apply(call.maps, call.latents, frame, row, call.source_extent[1], out)
            if strips._op.entering:
                IN_PLACE[strips._op.entering](out)

    def _enter_with(self, moments: Statistics | None) -> Enter:
        strips, given = self._strips, self._call.conditions
        if strips._norm is None or (strips._maps is None and given.scale is None):
            return strips._enter(moments)
        normalise = strips._norm.with_statistics(moments)
        if given.scale is None or given.shift is None:
            return normalise  # what follows the norm comes after the maps
        scale, shift = (vector.view(1, -1, 1, 1) for vector in (given.scale, given.shift))
        entering = IN_PLACE[strips._op.entering] if strips._op.entering else None

        def enter(rows: torch.Tensor, out: torch.Tensor) -> None:
            normalise(rows, out)
            out.mul_(scale).add_(shift)
            if entering:
                entering(out)

        return enter


class FilmAttention(AttentionStrips):
    """Attention within each frame, or to it and the frames before it, whose keys and values are kept."""

    def run(self, call: FilmCall, scratch: Scratch) -> Generator[None]:
        """Compute what the call asks for, yielding after every few rows of a frame."""
        frames, height, width = call.source_extent
        room = None
        for frame in range(*call.frames):
            source = Stored(call.source.frame(frame))
            reading = Reading(source, call.moments_of(frame), None, 0, height, call.at_once)
            if self._op.sees == "frame":
                scratch.clear()  # the pieces of the frame before
                strips = self.strips(reading, scratch)
            else:
                room = room or AttentionRoom(self, reading, scratch, frames)
                strips = self._attended(reading, room, frame * height * width)
            for strip in strips:
                call.place(frame, strip.first, strip.end).copy_(strip.made)
                call.measure((frame, frame + 1), (strip.first, strip.end))
                yield
