"""A VAE's encoder or decoder as a flat list of ops on numbered values; each value is written once.

:mod:`.lowering` makes programs, :mod:`..planning.plan` plans how a program fits in memory, and
:mod:`..execution.executor` runs it.  A program is pure data: it can be compared, printed, and made from a module on
the ``meta`` device, which has no weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from .layers import Norm, Segments
from .ops import Attend, Convolve, Op, Rearrange, measured_by
from .tiles import Tiles

#: The least rows and columns that can be reflected.
_REFLECTED = 2

Task = Literal["decode", "encode"]


@dataclass(frozen=True, slots=True)
class Program:
    """The ops to run, in order.

    Attributes:
        task: ``decode`` or ``encode``.
        module: The class of the module that it was lowered from.
        channels: Number of channels of every value: value 0 is the input, op ``i - 1`` computes value ``i``.
        ops: The ops in order; op ``i`` writes value ``i + 1`` and reads only earlier values.
        held: For every op the inputs of the blocks that contain it.  The plain forward keeps these alive until the
            block returns, because its callers still refer to them; a strip run does not.
        is_film: Whether its values have frames, (C, T, H, W).
        is_folded: Whether it computes a film of one frame as a picture; see :mod:`.folding`.
        is_at_once: Whether the class computes all frames at once, and not a few after others.
        has_frames_in_batch: Whether layers of pictures compute the frames, as items of a batch.
        is_by_frame: Whether the class's convolutions compute one frame after another, and then join them.
        padded_copies: How many copies of its source a convolution over frames makes to pad it.
        is_of_pictures: Whether the class takes pictures, each of which is a film of one frame here.
        segment: Frames of the input that the class computes at a time, where norms have the statistics of these; 0
            where none has.
        first_segment: Frames of the first of these segments; then the last may be shorter.  0 where the first takes
            what is left over.
        tiles: For a class that computes tiles by themselves and blends them, the tiles; the ops compute one.
    """

    task: Task
    module: str
    channels: tuple[int, ...]
    ops: tuple[Op, ...]
    held: tuple[frozenset[int], ...]
    is_film: bool = False
    is_folded: bool = False
    is_at_once: bool = False
    has_frames_in_batch: bool = False
    is_by_frame: bool = False
    padded_copies: int = 1
    is_of_pictures: bool = False
    segment: int = 0
    first_segment: int = 0
    tiles: Tiles | None = None

    def at(self, frames: int) -> Program:
        """Return the program for an input of so many frames, on which rules of its ops may depend."""
        if not self.segment:
            return self
        lengths = self.lengths(frames)
        segments = [Segments(*pair) for pair in zip(*self.segment_lengths(frames), strict=True)]
        ops = tuple(op.at(lengths[op.source], segments[op.source], segments[0]) for op in self.ops)
        return replace(self, ops=ops)

    def segment_lengths(self, frames: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the frames of every value in the first segment and in each other, for an input of so many."""
        usual = self.first_segment or self.segment + frames % self.segment
        firsts, both = self.lengths(usual), self.lengths(usual + self.segment)
        others = tuple(after - before for before, after in zip(firsts, both, strict=True))
        first = min(frames, usual) if self.first_segment or frames >= self.segment else frames
        return self.lengths(first), others

    @property
    def takes_time(self) -> bool:
        """Whether it needs a timestep beside its input."""
        return any(op.norm is not None and op.norm.vectors is not None for op in self.ops)

    def lengths(self, frames: int) -> tuple[int, ...]:
        """Return the number of frames of every value for an input of so many."""
        lengths = [frames]
        for op in self.ops:
            lengths.append(op.output_frames(lengths[op.source]))
        return tuple(lengths)

    def sizes(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """Return (height, width) of every value for an input of this size."""
        sizes = [(height, width)]
        for op in self.ops:
            sizes.append(op.output_size(*sizes[op.source]))
        return tuple(sizes)

    def last_reads(self) -> tuple[int, ...]:
        """Return for every value the index of the op that reads it last; for the output, the number of ops."""
        last = [len(self.ops)] * len(self.channels)
        for index, op in enumerate(self.ops):
            for value in {op.source, op.residual} - {None}:
                last[value] = index  # type: ignore[index] # None is filtered out above
        return tuple(last)

    def readers(self, value: int) -> tuple[int, ...]:
        """Return the indices of the ops that read a value; an op that reads it twice occurs twice."""
        return tuple(
            index for index, op in enumerate(self.ops) for read in (op.source, op.residual) if read == value
        )

    def layers(self) -> tuple[str, ...]:
        """Return the names of the submodules whose parameters the program uses, without duplicates."""
        names: dict[str, None] = {}
        for op in self.ops:
            if isinstance(op, Rearrange):
                continue
            own = (op.query, op.key, op.value, op.out) if isinstance(op, Attend) else (op.weights, op.shortcut)
            maps = op.norm.maps if op.norm is not None else None
            normed = op.normed if isinstance(op, Convolve) else None
            beside = (op.norm, normed, *((maps.scale, maps.shift) if maps is not None else ()))
            names.update({layer.name: None for layer in (*own, *beside) if layer is not None})
            names.update({name: None for layer in own if layer is not None for name in layer.beside})
            names.update({layer.scaled_by: None for layer in own if layer is not None and layer.scaled_by})
        if self.tiles is not None and self.tiles.last is not None:
            names[self.tiles.last.name] = None
        return tuple(names)

    def norm_of(self, value: int) -> Norm | None:
        """Return the norm that needs this value's statistics, which are gathered while the value is computed."""
        return next((op.norm for op in self.ops if measured_by(op) == value), None)

    def why_not(self, frames: int, height: int, width: int) -> str | None:
        """Return which op cannot take its source for an input of this size; None if all can."""
        if self.tiles is not None:
            if 0 in self.tiles.grid(frames, height, width):
                return f"a tile is of {'×'.join(map(str, self.tiles.source))} frames, rows and columns"
            frames, height, width = self.tiles.source
        sizes, lengths = self.sizes(height, width), self.lengths(frames)
        for op in self.ops:
            if (
                isinstance(op, Convolve)
                and op.padding.outside == "reflected"
                and min(sizes[op.source]) < _REFLECTED
            ):
                return f"{op.name} reflects rows and columns, of which there are fewer than {_REFLECTED}"
            norm, (height_read, width_read) = op.norm, sizes[op.source]
            numbers = lengths[op.source] * height_read * width_read * self.channels[op.source]
            if norm is not None and norm.is_measured and numbers == norm.groups:
                return f"{norm.name} normalises single numbers"
            if not isinstance(op, Rearrange):
                continue
            for value, by in ((op.source, op.by), (op.residual, op.residual_by)):
                if value is not None and not by.fits(lengths[value], *sizes[value]):
                    block = "×".join(map(str, (by.frames, by.rows, by.columns)))
                    return f"{op.name} takes blocks of {block} frames, rows and columns"
        return None

    def flops(self, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        """Return the floating-point operations of every op for one item; a multiplication and its addition are two.

        It counts convolutions, linear layers and both products of attention.  A doubled 3×3 convolution counts as
        the four 2×2 convolutions that it is run as.
        """
        sizes, lengths = self.sizes(height, width), self.lengths(frames)
        counts = []
        for op in self.ops:
            rows, columns = sizes[op.target]
            positions = rows * columns
            if isinstance(op, Attend):
                linear = sum(w.in_channels * w.out_channels for w in (op.query, op.key, op.value, op.out))
                products = 2 * op.pairs(positions, lengths[op.source]) * op.query.out_channels
                counts.append(2 * (positions * linear * lengths[op.source] + products))
            elif isinstance(op, Rearrange):
                counts.append(0)
            else:
                counts.append(2 * positions * _products_per_position(op) * op.windows(lengths[op.source]))
        return tuple(counts)


def _products_per_position(op: Convolve) -> int:
    taps = 4 if op.doubled else op.weights.kernel**2
    own = taps * op.weights.in_channels * op.weights.out_channels // op.weights.groups
    return own + (op.shortcut.in_channels * op.shortcut.out_channels if op.shortcut else 0)
