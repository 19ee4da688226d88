"""Lower diffusers' modules to programs, one function for each block type.

Each function is registered under the name of its block's class; a new VAE needs a few more of them.  A function
raises :class:`CannotLower` for everything that it does not support (an option that the VAEs here never set, a
replaced attention processor, a layer that an adapter wrapped), and the module then runs its own forward.
Class names must match exactly, and only classes of torch and diffusers match: a subclass may have another
``forward``, and adapters also name their layers ``Conv2d``.

No weight is read here, so modules on the ``meta`` device can be lowered, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ...errors import CannotLower
from .. import tiny
from . import (
    allegro,
    cogvideox,
    cosmos,
    deep_compression,
    hunyuan_image,
    hunyuan_video,
    hunyuan_video_15,
    kvae,
    kvae_video,
    ltx,
    magvit,
    mochi,
    temporal_decoder,
    wan,
)
from .builder import ACTIVATIONS, Lower, ProgramBuilder, check, drops_nothing, pointwise_of
from .module_structure import kind, why_replaced, why_touched
from .ops import Padding
from .program import Program, Task


def lower(module: nn.Module, task: Task) -> Program:
    """Return the program of a VAE's decoder, latents (C, h, w) → picture, or encoder, picture → moments or latents.

    Programs of video VAEs take films (C, T, H, W); see :attr:`.Program.is_film`.

    They compute the same as ``module.decode`` and ``module.encode``, including quant convolutions, but without
    slicing and tiling.

    Raises:
        CannotLower: when the module has a part that cannot be lowered; the error names it.
    """
    whole = _WHOLE.get((kind(module), task))
    if whole is None:
        known = ", ".join(sorted({name for name, _ in _WHOLE}))
        raise CannotLower("cannot lower", saw=kind(module), expected=f"one of {known}")
    reason = why_touched(module, task)
    if reason is not None:
        raise CannotLower(reason)
    builder = ProgramBuilder(module, _BLOCKS)
    try:
        whole(builder, module)
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # of unexpected modules
        raise CannotLower(
            "cannot lower", saw=str(error), expected=f"{kind(module)} as diffusers makes it"
        ) from error
    return builder.program(task, is_film=kind(module) in _FILMS)


def class_of(name: str) -> Any:
    """Return the class of this name: diffusers', one of :mod:`hybridge.engine.tiny`, or None if neither has it."""
    import diffusers

    return getattr(diffusers, name, None) or getattr(tiny, name, None)


def skeleton(class_name: str, config: Mapping[str, Any]) -> nn.Module:
    """Return a module of this class and ``config.json`` on the ``meta`` device, without weights."""
    made = class_of(class_name)  # imported here: constants of its file would stay on `meta` for good
    with torch.device("meta"):
        module: nn.Module = made.from_config(dict(config)).eval()
    return nn.Module.to(module, "meta")  # with what is made of such constants


