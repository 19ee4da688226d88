"""Lower AutoencoderKLKVAEVideo: causal convolutions, and norms whose statistics are those of the class's chunks.

A decoder makes 16 frames at a time, and in the first chunk 17; an encoder takes as many.
That is part of the model: it was trained so.
What is left over is a shorter chunk at the end.  Of one latent frame in it the class makes one frame, not four.

The decoder's norms are followed by factors and shifts for every position, made of the latents.
Sizes change by a convolution to which its input is added, repeated or averaged: first in time, then in space, and
in encoders the other way round.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .builder import Lower, ProgramBuilder, check
from .layers import Maps, Norm, Segments, Weights
from .module_structure import kind
from .ops import InTime, Padding
from .rearranging import IN_PLACE, Arrangement
from .style import pointwise

#: The class of VAE.
NAME = "AutoencoderKLKVAEVideo"

_CONV, _CAUSAL = "KVAESafeConv3d", "KVAECachedCausalConv3d"

#: Frames of pixels of the first chunk, and of every other.
_FIRST, _OTHERS = 17, 16

_REPEATED, _AVERAGED = Arrangement(True, 1, 2, 2, repeats=4), Arrangement(False, 1, 2, 2, mean=4)

#: Time halved.
_AVERAGED_IN_TIME = Arrangement(False, 2, mean=2, first="alone")


def decoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``decode``."""
    part = vae.decoder
    check(builder.name(part), ("diffusers' decoder", kind(part) == "KVAECachedDecoder3D"))
    times = _times(vae)
    builder.norms_are_over = "segment"
    builder.segment, builder.first_segment = _OTHERS // times, -(-_FIRST // times)
    x = _causal(builder, builder.input(part.conv_in.conv.in_channels), part.conv_in)
    for block in (part.mid.block_1, part.mid.block_2):
        x = builder.block(block, x)
    made = 1  # frames for each latent frame
    for level in reversed(part.up):
        check(builder.name(level), ("no attention", len(level.attn) == 0))
        for block in level.block:
            x = builder.block(block, x)
        if hasattr(level, "upsample"):
            segments = Segments(_OTHERS * made // times + 1, _OTHERS * made // times)
            x = _upsample(builder, level.upsample, x, segments)
            made *= 2 if level.upsample.temporal_compress else 1
    check(NAME, ("its own frames in time", made == times))
    _last(builder, part, x)


def encoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``encode``."""
    part = vae.encoder
    check(builder.name(part), ("diffusers' encoder", kind(part) == "KVAECachedEncoder3D"))
    builder.norms_are_over, builder.segment, builder.first_segment = "segment", _OTHERS, _FIRST
    x = _causal(builder, builder.input(part.conv_in.conv.in_channels), part.conv_in)
    made = 1  # frames of pixels for each frame
    for level in part.down:
        check(builder.name(level), ("no attention", len(level.attn) == 0))
        for block in level.block:
            x = builder.block(block, x)
        if hasattr(level, "downsample"):
            x = _downsample(builder, level.downsample, x)
            made *= 2 if level.downsample.temporal_compress else 1
    check(NAME, ("its own frames in time", made == _times(vae)))
    for block in (part.mid.block_1, part.mid.block_2):
        x = builder.block(block, x)
    _last(builder, part, x, zeros=part.conv_out.conv.out_channels // 2)


def _times(vae: Any) -> int:
    times = int(vae.config.temporal_compress_times)
    check(NAME, ("chunks of whole latent frames", times > 0 and _OTHERS % times == 0))
    return times


def _last(builder: ProgramBuilder, part: Any, x: int, zeros: int = 0) -> int:
    """Add the last convolution; an encoder's logarithms of the variance are ``zeros``."""
    around = {"norm": _norm(builder, part.norm_out, x), "entering": "silu"}
    return _causal(builder, x, part.conv_out, zeros=zeros, **around)


def _causal(builder: ProgramBuilder, x: int, conv: Any, *, zeros: int = 0, **around: Any) -> int:
    """Add a convolution over three frames, with stride 1 or 2 in time."""
    weights = replace(builder.conv3d_weights(conv.conv, known=_CONV), zeros=zeros)
    frames, side, _ = conv.conv.kernel_size
    pad, stride, strides = side // 2, conv.stride[0], conv.conv.stride
    check(
        weights.name,
        ("a causal convolution", kind(conv) == _CAUSAL),
        ("three frames", frames == 3),
        ("stride 1, or 2 in time", strides in ((1, 1, 1), (2, 1, 1)) and strides[0] == stride),
        ("padding of its class", set(conv.conv.padding) == {0} and (conv.height_pad, conv.width_pad) == (pad, pad)),
        ("and of 2 frames before", conv.time_pad == 2),
    )
    padding, in_time = Padding(pad, pad, pad, pad, "nearest"), InTime(3, stride, outside="nearest")
    return builder.convolve_with(x, weights, 1, padding, in_time=in_time, **around)


def _in_space(builder: ProgramBuilder, x: int, conv: Any, stride: int, **around: Any) -> int:
    """Add a convolution within each frame, which reflects rows and columns."""
    weights = builder.conv3d_weights(conv, ("reflect",), _CONV)
    geometry = conv.kernel_size, conv.padding, conv.stride
    check(weights.name, ("a 1×3×3 convolution", geometry == ((1, 3, 3), (0, 1, 1), (1, stride, stride))))
    # After ×2 the row after the outermost is a copy of it.
    outside = Padding(1, 1, 1, 1, "nearest" if around.get("doubled") else "reflected")
    return builder.convolve_with(x, weights, stride, outside, **around)


def _norm(builder: ProgramBuilder, norm: Any, x: int) -> Norm:
    if kind(norm) == "KVAECachedGroupNorm":
        return builder.norm(norm.norm_layer, x)
    name = builder.name(norm)
    check(name, ("a known norm", kind(norm) == "KVAECachedSpatialNorm3D" and not norm.add_conv))
    scale, shift = (pointwise(builder, layer, _CONV) for layer in (norm.conv_y, norm.conv_b))
    shapes = {(layer.in_channels, layer.out_channels) for layer in (scale, shift)}
    check(
        name,
        ("channels of the latents and of the value", shapes == {(builder.channels(0), builder.channels(x))}),
        ("a known norm within", kind(norm.norm_layer) == "KVAECachedGroupNorm"),
    )
    return builder.norm(norm.norm_layer.norm_layer, x, Maps(scale, shift, copies=3, is_input_kept=False))


def _resnet(builder: ProgramBuilder, block: Any, x: int) -> int:
    check(
        builder.name(block),
        ("no time embedding", not hasattr(block, "temb_proj")),
        ("a 1×1×1 shortcut", not block.use_conv_shortcut),
    )
    is_same = block.in_channels == block.out_channels
    shortcut: Weights | None = None if is_same else pointwise(builder, block.nin_shortcut, _CONV)
    made = _causal(builder, x, block.conv1, norm=_norm(builder, block.norm1, x), entering="silu")
    around: dict[str, Any] = {"entering": "silu", "residual": x, "shortcut": shortcut}
    return _causal(builder, made, block.conv2, norm=_norm(builder, block.norm2, made), **around)


def _upsample(builder: ProgramBuilder, block: Any, x: int, segments: Segments) -> int:
    name = builder.name(block)
    check(
        name,
        ("a known class", kind(block) == "KVAECachedPXSUpsample"),
        ("×2", block.factor == block.shuffle.upscale_factor == 2),
    )
    if block.temporal_compress:
        by = Arrangement(True, 2, repeats=2, first="alone", lone_last=segments)
        x = builder.rearrange(x, by, name)
        x = _causal(builder, x, block.temporal_conv, residual=x)
    made = _in_space(builder, x, block.spatial_conv, 1, doubled=True)
    made = builder.rearrange(made, IN_PLACE, name, residual=x, residual_by=_REPEATED)
    return builder.convolve_with(made, pointwise(builder, block.linear, _CONV), 1, Padding())


def _downsample(builder: ProgramBuilder, block: Any, x: int) -> int:
    name = builder.name(block)
    check(
        name,
        ("a known class", kind(block) == "KVAECachedPXSDownsample"),
        ("÷2", block.factor == block.unshuffle.downscale_factor == 2),
    )
    made = _in_space(builder, x, block.spatial_conv, 2)
    x = builder.rearrange(made, IN_PLACE, name, residual=x, residual_by=_AVERAGED)
    if block.temporal_compress:
        made = _causal(builder, x, block.temporal_conv)
        x = builder.rearrange(made, IN_PLACE, name, residual=x, residual_by=_AVERAGED_IN_TIME)
    return builder.convolve_with(x, pointwise(builder, block.linear), 1, Padding())


#: What lowers each block, by the name of its class.
BLOCKS: dict[str, Lower] = {"KVAECachedResnetBlock3D": _resnet}
