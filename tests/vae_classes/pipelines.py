"""Small pipelines around VAEs that ``benchmarks/diffusers_pipelines`` has none for, without text encoders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import parts
import small_vaes
import torch
from case import Case
from recipes import family, picture
from small_vaes import make
from text_pipelines import denoisers
from text_pipelines import video_denoisers as small
from transformers_2d import EMBEDDED, MUTE

WIDTH = denoisers.WIDTH


def _mask() -> torch.Tensor:
    return torch.ones(1, 8, dtype=torch.bool)


def _twice(name: str, make_value: Callable[[int], Any]) -> dict[str, Any]:
    return {name: lambda: make_value(0), f"negative_{name}": lambda: make_value(1)}


def _embeds(seed: int, width: int = WIDTH) -> torch.Tensor:
    return parts.numbers(1, 8, width, seed=seed)


def _sana_video(channels: int = 16) -> Any:
    return make(
        diffusers.SanaVideoTransformer3DModel,
        in_channels=channels,
        out_channels=channels,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=WIDTH,
        sample_size=8,
        rope_max_seq_len=32,
    )


def _refiner_transformer() -> Any:
    return make(
        diffusers.HunyuanImageTransformer2DModel,
        in_channels=32,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=(1, 1, 1),
        guidance_embeds=True,
        text_embed_dim=WIDTH,
        rope_axes_dim=(4, 4, 4),
    )


def _kandinsky_sr() -> dict[str, Any]:
    transformer = make(
        diffusers.Kandinsky6SRTransformer3DModel,
        in_visual_dim=8,
        out_visual_dim=8,
        time_dim=32,
        model_dim=48,
        ff_dim=64,
        num_visual_blocks=1,
        axes_dims=(8, 8, 8),
        tile_sizes=((128, 128),),
    )
    return {"vae": small_vaes.kandinsky6_sr(), "transformer": transformer, "latent_upscaler": None}


_CLIP: dict[str, Any] = {"num_frames": 9, "height": 32, "width": 32}

#: Class, components beside MUTE, and arguments of the call beside EMBEDDED.
_ROWS: tuple[tuple[str, Callable[[], dict[str, Any]], dict[str, Any]], ...] = (
    ("EasyAnimatePipeline", small.easyanimate, {**_CLIP, "num_frames": 5, "guidance_scale": 1.0}),
    ("CosmosTextToWorldPipeline", small.cosmos, _CLIP),
    (
        "CosmosVideoToWorldPipeline",
        lambda: {**small.cosmos(), "transformer": small._cosmos_transformer(4, mask=1)},
        {**_CLIP, "video": None},
    ),
    (
        "HunyuanVideo15Pipeline",
        small.hunyuan_video_15,
        {
            **_CLIP,
            "num_frames": 5,
            **_twice("prompt_embeds_mask", lambda _: _mask()),
            **_twice("prompt_embeds_2", _embeds),
            **_twice("prompt_embeds_mask_2", lambda _: _mask()),
        },
    ),
    (
        "LTX2Pipeline",
        small.ltx2,
        {**_CLIP, "num_frames": 5, **_twice("prompt_embeds", lambda n: _embeds(n, 4 * WIDTH))},
    ),
    (
        "LTX2ImageToVideoPipeline",
        small.ltx2,
        {**_CLIP, "num_frames": 5, "image_crf": 0, **_twice("prompt_embeds", lambda n: _embeds(n, 4 * WIDTH))},
    ),
    ("LTXImageToVideoPipeline", denoisers.ltx, _CLIP),
    ("SanaVideoPipeline", lambda: {"vae": small_vaes.wan(), "transformer": _sana_video()}, {**_CLIP, "frames": 9}),
    (
        "HunyuanImageRefinerPipeline",
        lambda: {
            "vae": small_vaes.hunyuan_image_refiner(),
            "transformer": _refiner_transformer(),
            "guider": diffusers.AdaptiveProjectedMixGuidance(enabled=False),
        },
        {**_CLIP, "prompt_embeds_mask": _mask, "negative_prompt_embeds": None, "image": lambda: picture(side=32)},
    ),
    (
        "Kandinsky6SRPipeline",
        _kandinsky_sr,
        {"video": lambda: [picture(seed, side=64) for seed in range(5)], "resolution_scale": 2},
    ),
    (
        "WanImageToVideoPipeline",
        lambda: {**denoisers.wan(), "image_processor": None, "image_encoder": None, "expand_timesteps": True},
        _CLIP,
    ),
)


def cases() -> Iterator[Case]:
    """All of them."""
    for name, components, arguments in _ROWS:
        made = {**MUTE, **{f"{part}_2": None for part in ("text_encoder", "tokenizer")}}
        whole = components()
        made |= {part: (lambda part=part, components=components: components()[part]) for part in whole}
        yield from family(name, {name: {}}, made, {**EMBEDDED, "safety_checker": None, **arguments})
