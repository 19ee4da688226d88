"""Lower AutoencoderKLLTXVideo and AutoencoderKLLTX2Video, whose blocks compute nearly the same.

Norms are per position and there is no attention.
Encoders are causal; decoders also see the frame after.
Outside of a film the first and the last frame are repeated, and rows and columns are zeros or reflected.

Decoders of version 0.9.1 and later are conditioned on a timestep: it gives each norm factors and shifts.  That of
0.9.1 also adds noise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .builder import Lower, ProgramBuilder, check, drops_nothing, owns
from .layers import Norm, Vectors, Weights
from .module_structure import kind
from .ops import InTime, Outside, Padding
from .rearranging import Arrangement

#: How the names of the blocks' classes begin, by the class of the VAE.
PREFIXES = {"AutoencoderKLLTXVideo": "LTXVideo", "AutoencoderKLLTX2Video": "LTX2Video"}

#: The order of a patch's channels: columns before rows.
_PATCH = "ctxy"

_OUTSIDE: dict[str, Outside] = {"zeros": "zeros", "reflect": "reflected"}


def decoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``decode``."""
    part = vae.decoder
    _check_family(builder, vae, part, "Decoder3d")
    has_time = part.time_embedder is not None
    check("decoder", ("a timestep in all of it", has_time == (part.timestep_scale_multiplier is not None)))
    x = _conv(builder, builder.input(part.conv_in.conv.in_channels), part.conv_in)
    for block in (part.mid_block, *part.up_blocks):
        x = builder.block(block, x)
    vectors = _vectors(builder, part, _embedder(builder, part), 2)
    x = _norm_act_conv(builder, x, part.norm_out, part.conv_act, part.conv_out, vectors=vectors[0])
    pixels = Arrangement(True, 1, part.patch_size, part.patch_size, _PATCH)
    builder.rearrange(x, pixels, "the decoder's patches")


def encoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``encode``."""
    part = vae.encoder
    _check_family(builder, vae, part, "Encoder3d")
    x = builder.input(part.conv_in.conv.in_channels // part.patch_size**2)
    patches = Arrangement(False, 1, part.patch_size, part.patch_size, _PATCH)
    x = _conv(builder, builder.rearrange(x, patches, "the encoder's patches"), part.conv_in)
    for block in (*part.down_blocks, part.mid_block):
        x = builder.block(block, x)
    # One logarithm of a variance serves all channels.
    repeats = part.conv_out.conv.out_channels - 2
    _norm_act_conv(builder, x, part.norm_out, part.conv_act, part.conv_out, repeats=repeats)


def _check_family(builder: ProgramBuilder, vae: Any, part: Any, suffix: str) -> None:
    check(
        builder.name(part),
        (f"diffusers' {suffix}", kind(part) == PREFIXES[kind(vae)] + suffix),
        ("patches of one frame", part.patch_size_t == 1),
    )
    builder.is_at_once = True
    builder.is_causal = bool(part.conv_in.is_causal if hasattr(part.conv_in, "is_causal") else part.is_causal)


def _conv(builder: ProgramBuilder, x: int, conv: Any, *, repeats: int = 0, **around: Any) -> int:
    weights = _weights(builder, conv)
    in_time, side, down = conv.conv.stride
    size = weights.kernel // 2
    check(
        weights.name,
        ("strides of 1 or 2", side == down and {in_time, side} <= {1, 2}),
        ("a cube as its kernel", len(set(conv.conv.kernel_size)) == 1),
        (f"padding of {size} in space", conv.conv.padding == (0, size, size)),
        ("the same frames for all layers", getattr(conv, "is_causal", builder.is_causal) == builder.is_causal),
    )
    if repeats:
        weights = replace(weights, out_channels=weights.out_channels + repeats, last_repeated=repeats)
    ahead = 0 if builder.is_causal else size
    rule = InTime(weights.in_channels // conv.conv.in_channels, in_time, outside="nearest", ahead=ahead)
    padding = Padding(size, size, size, size, _OUTSIDE[conv.conv.padding_mode])
    return builder.convolve_with(x, weights, side, padding, in_time=rule if size else None, **around)


def _weights(builder: ProgramBuilder, conv: Any) -> Weights:
    known = kind(conv) in [prefix + "CausalConv3d" for prefix in PREFIXES.values()]
    check(builder.name(conv), ("a convolution that may be causal", known))
    return builder.conv3d_weights(conv.conv, tuple(_OUTSIDE))


def _norm(builder: ProgramBuilder, norm: Any) -> Norm:
    name = builder.name(norm)
    if kind(norm) == "RMSNorm":
        check(name, ("no weights", norm.weight is None and norm.bias is None))
    else:
        check(name, ("an RMS norm over channels", kind(norm) == "PerChannelRMSNorm" and norm.channel_dim == 1))
    return Norm(name, 1, norm.eps, "mean square")


def _norm_act_conv(
    builder: ProgramBuilder,
    x: int,
    norm: Any,
    activation: Any,
    conv: Any,
    *,
    vectors: Vectors | None = None,
    **around: Any,
) -> int:
    check(builder.name(activation), ("SiLU", kind(activation) == "SiLU"))
    lowered = replace(_norm(builder, norm), vectors=vectors)
    return _conv(builder, x, conv, norm=lowered, entering="silu", **around)


def _embedder(builder: ProgramBuilder, block: Any) -> str | None:
    """Return the name of what embeds the timestep for a block; None if it has none."""
    if block.time_embedder is None:
        return None
    name = builder.name(block.time_embedder)
    known = kind(block.time_embedder) == "PixArtAlphaCombinedTimestepSizeEmbeddings"
    check(name, ("an embedding of the timestep alone", known and not block.time_embedder.use_additional_conditions))
    return name


def _vectors(builder: ProgramBuilder, owner: Any, embedder: str | None, rows: int) -> list[Vectors | None]:
    """Return the vectors of each norm, two rows of a table for each; None where there is no table."""
    name, table = builder.name(owner), owner.scale_shift_table
    check(name, ("a timestep where there is a table", (table is None) == (embedder is None)))
    if table is None or embedder is None:
        return [None] * (rows // 2)
    check(
        name,
        (f"a table of {rows} rows", len(table) == rows and owner._parameters.get("scale_shift_table") is table),
    )
    return [Vectors(name, embedder, row, row + 1) for row in range(0, rows, 2)]


def _noise(builder: ProgramBuilder, block: Any, number: int) -> tuple[str, str] | None:
    parameter = f"per_channel_scale{number}"
    return None if getattr(block, parameter) is None else (builder.name(block), parameter)


def _resnet(builder: ProgramBuilder, block: Any, x: int) -> int:
    check(builder.name(block), ("no dropout", drops_nothing(block.dropout)))
    first, second = _vectors(builder, block, builder.embedder, 4)
    around: dict[str, Any] = {"vectors": first, "noise": _noise(builder, block, 1)}
    hidden = _norm_act_conv(builder, x, block.norm1, block.nonlinearity, block.conv1, **around)
    added = x if block.conv_shortcut is None else _shortcut(builder, block, x)
    around = {"vectors": second, "noise": _noise(builder, block, 2), "residual": added}
    return _norm_act_conv(builder, hidden, block.norm2, block.nonlinearity, block.conv2, **around)


def _shortcut(builder: ProgramBuilder, block: Any, x: int) -> int:
    norm, conv = block.norm3, block.conv_shortcut
    name, channels = builder.name(norm), builder.channels(x)
    is_layer = kind(norm) == "LayerNorm" and norm.normalized_shape == (channels,)
    check(name, ("a LayerNorm of the channels", is_layer and norm.bias is not None and owns(norm, channels)))
    around: dict[str, Any] = {"norm": Norm(name, 1, norm.eps, "layer")}
    if kind(conv) != "Conv3d":
        check(builder.name(conv), ("a 1×1×1 shortcut", set(conv.conv.kernel_size) == {1}))
        return _conv(builder, x, conv, **around)
    weights = builder.conv3d_weights(conv)
    geometry = conv.kernel_size, set(conv.stride), set(conv.padding)
    check(weights.name, ("a 1×1×1 shortcut", geometry == ((1, 1, 1), {1}, {0})))
    return builder.convolve_with(x, weights, 1, Padding(), **around)


def _mid_block(builder: ProgramBuilder, block: Any, x: int) -> int:
    builder.embedder = _embedder(builder, block)
    for resnet in block.resnets:
        x = builder.block(resnet, x)
    builder.embedder = None
    return x


def _down_block(builder: ProgramBuilder, block: Any, x: int) -> int:
    for part in (*block.resnets, *(block.downsamplers or ())):
        x = builder.block(part, x)
    last = getattr(block, "conv_out", None)
    return x if last is None else builder.block(last, x)


def _up_block(builder: ProgramBuilder, block: Any, x: int) -> int:
    first = () if block.conv_in is None else (block.conv_in,)
    for part in (*first, *(block.upsamplers or ())):
        x = builder.block(part, x)
    return _mid_block(builder, block, x)


def _upsample(builder: ProgramBuilder, block: Any, x: int) -> int:
    name, (frames, rows, columns) = builder.name(block), block.stride
    made, by = _conv(builder, x, block.conv), Arrangement(True, frames, rows, columns)
    if not block.residual:
        return builder.rearrange(made, by, name)
    repeats = frames * rows * columns // block.upscale_factor
    return builder.rearrange(made, by, name, residual=x, residual_by=replace(by, repeats=repeats, is_cycled=True))


def _downsample(builder: ProgramBuilder, block: Any, x: int) -> int:
    name, (frames, rows, columns) = builder.name(block), block.stride
    # It repeats the first frame before the convolution, which then makes two equal frames if it is causal.
    check(name, ("a causal convolution before frames are joined", builder.is_causal or frames == 1))
    made, by = _conv(builder, x, block.conv), Arrangement(False, frames, rows, columns, first="nearest")
    return builder.rearrange(made, by, name, residual=x, residual_by=replace(by, mean=block.group_size))


#: What lowers each block, by the name of its class.
BLOCKS: dict[str, Lower] = {
    prefix + name: function
    for prefix in (*PREFIXES.values(), "LTXVideo095")
    for name, function in {
        "ResnetBlock3d": _resnet,
        "MidBlock3d": _mid_block,
        "DownBlock3D": _down_block,
        "UpBlock3d": _up_block,
        "Upsampler3d": _upsample,
        "Downsampler3d": _downsample,
        "CausalConv3d": lambda builder, conv, x: _conv(builder, x, conv),
    }.items()
}
