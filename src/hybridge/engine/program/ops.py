"""The vocabulary of a program: what one op is, as data.

Two ops are enough for diffusers' picture VAEs.  A :class:`Convolve` is a convolution with everything local that
stands around it: a group norm and an activation on the way in, a residual and an activation on the way out, ×2
before it or a stride in it.  An :class:`Attend` is self-attention over all positions.  Parameters are named, not
held, so a program says as much about a module without weights.

Nothing here touches a tensor; :mod:`..execution.executor` gives the names their meaning.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Functions of one number that a convolution can have on its way in or out; execution/ has their bodies.
#:
#: ``from_signed``, ``to_signed`` and ``soft_clamp`` are the ends of diffusers' AutoencoderTiny: (x + 1) / 2, 2x - 1
#: and 3·tanh(x / 3).
POINTWISE = ("silu", "relu", "gelu", "mish", "from_signed", "to_signed", "soft_clamp")

#: Those, and none, that give the same for what was rounded before as rounded after.
OF_ROUNDED = (None, "relu")


@dataclass(frozen=True, slots=True)
class Weights:
    """The parameters of one convolution or linear layer.

    Attributes:
        name: Of the submodule that owns ``weight`` and ``bias``, as in ``named_modules()``.
        in_channels: What it reads.
        out_channels: What it gives.
        kernel: Side of its square kernel; 1 for a linear layer.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel: int = 1


@dataclass(frozen=True, slots=True)
class Norm:
    """A GroupNorm: whose parameters, and over how many groups."""

    name: str
    groups: int
    eps: float


@dataclass(frozen=True, slots=True)
class Padding:
    """Zeros around the input, in rows and columns of what the convolution reads."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


@dataclass(frozen=True, slots=True)
class Convolve:
    """``target = leaving(conv(×2 entering(norm(source))) + shortcut(residual))``; only the convolution must be.

    Attributes:
        source: The value that is convolved.
        target: The value that is made.
        weights: Of the convolution.
        stride: 1, or 2 in an encoder.
        padding: Zeros around what the convolution reads, after norm, activation and ×2.
        doubled: Whether rows and columns are repeated twice (nearest ×2) before the convolution.
        norm: What normalises the source.
        entering: Name of the function applied to the source, after the norm.
        residual: The value that is added to what the convolution gave.
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
        """For people: the submodule that it comes from."""
        return self.weights.name

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the target for a source of this size; the formula of ``torch.nn.Conv2d``."""
        times = 2 if self.doubled else 1
        padding, kernel = self.padding, self.weights.kernel
        return (
            (times * height + padding.top + padding.bottom - kernel) // self.stride + 1,
            (times * width + padding.left + padding.right - kernel) // self.stride + 1,
        )

    def rows_read(self, first: int, end: int) -> tuple[int, int]:
        """The source rows [from, to) that target rows [first, end) need; may reach beyond the source's borders."""
        if self.doubled:
            # Target row y reads rows y-1 … y+1 of the doubled picture, which are rows (y-1)//2 … (y+1)//2 of this.
            return (first - 1) // 2, end // 2 + 1
        start = first * self.stride - self.padding.top
        return start, (end - 1) * self.stride - self.padding.top + self.weights.kernel


@dataclass(frozen=True, slots=True)
class Attend:
    """``target = source + out(softmax(q·kᵀ/√d)·v)`` with q, k, v linear in ``norm(source)``, over all positions.

    Attributes:
        source: What is attended to.
        target: The value that is made, as large as the source.
        norm: What normalises the source.
        heads: Attention heads.
        query: Linear layer; its ``out_channels`` are all heads together.
        key: The same.
        value: The same.
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
        """For people: the submodule that it comes from."""
        return self.out.name.removesuffix(".to_out.0")

    @property
    def residual(self) -> int:
        """The value that is added, which is the source itself."""
        return self.source

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the target: the source's."""
        return height, width


Op = Convolve | Attend
