"""Lower AutoencoderKLMochi: causal convolutions, and norms whose statistics are those of a frame.

Outside of a value, convolutions see its nearest frame, row or column.
A decoder's sizes grow by linear layers whose channels become frames, rows and columns; the frames that precede the
first latent frame's own are left out at the end.
An encoder reads sines and cosines of the pixels beside them, and attends along time, within each pixel.
"""

from __future__ import annotations

import math
from typing import Any

from .builder import Lower, ProgramBuilder, check, drops_nothing
from .cogvideox import causal
from .layers import Norm
from .module_structure import kind, why_replaced
from .ops import FOURIER_POWERS, RESIZING, InTime, Padding
from .rearranging import Arrangement
from .style import Style, pointwise

#: The class of VAE.
NAME = "AutoencoderKLMochi"

_CONV, _CAUSAL = "CogVideoXSafeConv3d", "CogVideoXCausalConv3d"


def decoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``decode``."""
    part = vae.decoder
    check(builder.name(part), ("diffusers' decoder", kind(part) == "MochiDecoder3D"))
    check(NAME, ("all frames at once", not vae.use_framewise_decoding))
    builder.is_at_once = True
    weights = pointwise(builder, part.conv_in)
    x = builder.convolve_with(builder.input(weights.in_channels), weights, 1, Padding())
    for block in (part.block_in, *part.up_blocks, part.block_out):
        x = builder.block(block, x)
    check(builder.name(part.nonlinearity), ("SiLU", kind(part.nonlinearity) == "SiLU"))
    skipped = math.prod(block.temporal_expansion for block in part.up_blocks) - 1
    check(NAME, ("its own frames in time", vae.temporal_compression_ratio == skipped + 1))
    rule = InTime(1, skipped=skipped if vae.drop_last_temporal_frames else 0)
    out = builder.linear_weights(part.proj_out)
    builder.convolve_with(x, out, 1, Padding(), entering="silu", in_time=rule if rule.skipped else None)


def encoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``encode``."""
    part = vae.encoder
    check(builder.name(part), ("diffusers' encoder", kind(part) == "MochiEncoder3D"))
    features = part.fourier_features
    powers = tuple(range(features.start, features.stop, features.step))
    check(builder.name(features), ("its usual frequencies", powers == FOURIER_POWERS))
    builder.is_at_once, builder.attention_sees = True, "pixel before"
    weights = builder.linear_weights(part.proj_in)
    x = builder.input(weights.in_channels // int(RESIZING["fourier"]))
    x = builder.convolve_with(x, weights, 1, Padding(), entering="fourier")
    for block in (part.block_in, *part.down_blocks, part.block_out):
        x = builder.block(block, x)
    check(builder.name(part.nonlinearity), ("SiLU", kind(part.nonlinearity) == "SiLU"))
    out = builder.linear_weights(part.proj_out)
    builder.convolve_with(x, out, 1, Padding(), norm=_norm(builder, part.norm_out, x), entering="silu")


def _norm(builder: ProgramBuilder, norm: Any, x: int) -> Norm:
    check(builder.name(norm), ("statistics of each frame", kind(norm) == "MochiChunkedGroupNorm3D"))
    return builder.norm(norm.norm_layer, x)


_STYLE = Style(causal, _norm)


def _resnet(builder: ProgramBuilder, block: Any, x: int) -> int:
    check(
        builder.name(block),
        ("as many channels in as out", block.in_channels == block.out_channels),
        ("the nearest row outside", {block.conv1.pad_mode, block.conv2.pad_mode} == {"replicate"}),
    )
    return _STYLE.resnet(builder, block, x, None)


def _mid_block(builder: ProgramBuilder, block: Any, x: int) -> int:
    for resnet, norm, attention in zip(block.resnets, block.norms, block.attentions, strict=True):
        x = builder.block(resnet, x)
        if attention is not None:
            x = _attention(builder, attention, norm, x)
    return x


def _up_block(builder: ProgramBuilder, block: Any, x: int) -> int:
    for resnet in block.resnets:
        x = builder.block(resnet, x)
    made = builder.convolve_with(x, builder.linear_weights(block.proj), 1, Padding())
    side = block.spatial_expansion
    by = Arrangement(True, block.temporal_expansion, side, side, first="whole")
    return builder.rearrange(made, by, builder.name(block))


def _down_block(builder: ProgramBuilder, block: Any, x: int) -> int:
    conv = block.conv_in
    frames, side = block.temporal_expansion, block.spatial_expansion
    name = builder.name(conv)
    check(
        name,
        ("a causal convolution", kind(conv) == _CAUSAL and kind(conv.conv) == _CONV),
        ("blocks beside each other", conv.conv.kernel_size == conv.conv.stride == (frames, side, side)),
        ("the nearest frame before", conv.pad_mode == "replicate" and set(conv.conv.padding) == {0}),
        ("padding in time alone", conv.time_causal_padding == (0, 0, 0, 0, frames - 1, 0) and side <= 2),
    )
    weights = builder.conv3d_weights(conv.conv, known=_CONV, is_odd=False)
    rule = InTime(frames, frames, outside="nearest") if frames > 1 else None
    x = builder.convolve_with(x, weights, side, Padding(), in_time=rule)
    return _mid_block(builder, block, x)


def _attention(builder: ProgramBuilder, block: Any, norm: Any, x: int) -> int:
    query, key, value, out = (
        builder.linear_weights(layer) for layer in (block.to_q, block.to_k, block.to_v, block.to_out[0])
    )
    name = builder.name(block)
    check(
        name,
        ("Mochi's attention processor", kind(block.processor) == "MochiVaeAttnProcessor2_0"),
        ("a processor as its class is", why_replaced(block.processor) is None),
        ("no norm of its own", block.group_norm is None and block.spatial_norm is None),
        ("queries and keys of length 1", {kind(block.norm_q), kind(block.norm_k)} == {"LpNorm"}),
        ("the same for both", (block.norm_q.p, block.norm_q.eps) == (2, block.norm_k.eps) and block.norm_k.p == 2),
        ("frames up to its own", block.is_causal),
        ("no cross attention", not block.is_cross_attention and block.added_kv_proj_dim is None),
        ("nothing added, unscaled", not block.residual_connection and block.rescale_output_factor == 1),
        ("an output and a dropout of none", len(block.to_out) == 2 and drops_nothing(block.to_out[1])),
        ("heads of the same size", query.out_channels % block.heads == 0),
    )
    layers = {"query": query, "key": key, "value": value, "out": out, "heads": block.heads}
    return builder.attend(x, norm=_norm(builder, norm, x), least_norm=block.norm_q.eps, **layers)


#: What lowers each block, by the name of its class.
BLOCKS: dict[str, Lower] = {
    "MochiMidBlock3D": _mid_block,
    "MochiUpBlock3D": _up_block,
    "MochiDownBlock3D": _down_block,
    "MochiResnetBlock3D": _resnet,
}
