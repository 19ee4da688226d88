"""The ops of a program, as data.

A value is a picture (C, H, W), or in a program of films (C, T, H, W): T frames of it.
Three ops are enough.  A :class:`Convolve` is a convolution with the local operations
around it: a group norm and an activation on its input, a residual and an activation on its output, ×2 before it or
a stride. An :class:`Attend` is self-attention over positions of a frame or of several.  A :class:`Rearrange` moves
numbers between channels and positions; only programs of films have them.  Ops refer to parameters by name, so a
program also describes a module without weights.

Without :attr:`Convolve.in_time`, an op computes every frame from the same frame of its source.
A convolution over several frames *is* a convolution of one frame whose channels are those of these frames, one
after another, so every algorithm for pictures serves it.

No code here uses a tensor; :mod:`..execution.executor` looks the names up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from .layers import Norm, Segments, Weights
from .rearranging import IN_PLACE, Arrangement

#: Elementwise functions on a convolution's input or output; execution/ implements them.
#:
#: ``from_signed``, ``to_signed`` and ``soft_clamp`` are the ends of diffusers' AutoencoderTiny: (x + 1) / 2, 2x - 1
#: and 3·tanh(x / 3).  ``clamp`` limits the pixels of Wan's family to [-1, 1].
POINTWISE = ("silu", "relu", "gelu", "mish", "from_signed", "to_signed", "soft_clamp", "clamp")

#: The functions (None is the identity) that give the same result whether their input or their output is rounded.
OF_ROUNDED = (None, "relu", "clamp")

#: The powers of two whose multiples of 2π are the frequencies of ``fourier``: x, and its sines and cosines.
FOURIER_POWERS = (6, 7)

#: The functions on a convolution's input that give another number of channels: how many for each.
#:
#: ``gated`` multiplies the first half of the channels by SiLU of the second.
RESIZING = {"fourier": Fraction(1 + 2 * len(FOURIER_POWERS)), "gated": Fraction(1, 2)}

#: What a convolution sees outside of its source: zeros; the nearest frame, row or column of it; or that after it.
Outside = Literal["zeros", "nearest", "reflected"]


@dataclass(frozen=True, slots=True)
class Padding:
    """Rows and columns around a convolution's input."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0
    outside: Outside = "zeros"

    @property
    def sides(self) -> tuple[int, int, int, int]:
        """The number of rows above and below, and of columns to the left and right."""
        return self.top, self.bottom, self.left, self.right


