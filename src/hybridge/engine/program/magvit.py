"""Lower AutoencoderKLMagvit, EasyAnimate's: causal convolutions, and norms whose statistics are those of a frame.

Outside of a value, convolutions see zeros in space and frame 0 in place of earlier frames.
Frames but the first are repeated after a convolution, to double them.

Norms whose statistics are those of the class's own chunks of frames are not lowered.
"""

from __future__ import annotations

from typing import Any

from .builder import Lower, ProgramBuilder, check, drops_nothing
from .module_structure import kind
from .ops import InTime, Padding
from .rearranging import Arrangement
from .style import Style, pointwise

#: The class of VAE.
NAME = "AutoencoderKLMagvit"

_CONV = "EasyAnimateCausalConv3d"


def decoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``decode``."""
    part = vae.decoder
    check(builder.name(part), ("diffusers' decoder", kind(part) == "EasyAnimateDecoder"))
    builder.is_by_frame = True
    weights = pointwise(builder, vae.post_quant_conv)
    x = builder.convolve_with(builder.input(weights.in_channels), weights, 1, Padding())
    _check_norm(builder, part)
    _STYLE.decode(builder, part, _causal(builder, x, part.conv_in))


def encoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``encode``."""
    part = vae.encoder
    check(builder.name(part), ("diffusers' encoder", kind(part) == "EasyAnimateEncoder"))
    builder.is_by_frame = True
    x = _causal(builder, builder.input(part.conv_in.in_channels), part.conv_in)
    _check_norm(builder, part)
    _, made = _STYLE.encode(builder, part, x)
    builder.convolve_with(made, pointwise(builder, vae.quant_conv), 1, Padding())


def _causal(builder: ProgramBuilder, x: int, conv: Any, *, padding: int = 1, **around: Any) -> int:
    weights = builder.conv3d_weights(conv, known=_CONV)
    in_time, side, down = conv.stride
    check(
        weights.name,
        ("a 3×3×3 kernel", set(conv.kernel_size) == {3} and conv.temporal_padding == 2),
        ("strides of 1 or 2", side == down and {in_time, side} <= {1, 2} and conv.t_stride == in_time),
        (f"padding of {padding}", conv.padding == (0, padding, padding)),
    )
    sides = Padding(1, 1, 1, 1) if padding else Padding(bottom=1, right=1)
    rule = InTime(3, in_time, outside="nearest")
    return builder.convolve_with(x, weights, side, sides, in_time=rule, **around)


_STYLE = Style(_causal, ProgramBuilder.norm)


def _check_norm(builder: ProgramBuilder, owner: Any) -> None:
    check(builder.name(owner), ("norms with the statistics of each frame", owner.spatial_group_norm is True))


def _resnet(builder: ProgramBuilder, block: Any, x: int) -> int:
    check(
        builder.name(block),
        ("no dropout", drops_nothing(block.dropout)),
        ("no scale on the sum", block.output_scale_factor == 1),
    )
    _check_norm(builder, block)
    shortcut = None if kind(block.shortcut) == "Identity" else pointwise(builder, block.shortcut)
    return _STYLE.resnet(builder, block, x, shortcut)


def _resnets_then(builder: ProgramBuilder, block: Any, x: int) -> int:
    last = getattr(block, "upsampler", None) or getattr(block, "downsampler", None)
    for part in (*block.convs, *([] if last is None else [last])):
        x = builder.block(part, x)
    return x


def _upsample(builder: ProgramBuilder, block: Any, x: int) -> int:
    check(builder.name(block), ("stride 1", set(block.conv.stride) == {1}))
    x = _causal(builder, x, block.conv, doubled=True)
    if not block.temporal_upsample:
        return x
    check(builder.name(block), ("repeated frames", block.spatial_group_norm is True))
    return builder.rearrange(x, Arrangement(True, 2, repeats=2), builder.name(block))


def _downsample(builder: ProgramBuilder, block: Any, x: int) -> int:
    return _causal(builder, x, block.conv, padding=0)


#: What lowers each block, by the name of its class.
BLOCKS: dict[str, Lower] = {
    "EasyAnimateMidBlock3d": _resnets_then,
    "EasyAnimateUpBlock3d": _resnets_then,
    "EasyAnimateDownBlock3D": _resnets_then,
    "EasyAnimateResidualBlock3D": _resnet,
    "EasyAnimateUpsampler3D": _upsample,
    "EasyAnimateDownsampler3D": _downsample,
}
