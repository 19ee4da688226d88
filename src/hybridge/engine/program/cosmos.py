"""Lower AutoencoderKLCosmos, Cosmos 1.0's: convolutions within a frame, each followed by one along time.

Convolutions see zeros in space and frame 0 in place of earlier frames, and norms have statistics of each frame.
Attention within each frame is followed by attention along time, within each pixel.
Sizes change by a convolution to which its input is added, its numbers repeated or averaged.

Pixels enter and leave in blocks, as their Haar wavelets: of channels, these are sums, which the weights of the
convolution beside them include.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .builder import Lower, ProgramBuilder, check, drops_nothing
from .layers import Norm, Wavelets, Weights
from .module_structure import kind, why_replaced
from .ops import InTime, Padding
from .rearranging import IN_PLACE, Arrangement

#: The class of VAE.
NAME = "AutoencoderKLCosmos"

_CONV = "CosmosCausalConv3d"

_REPEATED, _AVERAGED = Arrangement(True, 1, 2, 2, repeats=4), Arrangement(False, 1, 2, 2, mean=4)


def decoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``decode``."""
    part = vae.decoder
    check(builder.name(part), ("diffusers' decoder", kind(part) == "CosmosDecoder3d"))
    builder.is_at_once, builder.padded_copies = True, 2
    weights = _pointwise(builder, vae.post_quant_conv)
    x = builder.convolve_with(builder.input(weights.in_channels), weights, 1, Padding())
    x = _pair(builder, x, part.conv_in)
    for block in (part.mid_block, *part.up_blocks):
        x = builder.block(block, x)
    embed = part.unpatch_embed
    x = _pair(builder, x, part.conv_out, given=_wavelets(embed), **_norm_act(builder, part.norm_out, x))
    side = embed.patch_size
    builder.rearrange(x, Arrangement(True, side, side, side), builder.name(embed))


def encoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``encode``."""
    part = vae.encoder
    check(builder.name(part), ("diffusers' encoder", kind(part) == "CosmosEncoder3d"))
    builder.is_at_once, builder.padded_copies = True, 2
    embed, side = part.patch_embed, part.patch_embed.patch_size
    pixels = builder.input(part.conv_in.conv_s.in_channels // side**3)
    x = builder.rearrange(pixels, Arrangement(False, side, side, side, first="nearest"), builder.name(embed))
    x = _pair(builder, x, part.conv_in, read=_wavelets(embed))
    for block in (*part.down_blocks, part.mid_block):
        x = builder.block(block, x)
    x = _pair(builder, x, part.conv_out, **_norm_act(builder, part.norm_out, x))
    builder.convolve_with(x, _pointwise(builder, vae.quant_conv), 1, Padding())


def _wavelets(embed: Any) -> bool:
    check(
        kind(embed),
        ("a known patching", embed.patch_method in ("haar", "rearrange")),
        ("a side that is a power of two", embed.patch_size & (embed.patch_size - 1) == 0),
    )
    return bool(embed.patch_method == "haar" and embed.patch_size > 1)


def _weights(builder: ProgramBuilder, conv: Any, kernel: tuple[int, int, int], padding: int = 0) -> Weights:
    weights = builder.conv3d_weights(conv, known=_CONV)
    known = conv.kernel_size == kernel and conv.spatial_pad == (padding,) * 4 and set(conv.padding) == {0}
    before = kernel[0] - 1 + (1 - conv.stride[0])
    check(
        weights.name,
        (f"a kernel of {kernel} with padding of {padding}", known),
        ("zeros in space", conv.pad_mode == "constant"),
        ("its frames before the first", conv.temporal_pad == before),
    )
    return weights


def _pointwise(builder: ProgramBuilder, conv: Any) -> Weights:
    return _along(builder, conv, (1, 1, 1))


def _along(builder: ProgramBuilder, conv: Any, kernel: tuple[int, int, int], padding: int = 0) -> Weights:
    weights = _weights(builder, conv, kernel, padding)
    check(weights.name, ("stride 1", set(conv.stride) == {1}))
    return weights


def _pair(
    builder: ProgramBuilder, x: int, block: Any, *, read: bool = False, given: bool = False, **around: Any
) -> int:
    """Add a convolution within a frame and one along time; ``around`` is what is around the two."""
    check(builder.name(block), ("a pair of convolutions", kind(block) == "CosmosConvProjection3d"))
    first, second = _along(builder, block.conv_s, (1, 3, 3), 1), _along(builder, block.conv_t, (3, 1, 1))
    if read:
        first = replace(first, wavelets=Wavelets("encoder.patch_embed", is_read=True))
    if given:
        second = replace(second, wavelets=Wavelets("decoder.unpatch_embed", is_read=False))
    before = {name: around.pop(name) for name in ("norm", "entering") if name in around}
    x = builder.convolve_with(x, first, 1, Padding(1, 1, 1, 1), **before)
    return builder.convolve_with(x, second, 1, Padding(), in_time=InTime(3, outside="nearest"), **around)


def _norm(builder: ProgramBuilder, norm: Any, x: int) -> Norm:
    known = kind(norm) == "CosmosCausalGroupNorm" and norm.num_groups == 1
    check(builder.name(norm), ("statistics of each frame, in one group", known))
    return builder.norm(norm.norm, x)


def _norm_act(builder: ProgramBuilder, norm: Any, x: int) -> dict[str, Any]:
    return {"norm": _norm(builder, norm, x), "entering": "silu"}


def _resnet(builder: ProgramBuilder, block: Any, x: int) -> int:
    check(builder.name(block), ("no dropout", drops_nothing(block.dropout)))
    is_same = kind(block.conv_shortcut) == "Identity"
    shortcut = None if is_same else _pointwise(builder, block.conv_shortcut)
    hidden = _pair(builder, x, block.conv1, **_norm_act(builder, block.norm1, x))
    around = _norm_act(builder, block.norm2, hidden)
    return _pair(builder, hidden, block.conv2, residual=x, shortcut=shortcut, **around)


def _attention(builder: ProgramBuilder, block: Any, x: int) -> int:
    layers = (block.to_q, block.to_k, block.to_v, block.to_out[0])
    query, key, value, out = (_pointwise(builder, layer) for layer in layers)
    processor = kind(block.processor)
    check(
        builder.name(block),
        ("Cosmos' attention processor", processor in _SEES),
        ("a processor as its class is", why_replaced(block.processor) is None),
        ("an output and a dropout of none", len(block.to_out) == 2 and drops_nothing(block.to_out[1])),
        ("heads of the same size", query.out_channels % block.num_attention_heads == 0),
    )
    known: dict[str, Any] = {"query": query, "key": key, "value": value, "out": out, "sees": _SEES[processor]}
    return builder.attend(x, norm=_norm(builder, block.norm, x), heads=block.num_attention_heads, **known)


#: By processor, the positions that are attended to.
_SEES = {
    "CosmosSpatialAttentionProcessor2_0": "frame",
    "CosmosTemporalAttentionProcessor2_0": "pixel before",
}


def _mid_block(builder: ProgramBuilder, block: Any, x: int) -> int:
    x = builder.block(block.resnets[0], x)
    for within, along, resnet in zip(block.attentions, block.temp_attentions, block.resnets[1:], strict=True):
        for part in (within, along, resnet):
            x = builder.block(part, x)
    return x


def _level(builder: ProgramBuilder, block: Any, x: int) -> int:
    for parts in zip(block.resnets, block.attentions, block.temp_attentions, strict=True):
        for part in parts:
            x = x if part is None else builder.block(part, x)
    last = getattr(block, "upsamplers", None) or getattr(block, "downsamplers", None) or ()
    for part in last:
        x = builder.block(part, x)
    return x


def _downsample(builder: ProgramBuilder, block: Any, x: int) -> int:
    name = builder.name(block)
    if block.spatial_downsample:
        weights = _weights(builder, block.conv1, (1, 3, 3))
        check(weights.name, ("stride 2 in space", block.conv1.stride == (1, 2, 2)))
        made = builder.convolve_with(x, weights, 2, Padding(bottom=1, right=1))
        x = builder.rearrange(made, IN_PLACE, name, residual=x, residual_by=_AVERAGED)
    if block.temporal_downsample:
        weights = _weights(builder, block.conv2, (3, 1, 1))
        check(weights.name, ("stride 2 in time", block.conv2.stride == (2, 1, 1)))
        made = builder.convolve_with(x, weights, 1, Padding(), in_time=InTime(3, 2, outside="nearest"))
        averaged = Arrangement(False, 2, mean=2, first="nearest")
        x = builder.rearrange(made, IN_PLACE, name, residual=x, residual_by=averaged)
    return _last(builder, block, x)


def _upsample(builder: ProgramBuilder, block: Any, x: int) -> int:
    name = builder.name(block)
    if block.temporal_upsample:
        x = builder.rearrange(x, Arrangement(True, 2, repeats=2), name)
        weights = _along(builder, block.conv1, (3, 1, 1))
        x = builder.convolve_with(x, weights, 1, Padding(), in_time=InTime(3, outside="nearest"), residual=x)
    if block.spatial_upsample:
        weights = _along(builder, block.conv2, (1, 3, 3), 1)
        made = builder.convolve_with(x, weights, 1, Padding(1, 1, 1, 1), doubled=True)
        x = builder.rearrange(made, IN_PLACE, name, residual=x, residual_by=_REPEATED)
    return _last(builder, block, x)


def _last(builder: ProgramBuilder, block: Any, x: int) -> int:
    if kind(block.conv3) == "Identity":
        return x
    return builder.convolve_with(x, _pointwise(builder, block.conv3), 1, Padding())


#: What lowers each block, by the name of its class.
BLOCKS: dict[str, Lower] = {
    "CosmosMidBlock3d": _mid_block,
    "CosmosUpBlock3d": _level,
    "CosmosDownBlock3d": _level,
    "CosmosResnetBlock3d": _resnet,
    "CosmosCausalAttention": _attention,
    "CosmosUpsample3d": _upsample,
    "CosmosDownsample3d": _downsample,
}
