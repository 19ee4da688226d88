"""Compute one op's target in strips: a few rows at a time, from top to bottom.

Every reader of a value reads it once, from top to bottom, so a value need not exist whole: :class:`Stored` has all
rows, :class:`Streamed` computes rows on request and then drops them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import torch

from ..kernels.compiled import supports_layout
from ..memory.arena import Scratch
from ..planning.conv_algorithms import ConvAlgorithm, DeviceProfile, queries_padded
from ..program.ops import OF_ROUNDED, RESIZING, Attend, Convolve
from .attention import begin
from .convolution import prepare
from .group_norm import Moments, Statistics
from .parameters import Parameters
from .pointwise import IN_PLACE, RESIZED
from .shortcut import Shortcut
from .workspace import Convolution, Workspace


@dataclass(frozen=True, slots=True, eq=False)
class Strip:
    """Rows [first, end) of a target.

    Attributes:
        first: The first row.
        end: The row after the last.
        made: (1, C, end - first, W); valid until the next strip is made.
        is_measured: Whether their moments are gathered already; see :class:`Reading`.
    """

    first: int
    end: int
    made: torch.Tensor
    is_measured: bool = False


class Rows(ABC):
    """A value that is read from top to bottom.

    Attributes:
        height: Number of rows.
        width: Number of columns.
    """

    height: int
    width: int

    @property
    def is_laid_out(self) -> bool:
        """Whether compiled loops can read all of it where it lies."""
        return False

    @abstractmethod
    def pieces(self, start: int, stop: int, following: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield rows [start, stop) in pieces (first row, (1, C, n, W)); no row may be requested again.

        A piece is valid until the next one is requested.  The next call will request rows [stop, following).
        """


class Stored(Rows):
    """A value that exists whole, (1, C, H, W), where the device can read it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.height, self.width = tensor.shape[2:]

    @property
    def is_laid_out(self) -> bool:
        return supports_layout(self.tensor)

    def pieces(self, start: int, stop: int, following: int) -> Iterator[tuple[int, torch.Tensor]]:
        if start < stop:
            yield start, self.tensor[:, :, start:stop]


class Streamed(Rows):
    """A value of which one strip exists at a time; strips are computed on request."""

    def __init__(self, strips: Generator[Strip], height: int, width: int) -> None:
        self._strips, self.height, self.width = strips, height, width
        self._strip: Strip | None = None

    def pieces(self, start: int, stop: int, following: int) -> Iterator[tuple[int, torch.Tensor]]:
        while start < stop:
            while self._strip is None or self._strip.end <= start:
                self._strip = None  # before the next one is made
                self._strip = next(self._strips)
            until = min(stop, self._strip.end)
            first = self._strip.first
            yield start, self._strip.made[:, :, start - first : until - first]
            start = until


class Converted(Rows):
    """Rows converted to the dtype of ``place``, (1, C, n, W), which holds n rows at a time."""

    def __init__(self, rows: Rows, place: torch.Tensor) -> None:
        self._rows, self._place = rows, place
        self.height, self.width = rows.height, rows.width

    def pieces(self, start: int, stop: int, following: int) -> Iterator[tuple[int, torch.Tensor]]:
        for first, piece in self._rows.pieces(start, stop, following):
            if piece.dtype == self._place.dtype:
                yield first, piece
                continue
            for row in range(0, piece.shape[2], self._place.shape[2]):
                some = piece[:, :, row : row + self._place.shape[2]]
                yield first + row, self._place[:, :, : some.shape[2]].copy_(some)
            del some, piece  # before a stream makes the next one


class Carried(Rows):
    """A shortcut's output for rows, in one piece in ``place``, (1, O, n, W), for at most n rows."""

    def __init__(self, rows: Rows, shortcut: Shortcut, place: torch.Tensor) -> None:
        self._rows, self._shortcut, self._place = rows, shortcut, place
        self.height, self.width = rows.height, rows.width

    def pieces(self, start: int, stop: int, following: int) -> Iterator[tuple[int, torch.Tensor]]:
        for row, piece in self._rows.pieces(start, stop, following):
            self._shortcut.multiply(piece, self._place[:, :, row - start : row - start + piece.shape[2]])
            del piece  # before a stream makes the next one
        if start < stop:
            yield start, self._place[:, :, : stop - start]


@dataclass(frozen=True, slots=True)
class Reading:
    """The inputs of an op in one run.

    Attributes:
        source: The value that is convolved or attended to.
        moments: The source's statistics, where the op normalises it.
        residual: The value that is added.
        converted: How many rows of the residual are converted at a time to the dtype to compute in; 0 where it is
            stored in that dtype.
        height: Height of the target.
        rows: Number of target rows computed at a time.
        gather: Gathers the moments of the target's rows as they are stored, where the convolution can do that as it
            writes them.
    """

    source: Rows
    moments: Statistics | None
    residual: Rows | None
    converted: int
    height: int
    rows: int
    gather: Moments | None = None