class _EmptyOnMeta(TorchFunctionMode):
    """Puts tensors without contents, as weights are before they are loaded, on the ``meta`` device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return func(*args, **({"device": "meta", **kwargs} if func is torch.empty else kwargs))


def constants_of(class_name: str, config: Mapping[str, Any]) -> nn.Module:
    """Return the same module with the constants that its code computes and its weights do not have."""
    with _EmptyOnMeta():
        module: nn.Module = class_of(class_name).from_config(dict(config)).eval()
    return module


# --- AutoencoderKL and AutoencoderKLFlux2: diffusers.models.autoencoders.vae.Encoder and Decoder ------------------


def _kl_decoder(builder: ProgramBuilder, vae: Any) -> None:
    decoder = vae.decoder
    check("decoder", ("diffusers' Decoder", kind(decoder) == "Decoder"))
    x = builder.input((decoder.conv_in if vae.post_quant_conv is None else vae.post_quant_conv).in_channels)
    if vae.post_quant_conv is not None:
        x = builder.convolve(x, vae.post_quant_conv)
    x = builder.convolve(x, decoder.conv_in)
    for block in (decoder.mid_block, *decoder.up_blocks):
        x = builder.block(block, x)
    _norm_act_conv(builder, x, decoder.conv_norm_out, decoder.conv_act, decoder.conv_out)


def _kl_encoder(builder: ProgramBuilder, vae: Any) -> None:
    encoder = vae.encoder
    check("encoder", ("diffusers' Encoder", kind(encoder) == "Encoder"))
    x = builder.convolve(builder.input(encoder.conv_in.in_channels), encoder.conv_in)
    for block in (*encoder.down_blocks, encoder.mid_block):
        x = builder.block(block, x)
    x = _norm_act_conv(builder, x, encoder.conv_norm_out, encoder.conv_act, encoder.conv_out)
    if vae.quant_conv is not None:
        builder.convolve(x, vae.quant_conv)


def _kl_encoder_of_films(builder: ProgramBuilder, vae: Any) -> None:
    builder.is_at_once = builder.has_frames_in_batch = True
    _kl_encoder(builder, vae)


def _norm_act_conv(builder: ProgramBuilder, x: int, norm: Any, activation: Any, conv: Any, **around: Any) -> int:
    return builder.convolve(x, conv, norm=builder.norm(norm, x), entering=pointwise_of(activation), **around)


def _blocks_then_resamplers(builder: ProgramBuilder, block: Any, x: int) -> int:
    resamplers = getattr(block, "upsamplers", None) or getattr(block, "downsamplers", None) or ()
    for part in (*block.resnets, *resamplers):
        x = builder.block(part, x)
    return x


def _mid_block(builder: ProgramBuilder, block: Any, x: int) -> int:
    x = builder.block(block.resnets[0], x)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            x = builder.block(attention, x)
        x = builder.block(resnet, x)
    return x


def _resnet(builder: ProgramBuilder, block: Any, x: int) -> int:
    check(
        builder.name(block),
        ("no time embedding", block.time_emb_proj is None and block.time_embedding_norm != "scale_shift"),
        ("no resampling inside", block.upsample is None and block.downsample is None),
        ("no dropout", drops_nothing(block.dropout)),
        ("convolutions with stride 1", set(block.conv1.stride) == {1}),
        ("no scale on the sum", block.output_scale_factor == 1),
    )
    hidden = _norm_act_conv(builder, x, block.norm1, block.nonlinearity, block.conv1)
    shortcut = None if block.conv_shortcut is None else builder.shortcut_weights(block.conv_shortcut)
    return _norm_act_conv(
        builder, hidden, block.norm2, block.nonlinearity, block.conv2, residual=x, shortcut=shortcut
    )


def _upsample(builder: ProgramBuilder, block: Any, x: int) -> int:
    check(
        builder.name(block),
        ("nearest ×2, then a convolution", block.use_conv and block.interpolate and not block.use_conv_transpose),
        ("no norm", block.norm is None),
    )
    conv = block.conv if block.name == "conv" else block.Conv2d_0
    check(builder.name(block), ("as many channels as it says", block.channels == conv.in_channels))
    return _doubled(builder, x, conv)


def _doubled(builder: ProgramBuilder, x: int, conv: Any) -> int:
    check(
        builder.name(conv),
        (
            "a 3×3 convolution with padding 1 and stride 1 after ×2",
            (set(conv.kernel_size), set(conv.padding), set(conv.stride)) == ({3}, {1}, {1}),
        ),
    )
    return builder.convolve(x, conv, doubled=True)


def _downsample(builder: ProgramBuilder, block: Any, x: int) -> int:
    check(
        builder.name(block),
        ("a convolution", block.use_conv),
        ("no norm", block.norm is None),
        ("stride 2", set(block.conv.stride) == {2}),
        ("as many channels as it says", block.channels == block.conv.in_channels),
    )
    if block.padding == 0:  # diffusers then pads one row below and one column to the right
        return builder.convolve(x, block.conv, padding=Padding(bottom=1, right=1))
    return builder.convolve(x, block.conv)


#: Attention processors that compute softmax(q·kᵀ/√d)·v and nothing else.
_PLAIN_PROCESSORS = {"AttnProcessor", "AttnProcessor2_0", "XFormersAttnProcessor"}


#: Processors that scale by 1/√d, whatever the module's ``scale`` is.
_SCALES_ITSELF = {"AttnProcessor2_0"}


def _attention(builder: ProgramBuilder, block: Any, x: int) -> int:
    processor = kind(block.processor)
    layers = [builder.linear_weights(layer) for layer in (block.to_q, block.to_k, block.to_v, block.to_out[0])]
    query, key, value, out = layers
    inner = query.out_channels
    check(
        builder.name(block),
        (f"a plain attention processor, not {processor}", processor in _PLAIN_PROCESSORS),
        ("a processor as its class is", why_replaced(block.processor) is None),
        ("a group norm and no other", block.group_norm is not None and block.spatial_norm is None),
        ("no norm on queries and keys", block.norm_q is None and block.norm_k is None),
        ("no cross attention", not block.is_cross_attention and block.added_kv_proj_dim is None),
        ("its input added, unscaled", block.residual_connection and block.rescale_output_factor == 1),
        ("an output and a dropout of none", len(block.to_out) == 2 and drops_nothing(block.to_out[1])),
        ("queries, keys and values alike", inner == key.out_channels == value.out_channels == out.in_channels),
        ("heads of the same size", inner % block.heads == 0),
        ("1/√d as scale", processor in _SCALES_ITSELF or math.isclose(block.scale, (inner // block.heads) ** -0.5)),
    )
    return builder.attend(
        x, norm=builder.norm(block.group_norm, x), heads=block.heads, query=query, key=key, value=value, out=out
    )


# --- AutoencoderTiny: a sequence of convolutions, activations, ×2 and small residual blocks -----------------------


def _tiny_decoder(builder: ProgramBuilder, vae: Any) -> None:
    decoder = vae.decoder
    check("decoder", ("diffusers' DecoderTiny", kind(decoder) == "DecoderTiny"))
    first, *rest = decoder.layers
    x = builder.convolve(builder.input(first.in_channels), first, entering="soft_clamp")
    builder.leave(_sequence(builder, rest, x), "to_signed")


def _tiny_encoder(builder: ProgramBuilder, vae: Any) -> None:
    encoder = vae.encoder
    check("encoder", ("diffusers' EncoderTiny", kind(encoder) == "EncoderTiny"))
    first, *rest = encoder.layers
    x = builder.convolve(builder.input(first.in_channels), first, entering="from_signed")
    _sequence(builder, rest, x)


def _sequence(builder: ProgramBuilder, layers: Iterable[Any], x: int) -> int:
    doubled = False
    for layer in layers:
        is_called = kind(layer)
        if is_called == "Upsample":
            is_double = layer.mode == "nearest" and layer.size is None and layer.scale_factor == 2
            check(builder.name(layer), ("nearest ×2, once", is_double and not doubled))
            doubled = True
        elif is_called == "Conv2d":
            x = _doubled(builder, x, layer) if doubled else builder.convolve(x, layer)
            doubled = False
        elif is_called in ACTIVATIONS:
            builder.leave(x, pointwise_of(layer))
        else:
            x = builder.block(layer, x)
        check(builder.name(layer), ("a convolution after ×2", not doubled or is_called == "Upsample"))
    return x


def _tiny_block(builder: ProgramBuilder, block: Any, x: int) -> int:
    shortcut = None if kind(block.skip) == "Identity" else builder.shortcut_weights(block.skip)
    check(
        builder.name(block),
        ("convolutions with stride 1", all(set(conv.stride) == {1} for conv in block.conv[::2])),
    )
    first, activation, second, activation_too, third = block.conv
    hidden = builder.convolve(x, first, leaving=pointwise_of(activation))
    hidden = builder.convolve(hidden, second, leaving=pointwise_of(activation_too))
    return builder.convolve(hidden, third, residual=x, shortcut=shortcut, leaving=pointwise_of(block.fuse))


_WHOLE: dict[tuple[str, Task], Callable[[ProgramBuilder, Any], None]] = {
    ("AutoencoderKL", "decode"): _kl_decoder,
    ("AutoencoderKL", "encode"): _kl_encoder,
    ("AutoencoderKLFlux2", "decode"): _kl_decoder,
    ("AutoencoderKLFlux2", "encode"): _kl_encoder,
    ("AutoencoderTiny", "decode"): _tiny_decoder,
    ("AutoencoderTiny", "encode"): _tiny_encoder,
    **{(name, "decode"): wan.decoder for name in wan.PREFIXES},
    **{(name, "encode"): wan.encoder for name in wan.PREFIXES},
    (hunyuan_image.NAME, "decode"): hunyuan_image.decoder,
    (hunyuan_image.NAME, "encode"): hunyuan_image.encoder,
    (cosmos.NAME, "decode"): cosmos.decoder,
    (cosmos.NAME, "encode"): cosmos.encoder,
    (deep_compression.NAME, "decode"): deep_compression.decoder,
    (deep_compression.NAME, "encode"): deep_compression.encoder,
    (kvae.NAME, "decode"): kvae.decoder,
    (kvae.NAME, "encode"): kvae.encoder,
    (allegro.NAME, "decode"): allegro.decoder,
    (allegro.NAME, "encode"): allegro.encoder,
    (kvae_video.NAME, "decode"): kvae_video.decoder,
    (kvae_video.NAME, "encode"): kvae_video.encoder,
    (hunyuan_video.NAME, "decode"): hunyuan_video.decoder,
    (hunyuan_video.NAME, "encode"): hunyuan_video.encoder,
    (hunyuan_video_15.NAME, "decode"): hunyuan_video_15.decoder,
    (hunyuan_video_15.NAME, "encode"): hunyuan_video_15.encoder,
    (magvit.NAME, "decode"): magvit.decoder,
    (magvit.NAME, "encode"): magvit.encoder,
    (cogvideox.NAME, "decode"): cogvideox.decoder,
    (cogvideox.NAME, "encode"): cogvideox.encoder,
    (mochi.NAME, "decode"): mochi.decoder,
    (mochi.NAME, "encode"): mochi.encoder,
    (temporal_decoder.NAME, "decode"): temporal_decoder.decoder,
    (temporal_decoder.NAME, "encode"): _kl_encoder_of_films,
    **{(name, "decode"): ltx.decoder for name in ltx.PREFIXES},
    **{(name, "encode"): ltx.encoder for name in ltx.PREFIXES},
}

#: The classes whose values have frames.
_FILMS = {
    *(*wan.PREFIXES, *ltx.PREFIXES, hunyuan_video.NAME, hunyuan_video_15.NAME, magvit.NAME),
    *(cogvideox.NAME, cosmos.NAME, mochi.NAME, temporal_decoder.NAME, kvae_video.NAME, allegro.NAME),
}

_BLOCKS: dict[str, Lower] = {
    "UNetMidBlock2D": _mid_block,
    "UpDecoderBlock2D": _blocks_then_resamplers,
    "DownEncoderBlock2D": _blocks_then_resamplers,
    "ResnetBlock2D": _resnet,
    "Attention": _attention,
    "Upsample2D": _upsample,
    "Downsample2D": _downsample,
    "AutoencoderTinyBlock": _tiny_block,
    "HunyuanImageMidBlock": _mid_block,
    "HunyuanVideoMidBlock3D": _mid_block,
    "HunyuanVideoUpBlock3D": _blocks_then_resamplers,
    "HunyuanVideoDownBlock3D": _blocks_then_resamplers,
    "HunyuanVideo15MidBlock": _mid_block,
    "HunyuanVideo15UpBlock3D": _blocks_then_resamplers,
    "HunyuanVideo15DownBlock3D": _blocks_then_resamplers,
    **wan.BLOCKS,
    **hunyuan_video_15.BLOCKS,
    **ltx.BLOCKS,
    **magvit.BLOCKS,
    **cogvideox.BLOCKS,
    **mochi.BLOCKS,
    **temporal_decoder.BLOCKS,
    **hunyuan_image.BLOCKS,
    **kvae.BLOCKS,
    **kvae_video.BLOCKS,
    **allegro.BLOCKS,
    **cosmos.BLOCKS,
    **deep_compression.BLOCKS,
    **hunyuan_video.BLOCKS,
}
