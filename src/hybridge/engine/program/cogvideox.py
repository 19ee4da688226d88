"""Lower AutoencoderKLCogVideoX: causal convolutions, and norms whose statistics are those of the class's chunks.

A decoder takes two latent frames at a time, an encoder eight frames, and what is left over with the first of them.
That is part of the model: it was trained so.
Outside of a value, convolutions see zeros in space and frame 0 in place of earlier frames.

The decoder's norms are followed by a factor and a shift for every position, 1×1 convolutions of the latents.
Time is doubled by repeating frames before a convolution within each frame; here it is repeated after it.
Of an odd number of frames, the first is neither doubled nor averaged.
"""

from __future__ import annotations

from typing import Any

from .builder import Lower, ProgramBuilder, check, drops_nothing
from .layers import Maps, Norm
from .module_structure import kind
from .ops import InTime, Padding
from .rearranging import Arrangement
from .style import Style, pointwise

#: The class of VAE.
NAME = "AutoencoderKLCogVideoX"

_CONV, _CAUSAL = "CogVideoXSafeConv3d", "CogVideoXCausalConv3d"

#: Time doubled, and halved.
_REPEATED = Arrangement(True, 2, repeats=2, first="odd")
_AVERAGED = Arrangement(False, 2, mean=2, first="odd")


def decoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``decode``."""
    part = vae.decoder
    check(builder.name(part), ("diffusers' decoder", kind(part) == "CogVideoXDecoder3D"))
    check(builder.name(part), ("latents as they are", vae.post_quant_conv is None))
    _set_rules(builder, vae.num_latent_frames_batch_size, 2)
    x = builder.input(part.conv_in.conv.in_channels)
    _STYLE.decode(builder, part, causal(builder, x, part.conv_in))


def encoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``encode``."""
    part = vae.encoder
    check(builder.name(part), ("diffusers' encoder", kind(part) == "CogVideoXEncoder3D"))
    check(builder.name(part), ("moments as they are", vae.quant_conv is None))
    _set_rules(builder, vae.num_sample_frames_batch_size, 8)
    x = builder.input(part.conv_in.conv.in_channels)
    _STYLE.encode(builder, part, causal(builder, x, part.conv_in))


def _set_rules(builder: ProgramBuilder, frames: int, usual: int) -> None:
    check(NAME, (f"{usual} frames at a time", frames == usual))
    builder.norms_are_over, builder.segment = "segment", frames


def causal(builder: ProgramBuilder, x: int, conv: Any, **around: Any) -> int:
    """Add a causal convolution over three frames; Mochi's are of the same class, with the nearest rows outside."""
    weights = builder.conv3d_weights(conv.conv, known=_CONV)
    is_nearest = conv.pad_mode == "replicate"
    check(
        weights.name,
        ("a causal convolution", kind(conv) == _CAUSAL),
        ("a 3×3×3 kernel, stride 1", set(conv.conv.kernel_size) == {3} and set(conv.conv.stride) == {1}),
        ("padding of 1 in space", conv.conv.padding == ((0, 0, 0) if is_nearest else (0, 1, 1))),
        ("and of 2 frames before", conv.time_causal_padding == (1, 1, 1, 1, 2, 0)),
        ("a known padding", conv.pad_mode in ("first", "constant", "replicate")),
    )
    padding = Padding(1, 1, 1, 1, "nearest" if is_nearest else "zeros")
    return builder.convolve_with(x, weights, 1, padding, in_time=InTime(3, outside="nearest"), **around)


def _norm(builder: ProgramBuilder, norm: Any, x: int) -> Norm:
    if kind(norm) != "CogVideoXSpatialNorm3D":
        return builder.norm(norm, x)
    scale, shift = (pointwise(builder, layer.conv, _CONV) for layer in (norm.conv_y, norm.conv_b))
    maps = Maps(scale, shift)
    for layer in (maps.scale, maps.shift):
        shape = layer.in_channels, layer.out_channels
        check(
            layer.name,
            ("channels of the latents and of the value", shape == (builder.channels(0), builder.channels(x))),
        )
    return builder.norm(norm.norm_layer, x, maps)


_STYLE = Style(causal, _norm)


def _resnet(builder: ProgramBuilder, block: Any, x: int) -> int:
    check(
        builder.name(block),
        ("no dropout", drops_nothing(block.dropout)),
        ("no time embedding", not hasattr(block, "temb_proj")),
        ("a 1×1×1 shortcut", not block.use_conv_shortcut),
    )
    is_same = block.in_channels == block.out_channels
    shortcut = None if is_same else pointwise(builder, block.conv_shortcut, _CONV)
    return _STYLE.resnet(builder, block, x, shortcut)


def _resnets(builder: ProgramBuilder, block: Any, x: int) -> int:
    for resnet in block.resnets:
        x = builder.block(resnet, x)
    return x


def _up_block(builder: ProgramBuilder, block: Any, x: int) -> int:
    x = _resnets(builder, block, x)
    for part in block.upsamplers or ():
        check(builder.name(part), ("a known class", kind(part) == "CogVideoXUpsample3D"))
        conv = part.conv
        geometry = set(conv.kernel_size), set(conv.padding), set(conv.stride)
        check(
            builder.name(conv),
            ("a 3×3 convolution with padding 1 and stride 1 after ×2", geometry == ({3}, {1}, {1})),
        )
        x = builder.convolve(x, conv, doubled=True)
        if part.compress_time:
            x = builder.rearrange(x, _REPEATED, builder.name(part))
    return x


def _down_block(builder: ProgramBuilder, block: Any, x: int) -> int:
    x = _resnets(builder, block, x)
    for part in block.downsamplers or ():
        check(builder.name(part), ("a known class", kind(part) == "CogVideoXDownsample3D"))
        if part.compress_time:
            x = builder.rearrange(x, _AVERAGED, builder.name(part))
        check(builder.name(part.conv), ("stride 2", set(part.conv.stride) == {2}))
        x = builder.convolve(x, part.conv, padding=Padding(bottom=1, right=1))
    return x


#: What lowers each block, by the name of its class.
BLOCKS: dict[str, Lower] = {
    "CogVideoXMidBlock3D": _resnets,
    "CogVideoXUpBlock3D": _up_block,
    "CogVideoXDownBlock3D": _down_block,
    "CogVideoXResnetBlock3D": _resnet,
}