#: Normalises and activates rows, and writes them to their place in the window.
Enter = Callable[[torch.Tensor, torch.Tensor], None]

#: Returns the memory in the target for rows [first, end).
Into = Callable[[int, int], torch.Tensor]


class ConvolutionStrips:
    """A :class:`.ops.Convolve` with its weights."""

    def __init__(self, op: Convolve, way: ConvAlgorithm, parameters: Parameters, arithmetic: DeviceProfile) -> None:
        self._op = op
        weight, bias = parameters.of(op.weights)
        self._shortcut: Shortcut | None = None
        if op.shortcut is not None:
            carrying, carried_bias = parameters.of(op.shortcut)
            self._shortcut = Shortcut(
                carrying, in_bfloat16=arithmetic.rounds(op.shortcut), k_block=arithmetic.k_block
            )
            if carried_bias is not None:  # both are added to every position
                bias = carried_bias if bias is None else bias + carried_bias
        self._convolution: Convolution = prepare(op, way, weight, bias, arithmetic.k_block)
        channels = op.weights.in_channels // (op.in_time.kernel if op.in_time else 1)
        self._norm = None if op.norm is None else parameters.norm(op.norm, channels)
        self._normed = None if op.normed is None else parameters.norm(op.normed, op.weights.out_channels)
        self._entering = IN_PLACE[op.entering] if op.entering and op.entering not in RESIZING else None
        self._leaving = IN_PLACE[op.leaving] if op.leaving else None

    def strips(self, reading: Reading, scratch: Scratch, into: Into | None = None) -> Generator[Strip]:
        """Yield the target's strips, in order.

        The target may use the memory of the source or the residual: a strip is written after its rows were read,
        and the window keeps the rows that the next strip reads again.

        Args:
            reading: The op's inputs.
            scratch: Memory for the run, in the dtype to compute in.
            into: Returns memory to which a strip may be written directly; the caller copies strips that were not.
        """
        source, height = reading.source, reading.height
        enter = self._enter(reading.moments)
        room = self._convolution.begin(scratch, reading.rows, source.width)
        residual, is_added_within = self._residual(reading, room, scratch)
        begun = ended = 0
        for first in range(0, height, reading.rows):
            end = min(first + reading.rows, height)
            start, stop = self._op.rows_read(first, end)
            after = min(end + reading.rows, height)
            kept = max(0, ended - start) if first else 0
            for row in range(kept):  # in rising order, because with one-row strips source and target overlap
                room.window[:, :, row].copy_(room.window[:, :, ended - begun - kept + row])
            following = stop if after == end else self._op.rows_read(end, after)[1]
            _fill(room, source, start, start + kept, stop, following, enter)
            begun, ended = start, stop

            place = None if into is None else into(first, end)
            if place is not None and place.dtype != scratch.like.dtype and self._op.leaving not in OF_ROUNDED:
                place = None  # or the sum would be rounded before the function is applied
            measured = None
            if place is not None and room.adds and (residual is None or is_added_within) and not self._leaving:
                measured = reading.gather.places_for(place) if reading.gather else None
            if residual is None:
                made = room.convolve(end - first, place, moments=measured)
            elif is_added_within:
                [(_, added)] = residual.pieces(first, end, after)
                made = room.convolve(end - first, place, added, measured)
            else:
                pieces = residual.pieces(first, end, after)
                made = add_pieces(room.convolve(end - first, None), pieces, first, place)
            if self._leaving:
                self._leaving(made)
            yield Strip(first, end, made, measured is not None)
            del made  # before the next one is made

    def _residual(self, reading: Reading, room: Workspace, scratch: Scratch) -> tuple[Rows | None, bool]:
        """Return the rows to add, and whether the convolution itself adds them, for all rows of a strip at once."""
        residual, shortcut = reading.residual, self._shortcut
        if residual is None:
            return None, False
        as_it_is = residual
        if reading.converted:  # plans count this memory even where compiled loops do not need it
            channels = self._op.shortcut.in_channels if self._op.shortcut else self._op.weights.out_channels
            numbers = scratch.take(reading.converted * residual.width * channels)
            if shortcut:
                numbers = numbers.view(shortcut.dtype)  # if this is the narrower bfloat16, more rows fit
            place = numbers.view(1, -1, residual.width, channels).permute(0, 3, 1, 2)
            residual = Converted(residual, place)
        adds = room.adds and self._normed is None
        if shortcut is None:
            return (as_it_is, True) if adds and as_it_is.is_laid_out else (residual, False)
        place = scratch.picture(self._op.weights.out_channels, reading.rows, residual.width)
        return Carried(residual, shortcut, place), adds

    def _enter(self, moments: Statistics | None) -> Enter:
        if self._op.entering in RESIZED:
            return RESIZED[self._op.entering]
        if self._norm is None:
            normalise = _copy
        else:
            normalise = self._norm.with_statistics(moments)
            if self._op.entering == "silu":
                return normalise.with_silu
        entering = self._entering

        def enter(rows: torch.Tensor, out: torch.Tensor) -> None:
            normalise(rows, out)
            if entering:
                entering(out)

        return enter


