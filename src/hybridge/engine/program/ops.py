"""The ops of a program, as data.

Two ops are enough for diffusers' picture VAEs.  A :class:`Convolve` is a convolution with the local operations
around it: a group norm and an activation on its input, a residual and an activation on its output, ×2 before it or
a stride. An :class:`Attend` is self-attention over all positions.  Ops refer to parameters by name, so a program
also describes a module without weights.

No code here uses a tensor; :mod:`..execution.executor` looks the names up.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Elementwise functions on a convolution's input or output; execution/ implements them.
#:
#: ``from_signed``, ``to_signed`` and ``soft_clamp`` are the ends of diffusers' AutoencoderTiny: (x + 1) / 2, 2x - 1
#: and 3·tanh(x / 3).
POINTWISE = ("silu", "relu", "gelu", "mish", "from_signed", "to_signed", "soft_clamp")

#: The functions (None is the identity) that give the same result whether their input or their output is rounded.
OF_ROUNDED = (None, "relu")


@dataclass(frozen=True, slots=True)
class Weights:
    """The parameters of one convolution or linear layer.

    Attributes:
        name: Name of the submodule that owns ``weight`` and ``bias``, as in ``named_modules()``.
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        kernel: Side of the square kernel; 1 for a linear layer.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel: int = 1


@dataclass(frozen=True, slots=True)
class Norm:
    """A GroupNorm: the name of its submodule, and the number of its groups."""

    name: str
    groups: int
    eps: float


@dataclass(frozen=True, slots=True)
class Padding:
    """Zeros around a convolution's input, in rows and columns of that input."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


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


@dataclass(frozen=True, slots=True)
class Attend:
    """``target = source + out(softmax(q·kᵀ/√d)·v)`` with q, k, v linear in ``norm(source)``, over all positions.

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
        return self.out.name.removesuffix(".to_out.0")

    @property
    def residual(self) -> int:
        """Index of the value that is added: the source."""
        return self.source

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the target, which equals the source's."""
        return height, width


Op = Convolve | Attend
