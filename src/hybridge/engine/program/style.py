"""What causal VAEs have in common: the order of their layers.  Each family says how it writes a layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .builder import ProgramBuilder, check
from .layers import Norm, Weights
from .module_structure import kind


@dataclass(frozen=True, slots=True)
class Style:
    """How a family of classes writes its layers.

    Attributes:
        conv: Adds a convolution: (builder, value, layer, and what is around it) → the value that it makes.
        norm: Lowers a norm of a value: (builder, layer, value).
    """

    conv: Callable[..., int]
    norm: Callable[[ProgramBuilder, Any, int], Norm]

    def norm_act_conv(
        self, builder: ProgramBuilder, x: int, norm: Any, activation: Any, conv: Any, **around: Any
    ) -> int:
        """Add a convolution of a normalised value after SiLU."""
        check(builder.name(activation), ("SiLU", kind(activation) == "SiLU"))
        return self.conv(builder, x, conv, norm=self.norm(builder, norm, x), entering="silu", **around)

    def resnet(self, builder: ProgramBuilder, block: Any, x: int, shortcut: Weights | None) -> int:
        """Add a block of two convolutions, to which its input is added."""
        hidden = self.norm_act_conv(builder, x, block.norm1, block.nonlinearity, block.conv1)
        around = {"residual": x, "shortcut": shortcut}
        return self.norm_act_conv(builder, hidden, block.norm2, block.nonlinearity, block.conv2, **around)

    def decode(self, builder: ProgramBuilder, part: Any, x: int) -> int:
        """Add what follows a decoder's first convolution, ``x``."""
        return self._last(builder, part, self._through(builder, (part.mid_block, *part.up_blocks), x))

    def encode(self, builder: ProgramBuilder, part: Any, x: int) -> tuple[int, int]:
        """Add what follows an encoder's first convolution, ``x``; return the last one's source and target."""
        x = self._through(builder, (*part.down_blocks, part.mid_block), x)
        return x, self._last(builder, part, x)

    def _through(self, builder: ProgramBuilder, blocks: tuple[Any, ...], x: int) -> int:
        for block in blocks:
            x = builder.block(block, x)
        return x

    def _last(self, builder: ProgramBuilder, part: Any, x: int) -> int:
        norm = part.conv_norm_out if hasattr(part, "conv_norm_out") else part.norm_out
        activation = part.conv_act if hasattr(part, "conv_act") else part.nonlinearity
        return self.norm_act_conv(builder, x, norm, activation, part.conv_out)


def pointwise(builder: ProgramBuilder, conv: Any, known: str = "Conv3d") -> Weights:
    """Return the weights of a 1×1×1 convolution."""
    weights = builder.conv3d_weights(conv, known=known)
    geometry = conv.kernel_size, set(conv.stride), set(conv.padding)
    check(weights.name, ("a 1×1×1 convolution", geometry == ((1, 1, 1), {1}, {0})))
    return weights
