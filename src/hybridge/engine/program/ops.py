"""The ops of a program, as data.

A value is a picture (C, H, W), or in a program of films (C, T, H, W): T frames of it.
Two ops are enough for diffusers' picture VAEs.  A :class:`Convolve` is a convolution with the local operations
around it: a group norm and an activation on its input, a residual and an activation on its output, ×2 before it or
a stride. An :class:`Attend` is self-attention over all positions of a frame.  Ops refer to parameters by name, so a
program also describes a module without weights.

Without :attr:`Convolve.in_time`, an op computes every frame from the same frame of its source.
A convolution over several frames *is* a convolution of one frame whose channels are those of these frames, one
after another, so every algorithm for pictures serves it.

No code here uses a tensor; :mod:`..execution.executor` looks the names up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Elementwise functions on a convolution's input or output; execution/ implements them.
#:
#: ``from_signed``, ``to_signed`` and ``soft_clamp`` are the ends of diffusers' AutoencoderTiny: (x + 1) / 2, 2x - 1
#: and 3·tanh(x / 3).  ``clamp`` limits the pixels of Wan's family to [-1, 1].
POINTWISE = ("silu", "relu", "gelu", "mish", "from_signed", "to_signed", "soft_clamp", "clamp")

#: The functions (None is the identity) that give the same result whether their input or their output is rounded.
OF_ROUNDED = (None, "relu", "clamp")


@dataclass(frozen=True, slots=True)
class Weights:
    """The parameters of one convolution or linear layer.

    Attributes:
        name: Name of the submodule that owns ``weight`` and ``bias``, as in ``named_modules()``.
        in_channels: Number of input channels; of all frames that are read together.
        out_channels: Number of output channels.
        kernel: Side of the square kernel; 1 for a linear layer.
        taps: For a kernel with a length in time, the taps along it that are used, one for each frame that is read.
        first_output: The first of the layer's outputs that is used: some layers compute queries, keys and values
            together.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel: int = 1
    taps: tuple[int, ...] | None = None
    first_output: int = 0


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm of a convolution's or of attention's source.

    Attributes:
        name: Name of its submodule.
        groups: For ``group`` the number of groups of channels.
        eps: For ``group`` added to the variance, for ``rms`` the least norm that is divided by.
        kind: ``group`` is a GroupNorm, whose statistics span the picture.  ``rms`` divides the channels of every
            position by their L2 norm and multiplies by √C and by ``gamma``; it needs no statistics.
    """

    name: str
    groups: int
    eps: float
    kind: Literal["group", "rms"] = "group"

    @property
    def is_measured(self) -> bool:
        """Whether it needs statistics of its whole source before it can normalise any of it."""
        return self.kind == "group"


@dataclass(frozen=True, slots=True)
class Padding:
    """Zeros around a convolution's input, in rows and columns of that input."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


@dataclass(frozen=True, slots=True)
class InTime:
    """Which frames a convolution reads, and which it computes.

    Frames outside of the source are zeros.

    Attributes:
        kernel: Number of frames that are read together.
        stride: Frames from one window to the next.
        first: What happens to frame 0.  ``seen`` is the usual rule: target frame t reads source frames up to
            stride · t and none after it.  With ``kept``, target frame 0 is source frame 0 as it is, and the others
            follow the usual rule.  With ``apart``, source frame 0 is passed on likewise, and the others see zeros
            in its place.
        spread: Number of target frames that lie side by side in the convolution's output channels; only with
            ``apart``, because frame 0 stays one frame.
    """

    kernel: int
    stride: int = 1
    first: Literal["seen", "kept", "apart"] = "seen"
    spread: int = 1

    def output_frames(self, frames: int) -> int:
        """Return the number of target frames."""
        return 1 + self.spread * ((frames - 1) // self.stride)

    def frames_read(self, first: int, end: int) -> tuple[int, int]:
        """Return the source frames [from, to) for target frames [first, end); they may begin before the source."""
        start, stop = self.window_of(first)[0], self.window_of(end - 1)[1]
        return (min(start, 0) if first == 0 else start), stop

    def window_of(self, frame: int) -> tuple[int, int]:
        """Return the source frames [from, to) that are read together for one target frame."""
        last = self.stride * (-(-frame // self.spread))
        return last + 1 - self.kernel, last + 1

    @property
    def first_seen(self) -> int:
        """The first source frame that a window sees; those before it are zeros."""
        return 1 if self.first == "apart" else 0

    @property
    def first_computed(self) -> int:
        """The first target frame that is computed; those before it are copied."""
        return 0 if self.first == "seen" else 1


@dataclass(frozen=True, slots=True)
class Convolve:
    """``target = leaving(conv(×2 entering(norm(source))) + shortcut(residual))``; all but ``conv`` is optional.

    Attributes:
        source: Index of the value that is convolved.
        target: Index of the value that is computed.
        weights: The convolution's weights.
        stride: 1, or 2 in an encoder.
        padding: Zeros around the convolution's input, after norm, activation and ×2.
        doubled: Whether rows and columns are repeated twice (nearest ×2) before the convolution.
        norm: The norm of the source.
        entering: Name of the function applied to the source, after the norm.
        residual: Index of the value that is added to the convolution's output.
        shortcut: A 1×1 convolution on the residual.
        leaving: Name of the function applied to the sum.
        in_time: Which frames are read and computed; None where each frame is computed from the same frame.
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

    @property
    def name(self) -> str:
        """Name of the submodule that it comes from, for messages."""
        return self.weights.name

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
        """Return the source frames [from, to) for target frames [first, end); they may begin before the source."""
        return (first, end) if self.in_time is None else self.in_time.frames_read(first, end)

    def windows(self, frames: int) -> int:
        """Return how many times the convolution runs over the picture for a source of so many frames."""
        if self.in_time is None:
            return frames
        return (self.output_frames(frames) - self.in_time.first_computed) // self.in_time.spread


@dataclass(frozen=True, slots=True)
class Attend:
    """``target = source + out(softmax(q·kᵀ/√d)·v)`` with q, k, v linear in ``norm(source)``, within a frame.

    Attributes:
        source: Index of the value that is attended to.
        target: Index of the value that is computed, of the source's size.
        norm: The norm of the source.
        heads: Number of attention heads.
        query: Linear layer for the queries; its ``out_channels`` are those of all heads together.
        key: Linear layer for the keys, of the same size.
        value: Linear layer for the values, of the same size.
        out: Linear layer back to the source's channels.
    """

    source: int
    target: int
    norm: Norm
    heads: int
    query: Weights
    key: Weights
    value: Weights
    out: Weights

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
        """Return the source frames for target frames [first, end): the same."""
        return first, end


Op = Convolve | Attend