def add_pieces(
    made: torch.Tensor, added: Iterator[tuple[int, torch.Tensor]], first: int, place: torch.Tensor | None
) -> torch.Tensor:
    """Return the sum, written to ``place`` if its dtype is as wide."""
    alike = place is not None and (place.dtype, place.device) == (made.dtype, made.device)
    total = place if place is not None and alike else made
    for row, piece in added:
        rows = slice(row - first, row - first + piece.shape[2])
        torch.add(made[:, :, rows], piece, out=total[:, :, rows])
        del piece  # before a stream makes the next one
    return total


def _fill(room: Workspace, source: Rows, start: int, fresh: int, stop: int, following: int, enter: Enter) -> None:
    """Fill the window, whose first row is source row ``start``, with rows [fresh, stop), and pad them.

    The next call will fill it up to row ``following``.
    """
    inside, outside = max(fresh, 0), max(min(stop, source.height), fresh, 0)
    for row, piece in source.pieces(inside, outside, min(following, source.height)):
        enter(piece, room.inside[:, :, row - start : row - start + piece.shape[2]])
        del piece  # before a stream makes the next one
    room.pad(start, fresh, stop, source.height)


class AttentionStrips:
    """A :class:`.ops.Attend` with its weights: keys and values of all positions, queries of one strip."""

    def __init__(self, op: Attend, parameters: Parameters, arithmetic: DeviceProfile) -> None:
        self._op, self._arithmetic = op, arithmetic
        self._norm = parameters.norm(op.norm, op.query.in_channels)
        self._query, self._key, self._value, self._out = (
            parameters.linear(layer) for layer in (op.query, op.key, op.value, op.out)
        )

    def strips(self, reading: Reading, scratch: Scratch, into: Into | None = None) -> Generator[Strip]:
        """Yield the target's strips, in order; it may use the source's memory.  Arguments as for convolutions."""
        del into  # a strip is the sum of two others, so it cannot be written directly
        yield from self._attended(reading, AttentionRoom(self, reading, scratch, 1), 0)

    def _attended(self, reading: Reading, room: AttentionRoom, before: int) -> Generator[Strip]:
        """Yield the strips of a picture that attends to itself and to the ``before`` positions kept earlier."""
        if not isinstance(reading.source, Stored):
            raise TypeError("attention reads all of a stored value")
        source, width = reading.source.tensor, reading.source.width
        attention, channels = room.attention, source.shape[1]
        normalise = self._norm.with_statistics(reading.moments)

        def normalised(rows: torch.Tensor) -> torch.Tensor:
            tokens = room.first[: rows[0].numel()].view(-1, channels)
            normalise(rows, tokens.view(1, -1, width, channels).permute(0, 3, 1, 2))
            return tokens

        ranges = [(n, min(n + reading.rows, reading.height)) for n in range(0, reading.height, reading.rows)]
        for first, end in ranges:
            tokens = normalised(source[:, :, first:end])
            made = room.queries[: len(tokens)]
            at = before + first * width
            attention.keys[at : at + len(tokens)] = linear(tokens, self._key, made)
            attention.keep_values(at, linear(tokens, self._value, made))
        for first, end in ranges:
            rows = source[:, :, first:end]
            tokens = normalised(rows)
            queries, mixed = room.queries[: len(tokens)], room.mixed[: len(tokens)]
            linear(tokens, self._query, queries)
            attention.attend(queries, mixed, before + reading.height * width, (room.first, room.last))
            made = linear(mixed, self._out, room.last[: tokens.numel()].view(tokens.shape))
            yield Strip(first, end, made.view(1, end - first, width, channels).permute(0, 3, 1, 2).add_(rows))


class AttentionRoom:
    """The memory of a run of attention over so many pictures: their keys and values, and tokens of a strip."""

    def __init__(self, strips: AttentionStrips, reading: Reading, scratch: Scratch, pictures: int) -> None:
        op, width = strips._op, reading.source.width
        self.attention = begin(op, strips._arithmetic, scratch, pictures * reading.height * width)
        channels, inner = op.out.out_channels, op.query.out_channels
        padded = queries_padded(reading.rows * width)
        self.first, self.last = (scratch.take(padded * max(channels, inner)) for _ in range(2))
        self.queries, self.mixed = (scratch.take(padded, inner) for _ in range(2))


def linear(
    tokens: torch.Tensor, layer: tuple[torch.Tensor, torch.Tensor | None], out: torch.Tensor
) -> torch.Tensor:
    """Apply a linear layer to tokens (n, C), into ``out``, (n, O)."""
    weight, bias = layer
    if bias is None:
        return torch.mm(tokens, weight.T, out=out)
    return torch.addmm(bias, tokens, weight.T, out=out)


def _copy(rows: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(rows, non_blocking=True)
