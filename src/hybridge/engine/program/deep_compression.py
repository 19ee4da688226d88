"""Lower AutoencoderDC, Sana's: pictures, whose blocks normalise what convolutions give and not what they read.

Its attention is linear: sums over all positions take the place of pairs of positions.
Sizes change by a convolution, with strides, nearest ×2 or between channels and positions, to which its input is
added, its numbers repeated or averaged.

Batch norms, which some versions have, are not lowered.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .builder import Lower, ProgramBuilder, check, owns, pointwise_of
from .layers import Norm
from .module_structure import kind, why_replaced
from .ops import Padding
from .rearranging import IN_PLACE, Arrangement

#: The class of VAE.
NAME = "AutoencoderDC"

_UP, _DOWN = (Arrangement(goes_up, 1, 2, 2) for goes_up in (True, False))


def decoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``decode``."""
    part = vae.decoder
    check(builder.name(part), ("diffusers' decoder", kind(part) == "Decoder"))
    builder.is_at_once = True
    z = builder.input(part.conv_in.in_channels)
    x = builder.convolve(z, part.conv_in)
    if part.in_shortcut:
        repeated = replace(IN_PLACE, repeats=part.in_shortcut_repeats)
        x = builder.rearrange(x, IN_PLACE, builder.name(part.conv_in), residual=z, residual_by=repeated)
    for level in reversed(part.up_blocks):
        x = builder.block(level, x)
    around: dict[str, Any] = {"norm": _norm(builder, part.norm_out, x), "entering": pointwise_of(part.conv_act)}
    if kind(part.conv_out) == "Conv2d":
        builder.convolve(x, part.conv_out, **around)
    else:
        _upsample(builder, part.conv_out, x, **around)


def encoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``encode``."""
    part = vae.encoder
    check(builder.name(part), ("diffusers' encoder", kind(part) == "Encoder"))
    builder.is_at_once = True
    first = part.conv_in
    pixels = builder.input((first if kind(first) == "Conv2d" else first.conv).in_channels)
    x = builder.convolve(pixels, first) if kind(first) == "Conv2d" else builder.block(first, pixels)
    for level in part.down_blocks:
        x = builder.block(level, x)
    made = builder.convolve(x, part.conv_out)
    if part.out_shortcut:
        averaged = Arrangement(goes_up=False, mean=part.out_shortcut_average_group_size)
        builder.rearrange(made, IN_PLACE, builder.name(part.conv_out), residual=x, residual_by=averaged)


def _in_turn(builder: ProgramBuilder, blocks: Any, x: int) -> int:
    for block in blocks:
        x = builder.block(block, x)
    return x


def _norm(builder: ProgramBuilder, norm: Any, x: int | None = None, *, channels: int = 0) -> Norm:
    name = builder.name(norm)
    count = channels if x is None else builder.channels(x)
    check(
        name,
        ("an RMSNorm", kind(norm) == "RMSNorm"),
        ("parameters of its shape", norm.weight is not None and owns(norm, count)),
    )
    return Norm(name, 1, norm.eps, "mean square")


def _resnet(builder: ProgramBuilder, block: Any, x: int) -> int:
    check(builder.name(block), ("stride 1", set(block.conv1.stride) == set(block.conv2.stride) == {1}))
    hidden = builder.convolve(x, block.conv1, leaving=pointwise_of(block.nonlinearity))
    normed = _norm(builder, block.norm, channels=block.conv2.out_channels)
    return builder.convolve(hidden, block.conv2, normed=normed, residual=x)


def _attended(builder: ProgramBuilder, block: Any, x: int) -> int:
    return builder.block(block.conv_out, builder.block(block.attn, x))


def _attention(builder: ProgramBuilder, block: Any, x: int) -> int:
    name, layers = builder.name(block), (block.to_q, block.to_k, block.to_v)
    first, *others = (builder.linear_weights(layer) for layer in layers)
    inner = first.out_channels
    check(
        name,
        ("its own attention processor", kind(block.processor) == "SanaMultiscaleAttnProcessor2_0"),
        ("a processor as its class is", why_replaced(block.processor) is None),
        ("ReLU", kind(block.nonlinearity) == "ReLU"),
        ("its input added", block.residual_connection is True),
        ("an RMS norm", block.norm_type == "rms_norm"),
        ("queries, keys and values alike", {one.out_channels for one in others} == {inner}),
        ("no biases", all(layer.bias is None for layer in layers)),
        ("heads of the same size", inner % block.attention_head_dim == 0),
    )
    together = replace(first, out_channels=3 * inner, beside=tuple(one.name for one in others))
    seen = joined = builder.convolve_with(x, together, 1, Padding())
    for scale in block.to_qkv_multiscale:
        check(builder.name(scale), ("a known scale", kind(scale) == "SanaMultiscaleAttentionProjection"))
        near = builder.convolve(seen, scale.proj_in, groups=3 * inner)
        mixed = builder.convolve(near, scale.proj_out, groups=3 * inner // block.attention_head_dim)
        joined = builder.rearrange(joined, IN_PLACE, name, residual=mixed, joins=True)
    groups = builder.channels(joined) // (3 * block.attention_head_dim)
    norm = Norm(name, groups, block.eps, "attention")
    out = builder.linear_weights(block.to_out)
    normed = _norm(builder, block.norm_out, channels=out.out_channels)
    return builder.convolve_with(joined, out, 1, Padding(), norm=norm, normed=normed, residual=x)


def _gated(builder: ProgramBuilder, block: Any, x: int) -> int:
    check(
        builder.name(block),
        ("SiLU", kind(block.nonlinearity) == "SiLU"),
        ("its input added", block.residual_connection is True),
        ("an RMS norm", block.norm_type == "rms_norm"),
    )
    hidden = builder.convolve(x, block.conv_inverted, leaving="silu")
    hidden = builder.convolve(hidden, block.conv_depth, groups=builder.channels(hidden))
    normed = _norm(builder, block.norm, channels=block.conv_point.out_channels)
    return builder.convolve(hidden, block.conv_point, entering="gated", normed=normed, residual=x)


def _upsample(builder: ProgramBuilder, block: Any, x: int, **around: Any) -> int:
    conv, name = block.conv, builder.name(block)
    geometry = set(conv.kernel_size), set(conv.padding), set(conv.stride)
    check(
        name,
        ("×2", block.factor == 2),
        ("a 3×3 convolution with padding 1 and stride 1", geometry == ({3}, {1}, {1})),
        ("nearest ×2", block.interpolation_mode == "nearest"),
    )
    made = builder.convolve(x, conv, doubled=bool(block.interpolate), **around)
    added = {"residual": x, "residual_by": replace(_UP, repeats=block.repeats)} if block.shortcut else {}
    if block.interpolate and not added:
        return made
    return builder.rearrange(made, IN_PLACE if block.interpolate else _UP, name, **added)


def _downsample(builder: ProgramBuilder, block: Any, x: int) -> int:
    conv, name = block.conv, builder.name(block)
    check(name, ("÷2", block.factor == 2), ("its own stride", set(conv.stride) == {1 if block.downsample else 2}))
    made = builder.convolve(x, conv)
    added = {"residual": x, "residual_by": replace(_DOWN, mean=block.group_size)} if block.shortcut else {}
    if not block.downsample and not added:
        return made
    return builder.rearrange(made, _DOWN if block.downsample else IN_PLACE, name, **added)


#: What lowers each block, by the name of its class.
BLOCKS: dict[str, Lower] = {
    "Sequential": _in_turn,
    "ResBlock": _resnet,
    "EfficientViTBlock": _attended,
    "SanaMultiscaleLinearAttention": _attention,
    "GLUMBConv": _gated,
    "DCUpBlock2d": _upsample,
    "DCDownBlock2d": _downsample,
}
