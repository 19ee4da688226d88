"""Lower AutoencoderKLKVAE: pictures, whose decoder's norms are followed by factors and shifts made of the latents.

Convolutions see the nearest row or column outside of a value, or reflect it.
Sizes change by a convolution to which its input is added, its pixels repeated or averaged.
"""

from __future__ import annotations

from typing import Any

from .builder import Lower, ProgramBuilder, check, owns
from .layers import Maps, Norm, Weights
from .module_structure import kind
from .ops import Outside, Padding
from .rearranging import IN_PLACE, Arrangement
from .style import Style

#: The class of VAE.
NAME = "AutoencoderKLKVAE"

_OUTSIDE: dict[str, Outside] = {"zeros": "zeros", "replicate": "nearest", "reflect": "reflected"}

_REPEATED, _AVERAGED = Arrangement(True, 1, 2, 2, repeats=4), Arrangement(False, 1, 2, 2, mean=4)


def decoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``decode``."""
    part = vae.decoder
    check(builder.name(part), ("diffusers' decoder", kind(part) == "KVAEDecoder2D" and not part.give_pre_end))
    builder.is_at_once = True
    x = _conv(builder, builder.input(part.conv_in.in_channels), part.conv_in)
    x = _through(builder, (part.mid.block_1, part.mid.block_2), x)
    for level in reversed(part.up):
        check(builder.name(level), ("no attention", len(level.attn) == 0))
        x = _through(builder, (*level.block, *([level.upsample] if hasattr(level, "upsample") else [])), x)
    _STYLE.norm_act_conv(builder, x, part.norm_out, part.nonlinearity, part.conv_out)


def encoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``encode``."""
    part = vae.encoder
    check(builder.name(part), ("diffusers' encoder", kind(part) == "KVAEEncoder2D"))
    builder.is_at_once = True
    x = _conv(builder, builder.input(part.conv_in.in_channels), part.conv_in)
    for level in part.down:
        check(builder.name(level), ("no attention", len(level.attn) == 0))
        x = _through(builder, (*level.block, *([level.downsample] if hasattr(level, "downsample") else [])), x)
    x = _through(builder, (part.mid.block_1, part.mid.block_2), x)
    _STYLE.norm_act_conv(builder, x, part.norm_out, part.nonlinearity, part.conv_out)


def _through(builder: ProgramBuilder, blocks: tuple[Any, ...], x: int) -> int:
    for block in blocks:
        x = builder.block(block, x)
    return x


def _conv(builder: ProgramBuilder, x: int, conv: Any, *, doubled: bool = False, **around: Any) -> int:
    name, side = builder.name(conv), conv.kernel_size[0] // 2
    check(
        name,
        ("a Conv2d", kind(conv) == "Conv2d"),
        ("a known padding", conv.padding_mode in _OUTSIDE and set(conv.padding) == {side}),
        ("one group, no dilation", conv.groups == 1 and set(conv.dilation) == {1}),
        ("a square kernel with an odd side", len(set(conv.kernel_size)) == 1 and conv.kernel_size[0] % 2 == 1),
        (
            "stride 1, or 2 with a 3×3 kernel",
            conv.stride in ((1, 1), (2, 2)) and (conv.stride[0] == 1 or side == 1),
        ),
        ("parameters of its shape", owns(conv, conv.out_channels, conv.in_channels, *conv.kernel_size)),
    )
    outside = _OUTSIDE[conv.padding_mode]
    if doubled and outside == "reflected":
        outside = "nearest"  # the row after the outermost is a copy of it
    weights = Weights(name, conv.in_channels, conv.out_channels, conv.kernel_size[0])
    padding = Padding(side, side, side, side, outside)
    return builder.convolve_with(x, weights, conv.stride[0], padding, doubled=doubled, **around)


def _norm(builder: ProgramBuilder, norm: Any, x: int) -> Norm:
    if kind(norm) != "KVAEDecoderSpatialNorm2D":
        return builder.norm(norm, x)
    name = builder.name(norm)
    scale, shift = builder.shortcut_weights(norm.conv_y), builder.shortcut_weights(norm.conv_b)
    shapes = {(layer.in_channels, layer.out_channels) for layer in (scale, shift)}
    check(
        name,
        ("latents as they are", not norm.add_conv),
        ("channels of the latents and of the value", shapes == {(builder.channels(0), builder.channels(x))}),
    )
    return builder.norm(norm.norm_layer, x, Maps(scale, shift))


_STYLE = Style(_conv, _norm)


def _resnet(builder: ProgramBuilder, block: Any, x: int) -> int:
    check(
        builder.name(block),
        ("no time embedding", not hasattr(block, "temb_proj")),
        ("a 1×1 shortcut", not block.use_conv_shortcut),
    )
    is_same = block.in_channels == block.out_channels
    return _STYLE.resnet(builder, block, x, None if is_same else builder.shortcut_weights(block.nin_shortcut))


def _upsample(builder: ProgramBuilder, block: Any, x: int) -> int:
    check(builder.name(block), ("×2", block.factor == block.shuffle.upscale_factor == 2))
    made = _conv(builder, x, block.spatial_conv, doubled=True)
    made = builder.rearrange(made, IN_PLACE, builder.name(block), residual=x, residual_by=_REPEATED)
    return _conv(builder, made, block.linear)


def _downsample(builder: ProgramBuilder, block: Any, x: int) -> int:
    check(builder.name(block), ("÷2", block.factor == block.unshuffle.downscale_factor == 2))
    check(builder.name(block.spatial_conv), ("stride 2", set(block.spatial_conv.stride) == {2}))
    made = _conv(builder, x, block.spatial_conv)
    made = builder.rearrange(made, IN_PLACE, builder.name(block), residual=x, residual_by=_AVERAGED)
    return _conv(builder, made, block.linear)


#: What lowers each block, by the name of its class.
BLOCKS: dict[str, Lower] = {
    "KVAEResnetBlock2D": _resnet,
    "KVAEPXSUpsample": _upsample,
    "KVAEPXSDownsample": _downsample,
}
