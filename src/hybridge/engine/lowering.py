"""From diffusers' modules to programs, block type by block type.

Every block type has one function, registered under the name of its class; a new VAE is a few more of them.  A
function refuses whatever it does not know for certain (an option that the VAEs here never set, a replaced attention
processor, a layer that an adapter wrapped) by raising :class:`CannotLower`, and the module is then run as it is.
Names are compared exactly, because a subclass may have another ``forward``.

Nothing here reads a weight, so modules on the ``meta`` device are lowered like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import CannotLower
from .ops import Attend, Convolve, Norm, Op, Padding, Weights
from .program import Program, Task

Lower = Callable[["_Builder", Any, int], int]


def lower(module: nn.Module, task: Task) -> Program:
    """The program of a VAE's decoder, latents (C, h, w) → picture, or encoder, picture → moments or latents.

    Both as ``module.decode`` and ``module.encode`` compute them, quant convolutions included, slicing and tiling
    left aside.

    Raises:
        CannotLower: and says because of what.
    """
    whole = _WHOLE.get((type(module).__name__, task))
    if whole is None:
        known = ", ".join(sorted({name for name, _ in _WHOLE}))
        raise CannotLower("cannot lower", saw=type(module).__name__, expected=f"one of {known}")
    builder = _Builder(module)
    whole(builder, module)
    return builder.program(task)


def skeleton(class_name: str, config: Mapping[str, Any]) -> nn.Module:
    """A module of this diffusers class and ``config.json``, on the ``meta`` device: a shape without weights."""
    import diffusers

    with torch.device("meta"):
        module: nn.Module = getattr(diffusers, class_name).from_config(dict(config)).eval()
    return module


class _Builder:
    """Collects ops; knows what every submodule is called."""

    def __init__(self, module: nn.Module) -> None:
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
        weights = self.conv_weights(conv)
        top_left = {"top": conv.padding[0], "bottom": conv.padding[0]}
        padding = around.pop("padding", Padding(**top_left, left=conv.padding[1], right=conv.padding[1]))
        op = Convolve(source, len(self._channels), weights, conv.stride[0], padding, **around)
        if weights.in_channels != self._channels[source]:
            raise CannotLower(
                f"cannot lower {weights.name}",
                saw=f"{self._channels[source]} channels",
                expected=weights.in_channels,
            )
        return self._add(op, weights.out_channels)

    def attend(self, source: int, **layers: Any) -> int:
        return self._add(Attend(source, len(self._channels), **layers), self._channels[source])

    def conv_weights(self, conv: Any) -> Weights:
        name = self.name(conv)
        check(
            name,
            ("a Conv2d", type(conv).__name__ == "Conv2d"),
            ("padding with zeros", conv.padding_mode == "zeros" and not isinstance(conv.padding, str)),
            ("one group, no dilation", conv.groups == 1 and set(conv.dilation) == {1}),
            ("a square kernel and stride", len(set(conv.kernel_size)) == 1 and len(set(conv.stride)) == 1),
        )
        return Weights(name, conv.in_channels, conv.out_channels, conv.kernel_size[0])

    def linear_weights(self, layer: Any) -> Weights:
        name = self.name(layer)
        check(name, ("a Linear", type(layer).__name__ == "Linear"))
        return Weights(name, layer.in_features, layer.out_features)

    def norm(self, norm: Any) -> Norm:
        name = self.name(norm)
        check(name, ("a GroupNorm with weight and bias", type(norm).__name__ == "GroupNorm" and norm.affine))
        return Norm(name, norm.num_groups, norm.eps)

    def block(self, block: Any, source: int) -> int:
        function = _BLOCKS.get(type(block).__name__)
        if function is None:
            raise CannotLower(
                f"cannot lower {self.name(block)}", saw=type(block).__name__, expected=", ".join(sorted(_BLOCKS))
            )
        self._open.append(source)
        target = function(self, block, source)
        self._open.pop()
        return target

    def name(self, module: Any) -> str:
        return str(self._names.get(module, type(module).__name__))

    def leave(self, value: int, function: str) -> None:
        """Applies a function to the value just made, within the op that makes it."""
        made = self._ops[-1]
        if made.target != value or not isinstance(made, Convolve) or made.leaving is not None:
            raise CannotLower(f"cannot lower {function}", expected="a convolution before it")
        around = {field: getattr(made, field) for field in Convolve.__slots__}
        self._ops[-1] = Convolve(**(around | {"leaving": function}))

    def program(self, task: Task) -> Program:
        return Program(task, self._module, tuple(self._channels), tuple(self._ops), tuple(self._held))

    def _add(self, op: Op, channels: int) -> int:
        self._channels.append(channels)
        self._ops.append(op)
        self._held.append(frozenset(self._open))
        return op.target


def check(name: str, *facts: tuple[str, bool]) -> None:
    """Raises :class:`CannotLower` for the first (expectation, whether it holds) that does not hold."""
    for expected, holds in facts:
        if not holds:
            raise CannotLower(f"cannot lower {name}", expected=expected)


# --- AutoencoderKL and AutoencoderKLFlux2: diffusers.models.autoencoders.vae.Encoder and Decoder ------------------


def _kl_decoder(builder: _Builder, vae: Any) -> None:
    decoder = vae.decoder
    check("decoder", ("diffusers' Decoder", type(decoder).__name__ == "Decoder"))
    x = builder.input((decoder.conv_in if vae.post_quant_conv is None else vae.post_quant_conv).in_channels)
    if vae.post_quant_conv is not None:
        x = builder.convolve(x, vae.post_quant_conv)
    x = builder.convolve(x, decoder.conv_in)
    for block in (decoder.mid_block, *decoder.up_blocks):
        x = builder.block(block, x)
    _norm_act_conv(builder, x, decoder.conv_norm_out, decoder.conv_act, decoder.conv_out)


def _kl_encoder(builder: _Builder, vae: Any) -> None:
    encoder = vae.encoder
    check("encoder", ("diffusers' Encoder", type(encoder).__name__ == "Encoder"))
    x = builder.convolve(builder.input(encoder.conv_in.in_channels), encoder.conv_in)
    for block in (*encoder.down_blocks, encoder.mid_block):
        x = builder.block(block, x)
    x = _norm_act_conv(builder, x, encoder.conv_norm_out, encoder.conv_act, encoder.conv_out)
    if vae.quant_conv is not None:
        builder.convolve(x, vae.quant_conv)


def _norm_act_conv(builder: _Builder, x: int, norm: Any, activation: Any, conv: Any, **around: Any) -> int:
    return builder.convolve(x, conv, norm=builder.norm(norm), entering=_pointwise(activation), **around)


def _blocks_then_resamplers(builder: _Builder, block: Any, x: int) -> int:
    resamplers = getattr(block, "upsamplers", None) or getattr(block, "downsamplers", None) or ()
    for part in (*block.resnets, *resamplers):
        x = builder.block(part, x)
    return x


def _mid_block(builder: _Builder, block: Any, x: int) -> int:
    x = builder.block(block.resnets[0], x)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            x = builder.block(attention, x)
        x = builder.block(resnet, x)
    return x


def _resnet(builder: _Builder, block: Any, x: int) -> int:
    check(
        builder.name(block),
        ("no time embedding", block.time_emb_proj is None and block.time_embedding_norm != "scale_shift"),
        ("no resampling inside", block.upsample is None and block.downsample is None),
        ("no dropout", block.dropout.p == 0),
        ("no scale on the sum", block.output_scale_factor == 1),
    )
    hidden = _norm_act_conv(builder, x, block.norm1, block.nonlinearity, block.conv1)
    shortcut = None if block.conv_shortcut is None else builder.conv_weights(block.conv_shortcut)
    check(builder.name(block), ("a 1×1 shortcut", shortcut is None or shortcut.kernel == 1))
    return _norm_act_conv(
        builder, hidden, block.norm2, block.nonlinearity, block.conv2, residual=x, shortcut=shortcut
    )


def _upsample(builder: _Builder, block: Any, x: int) -> int:
    check(
        builder.name(block),
        ("nearest ×2, then a convolution", block.use_conv and block.interpolate and not block.use_conv_transpose),
        ("no norm", block.norm is None),
    )
    return _doubled(builder, x, block.conv if block.name == "conv" else block.Conv2d_0)


def _doubled(builder: _Builder, x: int, conv: Any) -> int:
    check(
        builder.name(conv),
        (
            "a 3×3 convolution with padding 1 and stride 1 after ×2",
            (set(conv.kernel_size), set(conv.padding), set(conv.stride)) == ({3}, {1}, {1}),
        ),
    )
    return builder.convolve(x, conv, doubled=True)


def _downsample(builder: _Builder, block: Any, x: int) -> int:
    check(builder.name(block), ("a convolution", block.use_conv), ("no norm", block.norm is None))
    if block.padding == 0:  # diffusers then pads one row below and one column to the right
        return builder.convolve(x, block.conv, padding=Padding(bottom=1, right=1))
    return builder.convolve(x, block.conv)


#: Processors that compute softmax(q·kᵀ/√d)·v and nothing else.
_PLAIN_PROCESSORS = {"AttnProcessor", "AttnProcessor2_0", "XFormersAttnProcessor"}


def _attention(builder: _Builder, block: Any, x: int) -> int:
    processor = type(block.processor).__name__
    check(
        builder.name(block),
        (f"a plain attention processor, not {processor}", processor in _PLAIN_PROCESSORS),
        ("a group norm and no other", block.group_norm is not None and block.spatial_norm is None),
        ("no norm on queries and keys", block.norm_q is None and block.norm_k is None),
        ("no cross attention", not block.is_cross_attention and block.added_kv_proj_dim is None),
        ("its input added, unscaled", block.residual_connection and block.rescale_output_factor == 1),
        ("no dropout", block.to_out[1].p == 0),
    )
    return builder.attend(
        x,
        norm=builder.norm(block.group_norm),
        heads=block.heads,
        query=builder.linear_weights(block.to_q),
        key=builder.linear_weights(block.to_k),
        value=builder.linear_weights(block.to_v),
        out=builder.linear_weights(block.to_out[0]),
    )


# --- AutoencoderTiny: a sequence of convolutions, activations, ×2 and small residual blocks -----------------------


def _tiny_decoder(builder: _Builder, vae: Any) -> None:
    decoder = vae.decoder
    check("decoder", ("diffusers' DecoderTiny", type(decoder).__name__ == "DecoderTiny"))
    first, *rest = decoder.layers
    x = builder.convolve(builder.input(first.in_channels), first, entering="soft_clamp")
    builder.leave(_sequence(builder, rest, x), "to_signed")


def _tiny_encoder(builder: _Builder, vae: Any) -> None:
    encoder = vae.encoder
    check("encoder", ("diffusers' EncoderTiny", type(encoder).__name__ == "EncoderTiny"))
    first, *rest = encoder.layers
    x = builder.convolve(builder.input(first.in_channels), first, entering="from_signed")
    _sequence(builder, rest, x)


def _sequence(builder: _Builder, layers: Iterable[Any], x: int) -> int:
    doubled = False
    for layer in layers:
        kind = type(layer).__name__
        if kind == "Upsample":
            is_double = layer.mode == "nearest" and layer.size is None and layer.scale_factor == 2
            check(builder.name(layer), ("nearest ×2", is_double))
            doubled = True
        elif kind == "Conv2d":
            x = _doubled(builder, x, layer) if doubled else builder.convolve(x, layer)
            doubled = False
        elif kind in _ACTIVATIONS:
            builder.leave(x, _pointwise(layer))
        else:
            x = builder.block(layer, x)
        check(builder.name(layer), ("a convolution after ×2", not doubled or kind == "Upsample"))
    return x


def _tiny_block(builder: _Builder, block: Any, x: int) -> int:
    shortcut = None if type(block.skip).__name__ == "Identity" else builder.conv_weights(block.skip)
    first, activation, second, activation_too, third = block.conv
    hidden = builder.convolve(x, first, leaving=_pointwise(activation))
    hidden = builder.convolve(hidden, second, leaving=_pointwise(activation_too))
    return builder.convolve(hidden, third, residual=x, shortcut=shortcut, leaving=_pointwise(block.fuse))


_ACTIVATIONS = {"SiLU": "silu", "ReLU": "relu", "GELU": "gelu", "Mish": "mish"}


def _pointwise(module: Any) -> str:
    kind = type(module).__name__
    known = kind in _ACTIVATIONS and not (kind == "GELU" and module.approximate != "none")
    check(kind, (f"one of {', '.join(_ACTIVATIONS)}", known))
    return _ACTIVATIONS[kind]


_WHOLE: dict[tuple[str, Task], Callable[[_Builder, Any], None]] = {
    ("AutoencoderKL", "decode"): _kl_decoder,
    ("AutoencoderKL", "encode"): _kl_encoder,
    ("AutoencoderKLFlux2", "decode"): _kl_decoder,
    ("AutoencoderKLFlux2", "encode"): _kl_encoder,
    ("AutoencoderTiny", "decode"): _tiny_decoder,
    ("AutoencoderTiny", "encode"): _tiny_encoder,
}

_BLOCKS: dict[str, Lower] = {
    "UNetMidBlock2D": _mid_block,
    "UpDecoderBlock2D": _blocks_then_resamplers,
    "DownEncoderBlock2D": _blocks_then_resamplers,
    "ResnetBlock2D": _resnet,
    "Attention": _attention,
    "Upsample2D": _upsample,
    "Downsample2D": _downsample,
    "AutoencoderTinyBlock": _tiny_block,
}
