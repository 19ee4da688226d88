"""Lower AutoencoderKLTemporalDecoder, Stable Video Diffusion's: blocks of pictures, one along time after each.

The statistics of norms along time are over all frames, so a film depends on how many are decoded at once.
Convolutions along time also see the frame after, and zeros outside of the film.
The encoder is that of pictures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .builder import Lower, ProgramBuilder, check, drops_nothing
from .layers import Norm
from .module_structure import kind
from .ops import InTime, Padding

#: The class of VAE.
NAME = "AutoencoderKLTemporalDecoder"


def decoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``decode``."""
    part = vae.decoder
    check(builder.name(part), ("diffusers' decoder", kind(part) == "TemporalDecoder"))
    check(builder.name(part.conv_act), ("SiLU", kind(part.conv_act) == "SiLU"))
    builder.is_at_once = builder.has_frames_in_batch = True
    x = builder.convolve(builder.input(part.conv_in.in_channels), part.conv_in)
    for block in (part.mid_block, *part.up_blocks):
        x = builder.block(block, x)
    x = builder.convolve(x, part.conv_out, norm=builder.norm(part.conv_norm_out, x), entering="silu")
    _along_time(builder, x, part.time_conv_out)


def _along_time(builder: ProgramBuilder, x: int, conv: Any, scaled_by: str | None = None, **around: Any) -> int:
    weights = builder.conv3d_weights(conv)
    geometry = conv.kernel_size, conv.padding, set(conv.stride)
    check(weights.name, ("three frames, padded with zeros", geometry == ((3, 1, 1), (1, 0, 0), {1})))
    rule = InTime(3, ahead=1)
    return builder.convolve_with(x, replace(weights, scaled_by=scaled_by), 1, Padding(), in_time=rule, **around)


def _over_the_film(builder: ProgramBuilder, norm: Any, x: int) -> Norm:
    return replace(builder.norm(norm, x), over="film")


def _resnet(builder: ProgramBuilder, block: Any, x: int) -> int:
    x = builder.block(block.spatial_res_block, x)
    part, mixer = block.temporal_res_block, block.time_mixer
    # Of its input s and what it adds, h, the mixer makes (1 - a)·s + a·(s + h) = s + a·h; a = sigmoid(mix_factor).
    check(
        builder.name(mixer),
        ("a learned share of what is added", mixer.merge_strategy == "learned"),
        ("in this order", mixer.switch_spatial_to_temporal_mix is True),
        ("one number", mixer._parameters.get("mix_factor") is mixer.mix_factor and mixer.mix_factor.numel() == 1),
    )
    check(
        builder.name(part),
        ("a known block", kind(part) == "TemporalResnetBlock"),
        ("SiLU", kind(part.nonlinearity) == "SiLU"),
        ("no time embedding", part.time_emb_proj is None),
        ("no dropout", drops_nothing(part.dropout)),
        ("as many channels in as out", part.conv_shortcut is None),
    )
    hidden = _along_time(builder, x, part.conv1, norm=_over_the_film(builder, part.norm1, x), entering="silu")
    around = {"norm": _over_the_film(builder, part.norm2, hidden), "entering": "silu", "residual": x}
    return _along_time(builder, hidden, part.conv2, builder.name(mixer), **around)


def _mid_block(builder: ProgramBuilder, block: Any, x: int) -> int:
    x = builder.block(block.resnets[0], x)
    for resnet, attention in zip(block.resnets[1:], block.attentions, strict=False):  # as the class does
        x = builder.block(resnet, builder.block(attention, x))
    return x


def _up_block(builder: ProgramBuilder, block: Any, x: int) -> int:
    for part in (*block.resnets, *(block.upsamplers or ())):
        x = builder.block(part, x)
    return x


#: What lowers each block, by the name of its class.
BLOCKS: dict[str, Lower] = {
    "MidBlockTemporalDecoder": _mid_block,
    "UpBlockTemporalDecoder": _up_block,
    "SpatioTemporalResBlock": _resnet,
}
