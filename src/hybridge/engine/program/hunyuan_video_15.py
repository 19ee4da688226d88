"""Lower AutoencoderKLHunyuanVideo15: causal convolutions, RMS norms, and steps between channels and positions.

Outside of a value, convolutions see its nearest frame, row or column.
Attention is over all positions of a frame and of the frames before it.
Sizes change by convolutions whose channels become positions, or the reverse; their inputs, repeated or averaged,
take the same way and are added.  Frame 0 takes it alone.
"""

from __future__ import annotations

from typing import Any

from .builder import Lower, ProgramBuilder, check
from .layers import Norm
from .module_structure import kind
from .ops import InTime, Padding
from .rearranging import IN_PLACE, Arrangement
from .style import Style, pointwise

#: The class of VAE.
NAME = "AutoencoderKLHunyuanVideo15"

_NORM_EPS = 1e-12  # of torch.nn.functional.normalize


def decoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``decode``."""
    part = vae.decoder
    check(builder.name(part), ("diffusers' decoder", kind(part) == "HunyuanVideo15Decoder3D"))
    _set_rules(builder)
    z = builder.input(part.conv_in.conv.in_channels)
    x = _causal(builder, z, part.conv_in)
    repeated = Arrangement(repeats=part.repeat)
    x = builder.rearrange(x, IN_PLACE, builder.name(part.conv_in), residual=z, residual_by=repeated)
    _STYLE.decode(builder, part, x)


def encoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``encode``."""
    part = vae.encoder
    check(builder.name(part), ("diffusers' encoder", kind(part) == "HunyuanVideo15Encoder3D"))
    _set_rules(builder)
    x = _causal(builder, builder.input(part.conv_in.conv.in_channels), part.conv_in)
    x, made = _STYLE.encode(builder, part, x)
    averaged = Arrangement(goes_up=False, mean=part.group_size)
    builder.rearrange(made, IN_PLACE, builder.name(part.conv_out), residual=x, residual_by=averaged)


def _set_rules(builder: ProgramBuilder) -> None:
    builder.attention_sees, builder.is_at_once = "frames before", True


def _causal(builder: ProgramBuilder, x: int, conv: Any, **around: Any) -> int:
    weights = builder.conv3d_weights(conv.conv)
    check(
        weights.name,
        ("a causal convolution", kind(conv) == "HunyuanVideo15CausalConv3d"),
        ("a 3×3×3 kernel", set(conv.conv.kernel_size) == {3}),
        ("the nearest frame, row or column outside", conv.pad_mode == "replicate"),
        ("padding of 1 in space and of 2 frames before", conv.time_causal_padding == (1, 1, 1, 1, 2, 0)),
        ("no padding of its own, stride 1", set(conv.conv.padding) == {0} and set(conv.conv.stride) == {1}),
    )
    rule, padding = InTime(3, outside="nearest"), Padding(1, 1, 1, 1, "nearest")
    return builder.convolve_with(x, weights, 1, padding, in_time=rule, **around)


def _norm(builder: ProgramBuilder, norm: Any, x: int) -> Norm:
    name, gamma, channels = builder.name(norm), norm._parameters.get("gamma"), builder.channels(x)
    check(
        name,
        ("an RMS norm", kind(norm) == "HunyuanVideo15RMS_norm"),
        ("channels first, no bias", norm.channel_first and isinstance(norm.bias, float) and norm.bias == 0),
        ("parameters of its shape", gamma is norm.gamma and gamma is not None and gamma.numel() == channels),
        ("the usual scale", norm.scale == channels**0.5),
    )
    return Norm(name, 1, _NORM_EPS, "rms")


_STYLE = Style(_causal, _norm)


def _resnet(builder: ProgramBuilder, block: Any, x: int) -> int:
    shortcut = None if block.conv_shortcut is None else pointwise(builder, block.conv_shortcut)
    return _STYLE.resnet(builder, block, x, shortcut)


def _attention(builder: ProgramBuilder, block: Any, x: int) -> int:
    layers = (block.to_q, block.to_k, block.to_v, block.proj_out)
    query, key, value, out = (pointwise(builder, layer) for layer in layers)
    norm = _norm(builder, block.norm, x)
    return builder.attend(x, norm=norm, heads=1, query=query, key=key, value=value, out=out)


def _upsample(builder: ProgramBuilder, block: Any, x: int) -> int:
    name, frames = builder.name(block), 2 if block.add_temporal_upsample else 1
    made = _causal(builder, x, block.conv)
    by = Arrangement(True, frames, 2, 2, "tyxc", first="alone")
    out = by.channels(builder.channels(made))
    is_even = block.repeats * builder.channels(x) == frames * 4 * out and out % block.repeats == 0
    check(name, ("channels that are repeated alike", is_even and block.repeats % frames == 0))
    repeated = Arrangement(True, frames, 2, 2, "tyxc", repeats=block.repeats, first="alone")
    return builder.rearrange(made, by, name, residual=x, residual_by=repeated)


def _downsample(builder: ProgramBuilder, block: Any, x: int) -> int:
    name, frames = builder.name(block), 2 if block.add_temporal_downsample else 1
    made = _causal(builder, x, block.conv)
    by = Arrangement(False, frames, 2, 2, "tyxc", first="alone")
    out = by.channels(builder.channels(made))
    is_even = block.group_size * out == frames * 4 * builder.channels(x) and block.group_size % frames == 0
    check(name, ("groups of the same size", is_even))
    averaged = Arrangement(False, frames, 2, 2, "tyxc", mean=block.group_size, first="alone")
    return builder.rearrange(made, by, name, residual=x, residual_by=averaged)


#: What lowers each block, by the name of its class.
BLOCKS: dict[str, Lower] = {
    "HunyuanVideo15ResnetBlock": _resnet,
    "HunyuanVideo15AttnBlock": _attention,
    "HunyuanVideo15Upsample": _upsample,
    "HunyuanVideo15Downsample": _downsample,
}
