"""Lower AutoencoderKLHunyuanImage: pictures, whose sizes change between channels and positions.

A convolution's channels become positions, or the reverse; its input, repeated or averaged, takes the same way and
is added.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .builder import Lower, ProgramBuilder, check
from .module_structure import kind
from .rearranging import IN_PLACE, Arrangement
from .style import Style

#: The class of VAE.
NAME = "AutoencoderKLHunyuanImage"

_UP, _DOWN = (Arrangement(goes_up, 1, 2, 2, "tyxc") for goes_up in (True, False))


def decoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``decode``."""
    part = vae.decoder
    check(builder.name(part), ("diffusers' decoder", kind(part) == "HunyuanImageDecoder2D"))
    builder.is_at_once = True
    z = builder.input(part.conv_in.in_channels)
    x, repeated = builder.convolve(z, part.conv_in), replace(IN_PLACE, repeats=part.repeat)
    x = builder.rearrange(x, IN_PLACE, builder.name(part.conv_in), residual=z, residual_by=repeated)
    _STYLE.decode(builder, part, x)


def encoder(builder: ProgramBuilder, vae: Any) -> None:
    """Lower ``encode``."""
    part = vae.encoder
    check(builder.name(part), ("diffusers' encoder", kind(part) == "HunyuanImageEncoder2D"))
    builder.is_at_once = True
    x = builder.convolve(builder.input(part.conv_in.in_channels), part.conv_in)
    x, made = _STYLE.encode(builder, part, x)
    averaged = Arrangement(goes_up=False, mean=part.group_size)
    builder.rearrange(made, IN_PLACE, builder.name(part.conv_out), residual=x, residual_by=averaged)


_STYLE = Style(ProgramBuilder.convolve, ProgramBuilder.norm)


def _resnet(builder: ProgramBuilder, block: Any, x: int) -> int:
    check(
        builder.name(block),
        ("as many channels in as out", block.conv_shortcut is None),
        ("convolutions with stride 1", set(block.conv1.stride) == {1}),
    )
    return _STYLE.resnet(builder, block, x, None)


def _attention(builder: ProgramBuilder, block: Any, x: int) -> int:
    layers = (block.to_q, block.to_k, block.to_v, block.proj)
    query, key, value, out = (builder.shortcut_weights(layer) for layer in layers)
    norm = builder.norm(block.norm, x)
    return builder.attend(x, norm=norm, heads=1, query=query, key=key, value=value, out=out)


def _upsample(builder: ProgramBuilder, block: Any, x: int) -> int:
    made = builder.convolve(x, block.conv)
    repeated = replace(_UP, repeats=block.repeats)
    return builder.rearrange(made, _UP, builder.name(block), residual=x, residual_by=repeated)


def _downsample(builder: ProgramBuilder, block: Any, x: int) -> int:
    made = builder.convolve(x, block.conv)
    averaged = replace(_DOWN, mean=block.group_size)
    return builder.rearrange(made, _DOWN, builder.name(block), residual=x, residual_by=averaged)


#: What lowers each block, by the name of its class.
BLOCKS: dict[str, Lower] = {
    "HunyuanImageResnetBlock": _resnet,
    "HunyuanImageAttentionBlock": _attention,
    "HunyuanImageUpsample": _upsample,
    "HunyuanImageDownsample": _downsample,
}
