"""Lower AutoencoderKLWan and AutoencoderKLQwenImage, whose blocks compute the same.

Convolutions are causal: a frame is computed from itself and the frames before it, with zeros before frame 0.
The norm is per position and attention per frame, so frames can be computed in any number at a time, and rows too.

Wan 2.2 adds a block's input to its output, repeated or averaged to its size, and has patches of pixels as channels.

The classes run one latent frame after another, and frame 0 without the convolutions that halve or double time.
That is the rule of :class:`.ops.InTime`: ``kept`` where it later serves as the frame before frame 1, and ``apart``
where it does not.
"""

from __future__ import annotations

from typing import Any

from ...errors import CannotLower
from .builder import Lower, ProgramBuilder, check, drops_nothing, owns
from .layers import Norm, Weights, usual_taps
from .module_structure import kind
from .ops import InTime, Padding
from .rearranging import IN_PLACE, Arrangement

#: How the names of the blocks' classes begin, by the class of the VAE.
PREFIXES = {"AutoencoderKLWan": "Wan", "AutoencoderKLQwenImage": "QwenImage"}

#: The order of a patch's channels: columns before rows.
_PATCH = "cxy"

_NORM_EPS = 1e-12  # of torch.nn.functional.normalize

#: The encoders take four frames at a time, so that time can be halved twice.
_MOST_HALVINGS = 2


def decoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``decode``."""
    part = vae.decoder
    _check_family(builder, vae, part, "Decoder3d")
    x = _causal(builder, builder.input(vae.post_quant_conv.in_channels), vae.post_quant_conv)
    x = _causal(builder, x, part.conv_in)
    for block in (part.mid_block, *part.up_blocks):
        x = builder.block(block, x)
    side = _patch(vae)
    leaving = "clamp" if side == 1 else None
    x = _norm_act_conv(builder, x, part.norm_out, part.nonlinearity, part.conv_out, leaving=leaving)
    if side > 1:
        pixels = Arrangement(True, 1, side, side, _PATCH)
        builder.rearrange(x, pixels, "unpatchify", leaving="clamp")


def encoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``encode``."""
    part = vae.encoder
    _check_family(builder, vae, part, "Encoder3d")
    halvings = sum(getattr(block, "mode", "") == "downsample3d" for block in part.down_blocks)
    check("encoder", (f"at most {_MOST_HALVINGS} halvings of time", halvings <= _MOST_HALVINGS))
    side = _patch(vae)
    x = builder.input(part.conv_in.in_channels // side**2)
    if side > 1:
        x = builder.rearrange(x, Arrangement(False, 1, side, side, _PATCH), "patchify")
    x = _causal(builder, x, part.conv_in)
    for block in (*part.down_blocks, part.mid_block):
        x = builder.block(block, x)
    x = _norm_act_conv(builder, x, part.norm_out, part.nonlinearity, part.conv_out)
    _causal(builder, x, vae.quant_conv)


def _check_family(builder: ProgramBuilder, vae: Any, part: Any, suffix: str) -> None:
    check(builder.name(part), (f"diffusers' {suffix}", kind(part) == PREFIXES[kind(vae)] + suffix))


def _patch(vae: Any) -> int:
    """Return the side of the square of pixels whose channels stand side by side."""
    return int(getattr(vae.config, "patch_size", None) or 1)


def _causal(builder: ProgramBuilder, x: int, conv: Any, *, in_time: InTime | None = None, **around: Any) -> int:
    """Add a causal convolution with stride 1, or with another rule for frames."""
    weights = _causal_weights(builder, conv)
    frames, side = conv.kernel_size[0], (weights.kernel - 1) // 2
    if in_time is None:
        check(
            weights.name,
            ("stride 1", set(conv.stride) == {1}),
            ("as many frames as it needs before", conv._padding[4:] == (frames - 1, 0)),
        )
        in_time = InTime(frames) if frames > 1 else None
    check(weights.name, (f"padding of {side}", conv._padding[:4] == (side,) * 4 and set(conv.padding) == {0}))
    padding = Padding(side, side, side, side)
    return builder.convolve_with(x, weights, 1, padding, in_time=in_time, **around)


def _causal_weights(builder: ProgramBuilder, conv: Any) -> Weights:
    name, (frames, *sides) = builder.name(conv), conv.kernel_size
    check(
        name,
        ("a causal convolution", kind(conv).removeprefix("QwenImage").removeprefix("Wan") == "CausalConv3d"),
        ("padding with zeros", conv.padding_mode == "zeros" and not isinstance(conv.padding, str)),
        ("one group, no dilation", conv.groups == 1 and set(conv.dilation) == {1}),
        ("a square kernel with an odd side", len(set(sides)) == 1 and sides[0] % 2 == 1),
        ("stride 1 within a frame", set(conv.stride[1:]) == {1}),
        ("parameters of its shape", owns(conv, conv.out_channels, conv.in_channels, *conv.kernel_size)),
    )
    return Weights(name, frames * conv.in_channels, conv.out_channels, sides[0], usual_taps(frames))


def _norm(builder: ProgramBuilder, norm: Any, x: int, *, per_frame: bool = False) -> Norm:
    name, gamma, channels = builder.name(norm), norm._parameters.get("gamma"), builder.channels(x)
    shape = (channels,) + (1,) * (2 if per_frame else 3)
    check(
        name,
        ("an RMS norm", kind(norm).removeprefix("QwenImage").removeprefix("Wan") in ("RMS_norm",)),
        ("channels first, no bias", norm.channel_first and isinstance(norm.bias, float) and norm.bias == 0),
        ("parameters of its shape", gamma is norm.gamma and gamma is not None and gamma.shape == shape),
        ("the usual scale", norm.scale == channels**0.5),
    )
    return Norm(name, 1, _NORM_EPS, "rms")


def _norm_act_conv(builder: ProgramBuilder, x: int, norm: Any, activation: Any, conv: Any, **around: Any) -> int:
    check(builder.name(activation), ("SiLU", kind(activation) == "SiLU"))
    return _causal(builder, x, conv, norm=_norm(builder, norm, x), entering="silu", **around)


def _resnet(builder: ProgramBuilder, block: Any, x: int) -> int:
    check(builder.name(block), ("no dropout", drops_nothing(block.dropout)))
    hidden = _norm_act_conv(builder, x, block.norm1, block.nonlinearity, block.conv1)
    shortcut = None
    if kind(block.conv_shortcut) != "Identity":
        shortcut = _causal_weights(builder, block.conv_shortcut)
        geometry = block.conv_shortcut.kernel_size, set(block.conv_shortcut.stride)
        check(shortcut.name, ("a 1×1×1 shortcut without padding", geometry == ((1, 1, 1), {1})))
        check(shortcut.name, ("no padding", set(block.conv_shortcut._padding) == {0}))
    around = {"residual": x, "shortcut": shortcut}
    return _norm_act_conv(builder, hidden, block.norm2, block.nonlinearity, block.conv2, **around)


def _mid_block(builder: ProgramBuilder, block: Any, x: int) -> int:
    x = builder.block(block.resnets[0], x)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            x = builder.block(attention, x)
        x = builder.block(resnet, x)
    return x


def _up_block(builder: ProgramBuilder, block: Any, x: int) -> int:
    for part in (*block.resnets, *(block.upsamplers or ())):
        x = builder.block(part, x)
    return x


def _residual_up_block(builder: ProgramBuilder, block: Any, x: int) -> int:
    made, added = x, block.avg_shortcut
    for part in (*block.resnets, *([] if block.upsampler is None else [block.upsampler])):
        made = builder.block(part, made)
    if added is None:
        return made
    check(builder.name(added), ("repeated channels", kind(added) == "DupUp3D"))
    frames, side = added.factor_t, added.factor_s
    repeated = Arrangement(True, frames, side, side, repeats=added.repeats)
    return builder.rearrange(made, IN_PLACE, builder.name(block), residual=x, residual_by=repeated)


def _residual_down_block(builder: ProgramBuilder, block: Any, x: int) -> int:
    made, added = x, block.avg_shortcut
    for part in (*block.resnets, *([] if block.downsampler is None else [block.downsampler])):
        made = builder.block(part, made)
    check(builder.name(added), ("averaged channels", kind(added) == "AvgDown3D"))
    frames, side = added.factor_t, added.factor_s
    averaged = Arrangement(False, frames, side, side, mean=added.group_size, first="zeros")
    return builder.rearrange(made, IN_PLACE, builder.name(block), residual=x, residual_by=averaged)


def _attention(builder: ProgramBuilder, block: Any, x: int) -> int:
    channels = builder.channels(x)
    together, out = (builder.shortcut_weights(conv) for conv in (block.to_qkv, block.proj))
    check(together.name, ("queries, keys and values", together.out_channels == 3 * channels))
    query, key, value = (
        Weights(together.name, together.in_channels, channels, first_output=n * channels) for n in range(3)
    )
    norm = _norm(builder, block.norm, x, per_frame=True)
    return builder.attend(x, norm=norm, heads=1, query=query, key=key, value=value, out=out)


def _resample(builder: ProgramBuilder, block: Any, x: int) -> int:
    name, mode = builder.name(block), block.mode
    if mode == "upsample3d":
        x = _causal(builder, x, block.time_conv, in_time=InTime(3, first="apart", spread=2))
        _check_time(builder, block, padding=2, stride=1)
    if mode in ("upsample2d", "upsample3d"):
        upsample, conv = block.resample
        is_double = set(upsample.scale_factor) == {2.0} and upsample.mode == "nearest-exact" and not upsample.size
        check(name, ("nearest ×2", kind(upsample).endswith("Upsample") and is_double))
        geometry = set(conv.kernel_size), set(conv.padding), set(conv.stride)
        check(name, ("a 3×3 convolution with padding 1 and stride 1 after ×2", geometry == ({3}, {1}, {1})))
        return builder.convolve(x, conv, doubled=True)
    if mode not in ("downsample2d", "downsample3d"):
        raise CannotLower(f"cannot lower {name}", saw=mode, expected="×2 or ÷2")
    pad, conv = block.resample
    is_known = kind(pad) == "ZeroPad2d" and tuple(pad.padding) == (0, 1, 0, 1) and set(conv.stride) == {2}
    check(name, ("a 3×3 convolution with stride 2 and a row and a column of zeros", is_known))
    x = builder.convolve(x, conv, padding=Padding(bottom=1, right=1))
    if mode == "downsample3d":
        x = _causal(builder, x, block.time_conv, in_time=InTime(3, 2, "kept"))
        _check_time(builder, block, padding=0, stride=2)
    return x


def _check_time(builder: ProgramBuilder, block: Any, padding: int, stride: int) -> None:
    conv = block.time_conv
    check(
        builder.name(conv),
        ("a convolution over three frames", conv.kernel_size == (3, 1, 1)),
        (f"{padding} frames of zeros", conv._padding[4:] == (padding, 0)),
        (f"stride {stride} in time", conv.stride[0] == stride),
    )


#: What lowers each block, by the name of its class.
BLOCKS: dict[str, Lower] = {
    prefix + name: function
    for prefix in PREFIXES.values()
    for name, function in {
        "MidBlock": _mid_block,
        "UpBlock": _up_block,
        "ResidualUpBlock": _residual_up_block,
        "ResidualDownBlock": _residual_down_block,
        "ResidualBlock": _resnet,
        "AttentionBlock": _attention,
        "Resample": _resample,
    }.items()
}
