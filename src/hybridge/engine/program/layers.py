"""The layers that ops refer to, as data: weights and norms, by the names of their submodules."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

#: For a kernel with a length in time: for every output phase and every frame that is read, the taps along time by
#: whose sum that frame is multiplied.
Taps = tuple[tuple[tuple[int, ...], ...], ...]


def usual_taps(frames: int) -> Taps:
    """Return the taps of a kernel of this length: one phase, one tap for each frame."""
    return (tuple((tap,) for tap in range(frames)),)


@dataclass(frozen=True, slots=True)
class Wavelets:
    """A Haar transform of blocks of frames, rows and columns, whose positions are channels.

    As positions, channels run ``ctyx``; as wavelets, those of the coarsest level run slowest, of each level along
    frames, rows and columns, and those that the transform is of run fastest.

    Attributes:
        owner: Name of the submodule that has ``wavelets``, and the side of blocks as its ``patch_size``.
        is_read: Whether a convolution reads wavelets of positions; otherwise what it gives become positions.
    """

    owner: str
    is_read: bool


@dataclass(frozen=True, slots=True)
class Weights:
    """The parameters of one convolution or linear layer.

    Attributes:
        name: Name of the submodule that owns ``weight`` and ``bias``, as in ``named_modules()``.
        in_channels: Number of input channels; of all frames that are read together.
        out_channels: Number of output channels.
        kernel: Side of the square kernel; 1 for a linear layer.
        taps: For a kernel with a length in time, how its taps serve; of several phases, ``out_channels`` are those
            of all phases, one after another.
        first_output: The first of the layer's outputs that is used: some layers compute queries, keys and values
            together.
        last_repeated: How many more of ``out_channels`` have the number of the layer's last output.
        zeros: How many more of ``out_channels`` are zero.
        scaled_by: Name of the submodule by the sigmoid of whose ``mix_factor`` all outputs are multiplied.
        groups: Number of groups of channels; each group of outputs is computed from one of inputs.
        beside: Names of further submodules, of the same inputs, whose outputs follow the first one's.
        wavelets: What its input is made of first, or what its output is made into.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel: int = 1
    taps: Taps | None = None
    first_output: int = 0
    last_repeated: int = 0
    zeros: int = 0
    scaled_by: str | None = None
    groups: int = 1
    beside: tuple[str, ...] = ()
    wavelets: Wavelets | None = None

    @property
    def phases(self) -> int:
        """How many times the layer's outputs are computed, each time with other taps."""
        return 1 if self.taps is None else len(self.taps)


@dataclass(frozen=True, slots=True)
class Segments:
    """The parts of a film that a class computes one after another, each with statistics of its own.

    Attributes:
        first: Frames of the first.
        others: Frames of every other.
    """

    first: int
    others: int

    def part_of(self, frame: int) -> int:
        """Return the number of the segment that a frame is in."""
        return 0 if frame < self.first else 1 + (frame - self.first) // self.others

    def end_of(self, frame: int) -> int:
        """Return the frame after the segment that a frame is in."""
        return self.first + self.part_of(frame) * self.others


@dataclass(frozen=True, slots=True)
class Maps:
    """What a normalised value is multiplied by, and what is added: 1×1 convolutions of the program's input.

    The input is smaller: each of its positions serves a block of the value's.

    Attributes:
        scale: The convolution that gives the factors.
        shift: The convolution that gives what is added.
        frames: Frames of a block.
        first_alone: Whether frame 0 is a block of its own.
        copies: How many values of this size the class makes at a time to normalise one.
        is_input_kept: Whether the class keeps the input at the value's size until the next segment.
    """

    scale: Weights
    shift: Weights
    frames: int = 1
    first_alone: bool = False
    copies: int = 5
    is_input_kept: bool = True

    def frame_of(self, frame: int) -> int:
        """Return the input's frame for a frame of the value."""
        return -(-frame // self.frames) if self.first_alone else frame // self.frames


@dataclass(frozen=True, slots=True)
class Vectors:
    """What a normalised value's channels are multiplied by, and what is added: rows of a table plus an embedding.

    The embedding is of the call's timestep.

    Attributes:
        owner: Name of the submodule whose ``scale_shift_table`` is the table.
        embedder: Name of the submodule that makes the embedding.
        shift: The row of the shift.
        scale: The row of the factor, less one.
    """

    owner: str
    embedder: str
    shift: int
    scale: int


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm of a convolution's or of attention's source.

    Attributes:
        name: Name of its submodule.
        groups: For ``group`` the number of groups of channels.
        eps: Added to the variance or the mean square; for ``rms`` the least norm that is divided by.
        kind: ``group`` is a GroupNorm, whose statistics span the picture.  The others are of every position's
            channels and need no statistics: ``rms`` divides by their L2 norm and multiplies by √C and by ``gamma``,
            ``mean square`` divides by the root of their mean square, and ``layer`` is a LayerNorm.
            ``attention`` is linear attention, whose sums span the picture as statistics do: a third of each group's
            channels are queries, a third keys, a third values, and a third remains, of results.
        over: Whether the statistics of a film are those of each frame, of each segment or of all frames together.
        ends_twice: Whether statistics of all frames count the first and the last one twice.
        segments: The segments, once the number of frames is known; see :meth:`.Program.at`.
        maps: What the normalised value is multiplied by and what is added to it, at every position.
        vectors: The same, for every channel.
    """

    name: str
    groups: int
    eps: float
    kind: Literal["group", "rms", "mean square", "layer", "attention"] = "group"
    over: Literal["frame", "segment", "film"] = "frame"
    ends_twice: bool = False
    segments: Segments | None = None
    maps: Maps | None = None
    vectors: Vectors | None = None

    @property
    def is_measured(self) -> bool:
        """Whether it needs statistics of its whole source before it can normalise any of it."""
        return self.kind in ("group", "attention")

    def part_of(self, frame: int) -> int:
        """Return the number of the part of the film whose statistics a frame is normalised with."""
        if self.segments is not None:
            return self.segments.part_of(frame)
        return frame if self.over == "frame" else 0

    def at(self, segments: Segments, of_input: Segments) -> Norm:
        """Return the norm for a source whose segments are known, and those of the input."""
        maps = self.maps
        if maps is not None:
            times = segments.others // of_input.others
            maps = replace(maps, frames=times, first_alone=segments.first % times != 0)
        return replace(self, segments=segments if self.over == "segment" else None, maps=maps)
