"""Lower AutoencoderKLHunyuanVideo: causal convolutions, and norms whose statistics are those of the whole film.

Outside of a value, convolutions see its nearest frame, row or column.
Attention is over all positions of a frame and of the frames before it.

The class's own call blends tiles of five latent frames unless ``use_framewise_decoding`` and ``…encoding`` are off.
The program computes the untiled film.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .builder import Lower, ProgramBuilder, check, drops_nothing
from .layers import Taps, Weights
from .module_structure import kind
from .ops import InTime, Padding
from .style import Style, pointwise

#: The class of VAE.
NAME = "AutoencoderKLHunyuanVideo"

#: Of a kernel of three frames, where every frame but the first was doubled before: the two target frames of a pair
#: see source frames k - 1, k - 1, k and k - 1, k, k.
_DOUBLED_TAPS: Taps = (((0, 1), (2,)), ((0,), (1, 2)))


def decoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``decode``."""
    part = vae.decoder
    check(builder.name(part), ("diffusers' decoder", kind(part) == "HunyuanVideoDecoder3D"))
    _set_rules(builder)
    first = pointwise(builder, vae.post_quant_conv)
    x = builder.convolve_with(builder.input(first.in_channels), first, 1, Padding())
    _STYLE.decode(builder, part, _causal(builder, x, part.conv_in))


def encoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``encode``."""
    part = vae.encoder
    check(builder.name(part), ("diffusers' encoder", kind(part) == "HunyuanVideoEncoder3D"))
    _set_rules(builder)
    x = _causal(builder, builder.input(part.conv_in.conv.in_channels), part.conv_in)
    _, made = _STYLE.encode(builder, part, x)
    builder.convolve_with(made, pointwise(builder, vae.quant_conv), 1, Padding())


def _set_rules(builder: ProgramBuilder) -> None:
    builder.norms_are_over, builder.attention_sees, builder.is_at_once = "film", "frames before", True


def _causal(builder: ProgramBuilder, x: int, conv: Any, **around: Any) -> int:
    """Add a causal convolution over three frames."""
    weights = _causal_weights(builder, conv)
    in_time, side, down = conv.conv.stride
    check(weights.name, ("strides of 1 or 2", side == down and {in_time, side} <= {1, 2}))
    rule = InTime(3, in_time, outside="nearest")
    return builder.convolve_with(x, weights, side, Padding(1, 1, 1, 1, "nearest"), in_time=rule, **around)


def _causal_weights(builder: ProgramBuilder, conv: Any) -> Weights:
    weights = builder.conv3d_weights(conv.conv)
    check(
        weights.name,
        ("a causal convolution", kind(conv) == "HunyuanVideoCausalConv3d"),
        ("a 3×3×3 kernel", set(conv.conv.kernel_size) == {3}),
        ("the nearest frame, row or column outside", conv.pad_mode == "replicate"),
        ("padding of 1 in space and of 2 frames before", conv.time_causal_padding == (1, 1, 1, 1, 2, 0)),
        ("no padding of its own", set(conv.conv.padding) == {0}),
    )
    return weights


_STYLE = Style(_causal, ProgramBuilder.norm)


def _resnet(builder: ProgramBuilder, block: Any, x: int) -> int:
    check(builder.name(block), ("no dropout", drops_nothing(block.dropout)))
    shortcut = None
    if block.conv_shortcut is not None:
        shortcut = pointwise(builder, block.conv_shortcut.conv)
        check(shortcut.name, ("no padding", set(block.conv_shortcut.time_causal_padding) == {0}))
    return _STYLE.resnet(builder, block, x, shortcut)


def _upsample(builder: ProgramBuilder, block: Any, x: int) -> int:
    weights = _causal_weights(builder, block.conv)
    in_time, *in_space = block.upsample_factor
    known = set(in_space) == {2} and in_time in (1, 2) and set(block.conv.conv.stride) == {1}
    check(weights.name, ("×2 in space, and in time or not", known))
    padding, rule = Padding(1, 1, 1, 1, "nearest"), InTime(3, outside="nearest")
    if in_time == 2:
        channels = weights.in_channels // 3
        weights = replace(
            weights, in_channels=2 * channels, out_channels=2 * weights.out_channels, taps=_DOUBLED_TAPS
        )
        rule = InTime(2, spread=2, outside="nearest")
    return builder.convolve_with(x, weights, 1, padding, doubled=True, in_time=rule)


def _downsample(builder: ProgramBuilder, block: Any, x: int) -> int:
    return _causal(builder, x, block.conv)


#: What lowers each block, by the name of its class.
BLOCKS: dict[str, Lower] = {
    "HunyuanVideoResnetBlockCausal3D": _resnet,
    "HunyuanVideoUpsampleCausal3D": _upsample,
    "HunyuanVideoDownsampleCausal3D": _downsample,
}
