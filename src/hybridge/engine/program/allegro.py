"""Lower AutoencoderKLAllegro: blocks of pictures, each followed by one along time, of one tile.

The class computes tiles of 24 frames of its own size of pictures and blends them; it does not run without.
The statistics of norms along time are over all frames of a tile, its first and last one counted twice, those of the
others over one frame.
Convolutions along time see the nearest frame outside of a tile within blocks, and zeros in front of the first and
behind the last block.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .builder import Lower, ProgramBuilder, check
from .layers import Norm
from .module_structure import kind
from .ops import InTime, Padding
from .rearranging import IN_PLACE, Arrangement
from .tiles import Block, Tiles

#: The class of VAE.
NAME = "AutoencoderKLAllegro"

#: Channels that become frames, frames that are repeated, and every other frame.
_SPREAD = Arrangement(True, 2, order="tcyx", first="whole")
_REPEATED = Arrangement(True, 2, repeats=2, first="whole")
_THINNED = Arrangement(False, 2, first="whole", is_thinned=True)


def decoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``decode``."""
    part = vae.decoder
    check(builder.name(part), ("diffusers' decoder", kind(part) == "AllegroDecoder3D"))
    x = builder.convolve(builder.input(vae.post_quant_conv.in_channels), vae.post_quant_conv)
    _through(builder, part, x, (part.mid_block, *part.up_blocks))
    shrunk = _shrunk(vae, vae.kernel), _shrunk(vae, vae.stride)
    builder.tiles = _checked(Tiles(*shrunk, _block(vae.kernel), _block(vae.stride)))


def encoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``encode``, up to the moments; those of all tiles together go through one more layer."""
    part = vae.encoder
    check(builder.name(part), ("diffusers' encoder", kind(part) == "AllegroEncoder3D"))
    _through(builder, part, builder.input(part.conv_in.in_channels), (*part.down_blocks, part.mid_block))
    last = builder.shortcut_weights(vae.quant_conv)
    shrunk = _shrunk(vae, vae.kernel), _shrunk(vae, vae.stride)
    builder.tiles = _checked(Tiles(_block(vae.kernel), _block(vae.stride), *shrunk, last))


def _block(sizes: Any) -> Block:
    frames, rows, columns = map(int, sizes)
    return frames, rows, columns


def _shrunk(vae: Any, sizes: Any) -> Block:
    """Return a size in latents."""
    factors = vae.config.temporal_compression_ratio, *[vae.spatial_compression_ratio] * 2
    return _block(size // factor for size, factor in zip(sizes, factors, strict=True))


def _checked(tiles: Tiles) -> Tiles:
    sizes, steps = (*tiles.source, *tiles.target), (*tiles.source_step, *tiles.target_step)
    is_known = all(0 < step < size for size, step in zip(sizes, steps, strict=True))
    check(NAME, ("tiles that overlap in frames, rows and columns", is_known))
    return tiles


def _through(builder: ProgramBuilder, part: Any, x: int, blocks: tuple[Any, ...]) -> int:
    """Add all of a decoder or an encoder."""
    builder.is_at_once = True
    check(builder.name(part.conv_act), ("SiLU", kind(part.conv_act) == "SiLU"))
    x = builder.convolve(x, part.conv_in)
    x = _along_time(builder, x, part.temp_conv_in, residual=x)
    for block in blocks:
        x = builder.block(block, x)
    around = {"norm": builder.norm(part.conv_norm_out, x), "entering": "silu"}
    x = _along_time(builder, x, part.temp_conv_out, adds_entered=True, **around)
    return builder.convolve(x, part.conv_out)


def _along_time(builder: ProgramBuilder, x: int, conv: Any, **around: Any) -> int:
    """Add a convolution over the frames before and after, with zeros outside."""
    weights = builder.conv3d_weights(conv)
    geometry = conv.kernel_size, conv.padding, set(conv.stride)
    check(weights.name, ("three frames, padded with zeros", geometry == ((3, 1, 1), (1, 0, 0), {1})))
    return builder.convolve_with(x, weights, 1, Padding(), in_time=InTime(3, ahead=1), **around)


def _norm_act_conv(
    builder: ProgramBuilder, x: int, layers: Any, kernel: int, stride: int = 1, **around: Any
) -> int:
    """Add a norm over all frames, SiLU, and a convolution over so many of them."""
    norm, activation, *dropouts, conv = layers
    weights = builder.conv3d_weights(conv)
    side = weights.kernel
    check(
        weights.name,
        ("SiLU before it", kind(activation) == "SiLU"),
        (
            "a dropout that drops nothing",
            all(kind(one) == "Dropout" and not (one.training and one.p) for one in dropouts),
        ),
        (f"{kernel} frames", conv.kernel_size == (kernel, side, side)),
        ("padding in space alone", conv.padding == (0, side // 2, side // 2)),
        (f"stride {stride} in time", conv.stride == (stride, 1, 1)),
    )
    rules = {1: None, 2: InTime(2, 2, ahead=1), 3: InTime(3, outside="nearest", ahead=1)}
    # The class repeats the first and the last frame before the norm, where the convolution reads three.
    own: Norm = replace(builder.norm(norm, x), over="film", ends_twice=kernel == 3)
    pad = Padding(side // 2, side // 2, side // 2, side // 2)
    return builder.convolve_with(x, weights, 1, pad, norm=own, entering="silu", in_time=rules[kernel], **around)


def _temporal(builder: ProgramBuilder, block: Any, x: int) -> int:
    name, residual = builder.name(block), x
    if block.up_sample:
        made = _norm_act_conv(builder, x, block.conv1, 1)
        made = builder.rearrange(made, _SPREAD, name)
    else:
        made = _norm_act_conv(builder, x, block.conv1, *((2, 2) if block.down_sample else (3,)))
    for layers in (block.conv2, block.conv3):
        made = _norm_act_conv(builder, made, layers, 3)
    if not (block.up_sample or block.down_sample):
        return _norm_act_conv(builder, made, block.conv4, 3, residual=residual)
    made = _norm_act_conv(builder, made, block.conv4, 3)
    by = _REPEATED if block.up_sample else _THINNED
    return builder.rearrange(made, IN_PLACE, name, residual=residual, residual_by=by)


def _blocks(builder: ProgramBuilder, block: Any, x: int) -> int:
    for resnet, temporal in zip(block.resnets, block.temp_convs, strict=True):
        x = builder.block(temporal, builder.block(resnet, x))
    if getattr(block, "add_temp_upsample", False):
        x = builder.block(block.temp_conv_up, x)
    if getattr(block, "add_temp_downsample", False):
        x = builder.block(block.temp_convs_down, x)
    for part in getattr(block, "upsamplers", None) or getattr(block, "downsamplers", None) or ():
        x = builder.block(part, x)
    return x


def _mid_block(builder: ProgramBuilder, block: Any, x: int) -> int:
    x = builder.block(block.temp_convs[0], builder.block(block.resnets[0], x))
    for attention, resnet, temporal in zip(block.attentions, block.resnets[1:], block.temp_convs[1:], strict=True):
        x = builder.block(temporal, builder.block(resnet, builder.block(attention, x)))
    return x


#: What lowers each block, by the name of its class.
BLOCKS: dict[str, Lower] = {
    "AllegroMidBlock3DConv": _mid_block,
    "AllegroUpBlock3D": _blocks,
    "AllegroDownBlock3D": _blocks,
    "AllegroTemporalConvLayer": _temporal,
}
