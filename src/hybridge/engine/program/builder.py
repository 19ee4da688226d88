"""Collects a program's ops, and checks that each layer is one that ops can express."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from ...errors import CannotLower
from .layers import Maps, Norm, Weights, usual_taps
from .module_structure import kind
from .ops import Attend, Convolve, Op, Padding, Rearrange, needs_film
from .program import Program, Task
from .rearranging import IN_PLACE, Arrangement
from .tiles import Tiles

#: Lowers one block: (builder, block, the value that it reads) → the value that it makes.
Lower = Callable[["ProgramBuilder", Any, int], int]


class ProgramBuilder:
    """Collects the ops of a program, and knows the name of every submodule.

    Args:
        module: The VAE.
        blocks: The function that lowers each block, by the name of the block's class.

    Attributes:
        norms_are_over: The frames that a norm's statistics are over; see :class:`.Norm`.
        attention_sees: The frames that attention is over; see :class:`.Attend`.
        is_at_once: As in :class:`.Program`.
        has_frames_in_batch: As in :class:`.Program`.
        is_by_frame: As in :class:`.Program`.
        padded_copies: As in :class:`.Program`.
        segment: As in :class:`.Program`.
        first_segment: As in :class:`.Program`.
        tiles: As in :class:`.Program`.
        is_causal: Whether no layer sees later frames, where this is a setting of the class.
        embedder: Name of the submodule that embeds the timestep for the blocks that are being lowered.
    """

    def __init__(self, module: nn.Module, blocks: Mapping[str, Lower]) -> None:
        self._blocks = blocks
        self.norms_are_over: Literal["frame", "segment", "film"] = "frame"
        self.attention_sees: Literal["frame", "frames before", "pixel before"] = "frame"
        self.is_at_once = self.has_frames_in_batch = self.is_by_frame = False
        self.padded_copies = 1
        self.segment = self.first_segment = 0
        self.tiles: Tiles | None = None
        self.is_causal = True
        self.embedder: str | None = None
        self._names = {part: name for name, part in module.named_modules()}
        self._module = type(module).__name__
        self._channels: list[int] = []
        self._ops: list[Op] = []
        self._held: list[frozenset[int]] = []
        self._open: list[int] = []  # inputs of the blocks that are being lowered, outermost first

    def input(self, channels: int) -> int:
        self._channels.append(channels)
        return 0

    def convolve(self, source: int, conv: Any, **around: Any) -> int:
        weights = self.conv_weights(conv, around.pop("groups", 1))
        side = (weights.kernel - 1) // 2
        padding = around.pop("padding", None)
        expected, given = (0, padding) if padding else (side, Padding(side, side, side, side))
        check(
            weights.name,
            ("an odd kernel", weights.kernel % 2 == 1),
            (f"padding of {expected}", set(conv.padding) == {expected}),
            ("stride 1, or 2 with a 3×3 kernel", conv.stride[0] == 1 or (conv.stride[0], weights.kernel) == (2, 3)),
            ("stride 1 where something is added", conv.stride[0] == 1 or "residual" not in around),
        )
        return self.convolve_with(source, weights, conv.stride[0], given, **around)

    def convolve_with(self, source: int, weights: Weights, stride: int, padding: Padding, **around: Any) -> int:
        """Add a convolution whose layer was checked before."""
        op = Convolve(source, len(self._channels), weights, stride, padding, **around)
        together, spread = (op.in_time.kernel, op.in_time.spread) if op.in_time else (1, 1)
        channels = op.channels_entering(self._channels[source])
        if weights.in_channels != together * channels:
            raise CannotLower(
                f"cannot lower {weights.name}", saw=f"{channels} channels", expected=weights.in_channels // together
            )
        if op.residual is not None:
            added = op.shortcut.out_channels if op.shortcut else self._channels[op.residual]
            check(weights.name, ("as many channels as are added to it", added == weights.out_channels))
        return self._add(op, weights.out_channels // spread)

    def attend(self, source: int, **layers: Any) -> int:
        inside = {layers[name].in_channels for name in ("query", "key", "value")} | {layers["out"].out_channels}
        check(layers["out"].name, ("as many channels as are attended to", inside == {self._channels[source]}))
        op = Attend(source, len(self._channels), **{"sees": self.attention_sees} | layers)
        return self._add(op, self._channels[source])

    def rearrange(self, source: int, by: Arrangement, name: str, **around: Any) -> int:
        """Add a :class:`.Rearrange`; ``around`` are its residual, how that is arranged, and what leaves it."""
        channels, residual = self._channels[source], around.get("residual")
        out = by.channels(channels)
        if residual is not None:
            around["residual_channels"] = self._channels[residual]
            added = around.get("residual_by", IN_PLACE).channels(self._channels[residual])
            is_joined = around.get("joins", False)
            check(name, ("as many channels as are added to it", added == out or is_joined))
            out += added if is_joined else 0
        return self._add(Rearrange(source, len(self._channels), channels, by, name=name, **around), out)

    def conv_weights(self, conv: Any, groups: int = 1) -> Weights:
        name = self.name(conv)
        check(
            name,
            ("a Conv2d", kind(conv) == "Conv2d"),
            ("padding with zeros", conv.padding_mode == "zeros" and not isinstance(conv.padding, str)),
            ("no dilation", set(conv.dilation) == {1}),
            ("one group" if groups == 1 else f"{groups} groups", conv.groups == groups),
            ("a square kernel and stride", len(set(conv.kernel_size)) == 1 and len(set(conv.stride)) == 1),
            (
                "parameters of its shape",
                owns(conv, conv.out_channels, conv.in_channels // groups, *conv.kernel_size),
            ),
        )
        return Weights(name, conv.in_channels, conv.out_channels, conv.kernel_size[0], groups=groups)

    def conv3d_weights(
        self, conv: Any, outside: tuple[str, ...] = ("zeros",), known: str = "Conv3d", *, is_odd: bool = True
    ) -> Weights:
        """Return the weights of a convolution over frames of this class, which pads in one of these ways."""
        name, (frames, *sides) = self.name(conv), conv.kernel_size
        check(
            name,
            (f"a {known}", kind(conv) == known),
            (
                f"padding with {' or '.join(outside)}",
                conv.padding_mode in outside and not isinstance(conv.padding, str),
            ),
            ("one group, no dilation", conv.groups == 1 and set(conv.dilation) == {1}),
            ("a square kernel", len(set(sides)) == 1),
            ("an odd side", sides[0] % 2 == 1 or not is_odd),
            ("parameters of its shape", owns(conv, conv.out_channels, conv.in_channels, *conv.kernel_size)),
        )
        return Weights(name, frames * conv.in_channels, conv.out_channels, sides[0], usual_taps(frames))

    def shortcut_weights(self, conv: Any) -> Weights:
        weights = self.conv_weights(conv)
        geometry = weights.kernel, set(conv.stride), set(conv.padding)
        check(weights.name, ("a 1×1 shortcut without stride and padding", geometry == (1, {1}, {0})))
        return weights

    def linear_weights(self, layer: Any) -> Weights:
        name = self.name(layer)
        check(
            name,
            ("a Linear", kind(layer) == "Linear"),
            ("parameters of its shape", owns(layer, layer.out_features, layer.in_features)),
        )
        return Weights(name, layer.in_features, layer.out_features)

    def norm(self, norm: Any, source: int, maps: Maps | None = None) -> Norm:
        name = self.name(norm)
        check(
            name,
            ("a GroupNorm with weight and bias", kind(norm) == "GroupNorm" and norm.affine),
            ("parameters of its shape", norm.bias is not None and owns(norm, self._channels[source])),
            ("groups of the same size", self._channels[source] % norm.num_groups == 0),
        )
        return Norm(name, norm.num_groups, norm.eps, over=self.norms_are_over, maps=maps)

    def block(self, block: Any, source: int) -> int:
        function = self._blocks.get(kind(block))
        if function is None:
            raise CannotLower(
                f"cannot lower {self.name(block)}", saw=kind(block), expected=", ".join(sorted(self._blocks))
            )
        self._open.append(source)
        target = function(self, block, source)
        self._open.pop()
        return target

    def channels(self, value: int) -> int:
        return self._channels[value]

    def name(self, module: Any) -> str:
        return str(self._names.get(module, type(module).__name__))

    def leave(self, value: int, function: str) -> None:
        """Apply a function to the last value, as part of the op that computes it."""
        made = self._ops[-1]
        if made.target != value or isinstance(made, Attend) or made.leaving is not None:
            raise CannotLower(f"cannot lower {function}", expected="a convolution before it")
        self._ops[-1] = replace(made, leaving=function)

    def program(self, task: Task, *, is_film: bool = False) -> Program:
        values = tuple(self._channels), tuple(self._ops), tuple(self._held)
        is_of_pictures = not is_film and any(map(needs_film, self._ops))
        return Program(
            task,
            self._module,
            *values,
            is_film=is_film or is_of_pictures,
            is_at_once=self.is_at_once,
            has_frames_in_batch=self.has_frames_in_batch,
            is_by_frame=self.is_by_frame,
            padded_copies=self.padded_copies,
            is_of_pictures=is_of_pictures,
            segment=self.segment,
            first_segment=self.first_segment,
            tiles=self.tiles,
        )

    def _add(self, op: Op, channels: int) -> int:
        self._channels.append(channels)
        self._ops.append(op)
        self._held.append(frozenset(self._open))
        return op.target


def owns(layer: Any, *shape: int) -> bool:
    """Return whether a layer's weight is a parameter of this shape, and its bias, if any, has matching length."""
    weight, bias = (layer._parameters.get(name) for name in ("weight", "bias"))
    if weight is not layer.weight or bias is not layer.bias:
        return False  # buffers and attributes are not checked when a call begins
    return bool(weight.shape == shape and (bias is None or bias.shape == shape[:1]))


def check(name: str, *facts: tuple[str, bool]) -> None:
    """Raise :class:`CannotLower` for the first (expectation, whether it holds) that does not hold."""
    for expected, holds in facts:
        if not holds:
            raise CannotLower(f"cannot lower {name}", expected=expected)


#: Activations by the name of their class.
ACTIVATIONS = {"SiLU": "silu", "ReLU": "relu", "GELU": "gelu", "Mish": "mish"}


def pointwise_of(module: Any) -> str:
    """Return the name of an activation; see :data:`.ops.POINTWISE`."""
    found = kind(module)
    known = found in ACTIVATIONS and not (found == "GELU" and module.approximate != "none")
    check(found, (f"one of {', '.join(ACTIVATIONS)}", known))
    return ACTIVATIONS[found]


def drops_nothing(dropout: Any) -> bool:
    return kind(dropout) == "Dropout" and dropout.p == 0