@dataclass(frozen=True, slots=True)
class InTime:
    """Which frames a convolution reads, and which it computes.

    Attributes:
        kernel: Number of frames that are read together.
        stride: Frames from one window to the next.
        first: What happens to frame 0.  ``seen`` is the usual rule: target frame t reads source frames up to
            stride · t and none after it.  With ``kept``, target frame 0 is source frame 0 as it is, and the others
            follow the usual rule.  With ``apart``, source frame 0 is passed on likewise, and the others see zeros
            in its place.
        spread: Number of target frames that lie side by side in the convolution's output channels.  Frame 0 stays
            one frame: with ``seen`` it is the last of those that its window gives.
        outside: What is read in place of frames outside of the source.
        ahead: How many of the frames that are read follow the target's own.
        skipped: How many target frames at the beginning are left out.
    """

    kernel: int
    stride: int = 1
    first: Literal["seen", "kept", "apart"] = "seen"
    spread: int = 1
    outside: Outside = "zeros"
    ahead: int = 0
    skipped: int = 0

    def output_frames(self, frames: int) -> int:
        """Return the number of target frames."""
        return 1 + self.spread * ((frames - 1) // self.stride) - self.skipped

    def frames_read(self, first: int, end: int) -> tuple[int, int]:
        """Return the source frames [from, to) for target frames [first, end); some may be outside of the source."""
        start, stop = self.window_of(first)[0], self.window_of(end - 1)[1]
        return (min(start, 0) if first == 0 else start), stop

    def window_of(self, frame: int) -> tuple[int, int]:
        """Return the source frames [from, to) that are read together for one target frame."""
        last = self.stride * -(-(frame + self.skipped) // self.spread) + self.ahead
        return last + 1 - self.kernel, last + 1

    @property
    def first_seen(self) -> int:
        """The first source frame that a window sees; those before it are zeros."""
        return 1 if self.first == "apart" else 0

    @property
    def first_computed(self) -> int:
        """The first target frame that is computed; those before it are copied."""
        return 0 if self.first == "seen" else 1

    def windows(self, first: int, end: int) -> range:
        """Return the first target frame of every window for target frames [first, end); the first may be < 0."""
        return range(max(first, self.first_computed) if first else self._first_of_all, end, self.spread)

    @property
    def _first_of_all(self) -> int:
        return 1 - self.spread if self.first == "seen" else 1


@dataclass(frozen=True, slots=True)
class Convolve:
    """``target = leaving(normed(conv(×2 entering(norm(source)))) + shortcut(residual))``; only ``conv`` is needed.

    Attributes:
        source: Index of the value that is convolved.
        target: Index of the value that is computed.
        weights: The convolution's weights.
        stride: 1, or 2 in an encoder.
        padding: Around the convolution's input, after norm, activation and ×2.
        doubled: Whether rows and columns are repeated twice (nearest ×2) before the convolution.
        norm: The norm of the source.
        entering: Name of the function applied to the source, after the norm.
        residual: Index of the value that is added to the convolution's output.
        shortcut: A 1×1 convolution on the residual.
        leaving: Name of the function applied to the sum.
        in_time: Which frames are read and computed; None where each frame is computed from the same frame.
        adds_entered: Whether what enters the convolution, after norm and function, is added to its output.
        noise: Of noise that is added to the convolution's output, one picture for all frames and channels: the
            names of the submodule and of its parameter that has each channel's factor.
        measured: Index of a value that equals the source and has its statistics; None for the source itself.
        normed: The norm of the convolution's output, which needs no statistics; in programs of films alone.
    """

    source: int
    target: int
    weights: Weights
    stride: int = 1
    padding: Padding = Padding()
    doubled: bool = False
    norm: Norm | None = None
    entering: str | None = None
    residual: int | None = None
    shortcut: Weights | None = None
    leaving: str | None = None
    in_time: InTime | None = None
    adds_entered: bool = False
    noise: tuple[str, str] | None = None
    measured: int | None = None
    normed: Norm | None = None

    @property
    def name(self) -> str:
        """Name of the submodule that it comes from, for messages."""
        return self.weights.name

    def channels_entering(self, channels: int) -> int:
        """Return how many channels the convolution reads for so many of the source."""
        if self.norm is not None and self.norm.kind == "attention":
            channels //= 3
        return int(channels * RESIZING.get(self.entering or "", 1))

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the target for a source of this size, by the formula of ``torch.nn.Conv2d``."""
        times = 2 if self.doubled else 1
        padding, kernel = self.padding, self.weights.kernel
        return (
            (times * height + padding.top + padding.bottom - kernel) // self.stride + 1,
            (times * width + padding.left + padding.right - kernel) // self.stride + 1,
        )

    def rows_read(self, first: int, end: int) -> tuple[int, int]:
        """Return the source rows [from, to) for target rows [first, end); they may exceed the source's borders."""
        if self.doubled:
            # Target row y reads rows y-1 … y+1 of the doubled picture: rows (y-1)//2 … (y+1)//2 of the source.
            return (first - 1) // 2, end // 2 + 1
        start = first * self.stride - self.padding.top
        return start, (end - 1) * self.stride - self.padding.top + self.weights.kernel

    def output_frames(self, frames: int) -> int:
        """Return the number of the target's frames for a source of so many."""
        return frames if self.in_time is None else self.in_time.output_frames(frames)

    def frames_read(self, first: int, end: int) -> tuple[int, int]:
        """Return the source frames [from, to) for target frames [first, end); some may be outside of the source.

        A norm needs all of the last frame's segment.
        """
        start, stop = (first, end) if self.in_time is None else self.in_time.frames_read(first, end)
        if self.norm is not None and self.norm.segments is not None:
            stop = self.norm.segments.end_of(stop - 1)
        return start, stop

    def at(self, frames: int, segments: Segments, of_input: Segments) -> Convolve:
        """Return the op for a source of so many frames, whose segments and those of the input are known."""
        return self if self.norm is None else replace(self, norm=self.norm.at(segments, of_input))

    def windows(self, frames: int) -> int:
        """Return how many times the convolution runs over the picture for a source of so many frames."""
        if self.in_time is None:
            return frames
        return len(self.in_time.windows(0, self.output_frames(frames)))


@dataclass(frozen=True, slots=True)
class Attend:
    """``target = source + out(softmax(q·kᵀ/√d)·v)`` with q, k, v linear in ``norm(source)``.

    Attributes:
        source: Index of the value that is attended to.
        target: Index of the value that is computed, of the source's size.
        norm: The norm of the source.
        heads: Number of attention heads.
        query: Linear layer for the queries; its ``out_channels`` are those of all heads together.
        key: Linear layer for the keys, of the same size.
        value: Linear layer for the values, of the same size.
        out: Linear layer back to the source's channels.
        sees: The positions that each attends to: those of its frame, those of all frames up to its own, or itself
            in these frames.
        least_norm: The least L2 norm by which queries and keys of each head are divided; None if they are not.
    """

    source: int
    target: int
    norm: Norm
    heads: int
    query: Weights
    key: Weights
    value: Weights
    out: Weights
    sees: Literal["frame", "frames before", "pixel before"] = "frame"
    least_norm: float | None = None

    @property
    def name(self) -> str:
        """Name of the submodule that it comes from, for messages."""
        return self.out.name.removesuffix(".to_out.0").removesuffix(".proj")

    @property
    def residual(self) -> int:
        """Index of the value that is added: the source."""
        return self.source

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the target, which equals the source's."""
        return height, width

    def output_frames(self, frames: int) -> int:
        """Return the number of the target's frames, which equals the source's."""
        return frames

    def frames_read(self, first: int, end: int) -> tuple[int, int]:
        """Return the source frames for target frames [first, end): the same, or all up to these."""
        return (first if self.sees == "frame" else 0), end

    def at(self, frames: int, segments: Segments, of_input: Segments) -> Attend:
        """Return the op for a source of so many frames, whose segments and those of the input are known."""
        return replace(self, norm=self.norm.at(segments, of_input))

    def pairs(self, positions: int, frames: int) -> int:
        """Return the number of pairs of a query and a key, for frames of so many positions."""
        seen = frames if self.sees == "frame" else frames * (frames + 1) // 2
        return seen * positions ** (1 if self.sees == "pixel before" else 2)


@dataclass(frozen=True, slots=True)
class Rearrange:
    """``target = leaving(source, arranged + residual, arranged)``: numbers change their places, nothing else.

    Attributes:
        source: Index of the value that is arranged.
        target: Index of the value that is computed.
        channels: Number of the source's channels.
        by: How the source is arranged.
        residual: Index of the value that is added.
        residual_channels: Number of its channels.
        residual_by: How it is arranged.
        leaving: Name of the function applied to the sum.
        name: Name of the submodule that it comes from, for messages.
        joins: Whether the residual's channels follow the source's instead of being added to them.
    """

    source: int
    target: int
    channels: int
    by: Arrangement = IN_PLACE
    residual: int | None = None
    residual_channels: int = 0
    residual_by: Arrangement = IN_PLACE
    leaving: str | None = None
    name: str = ""
    joins: bool = False

    @property
    def norm(self) -> None:
        """None: it normalises nothing."""

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the target for a source of this size."""
        return self.by.output_size(height, width)

    def output_frames(self, frames: int) -> int:
        """Return the number of the target's frames for a source of so many."""
        return self.by.output_frames(frames)

    def at(self, frames: int, segments: Segments, of_input: Segments) -> Rearrange:
        """Return the op for a source of so many frames."""
        return replace(self, by=self.by.at(frames))

    def rows_read(self, first: int, end: int) -> tuple[int, int]:
        """Return the source rows [from, to) for target rows [first, end)."""
        return self.by.rows_read(first, end)

    def frames_read(self, first: int, end: int) -> tuple[int, int]:
        """Return the source frames [from, to) for target frames [first, end); they may begin before the source."""
        return self.by.frames_read(first, end)


Op = Convolve | Attend | Rearrange


def measured_by(op: Op) -> int | None:
    """Return the value whose statistics an op normalises its source with; None if it needs none."""
    if op.norm is None or not op.norm.is_measured:
        return None
    return op.measured if isinstance(op, Convolve) and op.measured is not None else op.source


def needs_film(op: Op) -> bool:
    """Return whether only a program of films can have this op, of one frame for a picture."""
    if isinstance(op, Rearrange) or (isinstance(op, Convolve) and (op.normed is not None or op.adds_entered)):
        return True
    return op.norm is not None and (op.norm.maps is not None or op.norm.kind == "attention")


def rows_added(op: Op, first: int, end: int) -> tuple[int, int]:
    """Return the rows [from, to) of an op's residual for target rows [first, end)."""
    return op.residual_by.rows_read(first, end) if isinstance(op, Rearrange) else (first, end)


def frames_added(op: Op, first: int, end: int) -> tuple[int, int]:
    """Return the frames [from, to) of an op's residual for target frames [first, end)."""
    return op.residual_by.frames_read(first, end) if isinstance(op, Rearrange) else (first, end)


def frames_ahead(op: Op) -> int:
    """Return how many source frames after a target frame's own are read for it."""
    return op.in_time.ahead if isinstance(op, Convolve) and op.in_time else 0


def frames_split(op: Op, end: int) -> int:
    """Return how many target frames before `end` are made together with some after it."""
    if isinstance(op, Convolve):
        return (end - 1) % op.in_time.spread if op.in_time and end > 0 else 0
    if isinstance(op, Attend):
        return 0
    return max(op.by.frames_split(end), op.residual_by.frames_split(end))


def rows_together(op: Op) -> int:
    """Return how many target rows are made from the same source rows, and therefore together."""
    if isinstance(op, Convolve):
        return 2 if op.doubled else 1
    if isinstance(op, Attend):
        return 1
    return max(by.rows if by.goes_up else 1 for by in (op.by, op.residual_by))
