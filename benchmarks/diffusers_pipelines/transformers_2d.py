"""Families of pictures whose denoisers are transformers: PixArt, Lumina, CogView and others.

Most get their text as random embeddings, so that no language model has to be made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import diffusers
import parts
import small_vaes
import torch
from case import Case
from parts import WIDTH, numbers
from recipes import family, mask
from small_vaes import kl, kl_like, make

#: For pipelines that take their text as numbers.
EMBEDDED: dict[str, Any] = {
    "prompt": None,
    "negative_prompt": None,
    "prompt_embeds": lambda: numbers(1, 8, WIDTH),
    "negative_prompt_embeds": lambda: numbers(1, 8, WIDTH, seed=1),
    "prompt_attention_mask": lambda: torch.ones(1, 8, dtype=torch.long),
    "negative_prompt_attention_mask": lambda: torch.ones(1, 8, dtype=torch.long),
    "use_resolution_binning": False,
    "guidance_scale": 3.0,
}

#: Without anything that reads text.
MUTE: dict[str, Any] = {
    "text_encoder": None,
    "tokenizer": None,
    "scheduler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(),
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
}

_PACKED: dict[str, Any] = {
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": (4, 4, 8),
}


def pixart(**config: Any) -> Any:
    """PixArt's transformer."""
    layout = {
        "sample_size": 8,
        "num_layers": 1,
        "patch_size": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "caption_channels": WIDTH,
        "cross_attention_dim": 32,
        "in_channels": 4,
        "out_channels": 8,
        "use_additional_conditions": False,
    }
    return make(diffusers.PixArtTransformer2DModel, **{**layout, **config})


def hunyuan(kind: Any, **config: Any) -> Any:
    """Hunyuan-DiT's transformer or its ControlNet."""
    common = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "hidden_size": 32,
        "mlp_ratio": 4.0,
        "cross_attention_dim": WIDTH,
        "cross_attention_dim_t5": WIDTH,
        "pooled_projection_dim": 16,
        "text_len": 8,
        "text_len_t5": 8,
        "activation_fn": "gelu-approximate",
    }
    return make(kind, **(common | config))


_HUNYUAN: dict[str, Any] = {
    "call": {
        **{f"{sign}prompt_embeds_2": (lambda: numbers(1, 8, WIDTH, seed=2)) for sign in ("", "negative_")},
        **{
            f"{sign}prompt_attention_mask_2": (lambda: torch.ones(1, 8, dtype=torch.long))
            for sign in ("", "negative_")
        },
    },
}


def z_image() -> Any:
    """Z-Image's transformer."""
    return make(
        diffusers.ZImageTransformer2DModel,
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )


_Z_TEXT: dict[str, Any] = {
    "prompt_embeds": lambda: [numbers(8, 16)],
    "negative_prompt_embeds": lambda: [numbers(8, 16, seed=1)],
}


def cogview4(**config: Any) -> Any:
    """CogView4's transformer."""
    return make(
        diffusers.CogView4Transformer2DModel,
        **{
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "text_embed_dim": WIDTH,
            "time_embed_dim": 8,
            "condition_dim": 4,
            "rope_axes_dim": (16, 16),
            **config,
        },
    )


def lumina2() -> Any:
    """Lumina 2's transformer."""
    return make(
        diffusers.Lumina2Transformer2DModel,
        sample_size=8,
        in_channels=16,
        hidden_size=32,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(8, 4, 4),
        axes_lens=(128, 32, 32),
        cap_feat_dim=WIDTH,
    )


def qwen() -> Any:
    """Qwen-Image's transformer."""
    return make(
        diffusers.QwenImageTransformer2DModel,
        in_channels=64,
        out_channels=16,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
    )


#: Family, classes, components beside :data:`MUTE`, arguments beside :data:`EMBEDDED`.
OTHERS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    (
        "PixArt",
        {
            "PixArtAlphaPipeline": {},
            "PixArtSigmaPipeline": {"vae": lambda: kl(scaling_factor=0.13025)},
            "PixArtSigmaPAGPipeline": {
                "vae": lambda: kl(scaling_factor=0.13025),
                "transformer": lambda: pixart(num_layers=2),
                "pag_applied_layers": ["blocks.1"],
            },
        },
        {
            "vae": lambda: kl(),
            "transformer": lambda: pixart(),
            "scheduler": lambda: diffusers.DDIMScheduler(),
        },
    ),
    (
        "AuraFlow",
        {"AuraFlowPipeline": {}},
        {
            "vae": lambda: kl(scaling_factor=0.13025),
            "transformer": lambda: make(
                diffusers.AuraFlowTransformer2DModel,
                sample_size=8,
                num_mmdit_layers=1,
                num_single_dit_layers=1,
                attention_head_dim=8,
                num_attention_heads=4,
                joint_attention_dim=WIDTH,
                caption_projection_dim=32,
                pos_embed_max_size=64,
            ),
        },
    ),
    (
        "Hunyuan-DiT",
        {
            "HunyuanDiTPipeline": _HUNYUAN,
            "HunyuanDiTPAGPipeline": {**_HUNYUAN, "pag_applied_layers": ["blocks.1"]},
            "HunyuanDiTControlNetPipeline": {
                **_HUNYUAN,
                "controlnet": lambda: hunyuan(diffusers.HunyuanDiT2DControlNetModel, transformer_num_layers=4),
            },
        },
        {
            "vae": lambda: kl(scaling_factor=0.13025),
            "text_encoder_2": None,
            "tokenizer_2": None,
            "transformer": lambda: hunyuan(diffusers.HunyuanDiT2DModel, num_layers=4),
            "scheduler": lambda: diffusers.DDPMScheduler(),
        },
    ),
    (
        "Lumina",
        {
            "Lumina2Pipeline": {},
            "Lumina2Pipeline two-levels": {"vae": lambda: kl(16, 2, scaling_factor=0.3611, shift_factor=0.1159)},
            "LuminaPipeline": {
                "vae": lambda: kl(scaling_factor=0.13025),
                "transformer": lambda: make(
                    diffusers.LuminaNextDiT2DModel,
                    sample_size=8,
                    in_channels=4,
                    hidden_size=48,
                    num_layers=1,
                    num_attention_heads=3,
                    num_kv_heads=1,
                    multiple_of=16,
                    cross_attention_dim=WIDTH,
                ),
            },
        },
        {"vae": lambda: kl_like(0.3611, 0.1159), "transformer": lambda: lumina2()},
    ),
    (
        "CogView",
        {
            "CogView4Pipeline": {},
            "CogView4ControlPipeline": {"transformer": lambda: cogview4(in_channels=32)},
            "CogView3PlusPipeline": {
                "transformer": lambda: make(
                    diffusers.CogView3PlusTransformer2DModel,
                    in_channels=16,
                    num_layers=1,
                    attention_head_dim=16,
                    num_attention_heads=2,
                    text_embed_dim=WIDTH,
                    time_embed_dim=8,
                    condition_dim=4,
                    pos_embed_max_size=16,
                    sample_size=8,
                ),
                "scheduler": lambda: diffusers.CogVideoXDDIMScheduler(),
            },
        },
        {"vae": lambda: kl_like(1.0, None), "transformer": lambda: cogview4()},
    ),
    (
        "Z-Image",
        {
            "ZImagePipeline": {"call": _Z_TEXT},
            "ZImageImg2ImgPipeline": {"call": _Z_TEXT},
            "ZImageInpaintPipeline": {"call": _Z_TEXT},
        },
        {"vae": lambda: kl_like(0.3611, 0.1159), "transformer": lambda: z_image()},
    ),
    (
        "Bria",
        {"BriaPipeline": {}},
        {
            "vae": lambda: kl(scaling_factor=0.13025),
            "transformer": lambda: make(diffusers.BriaTransformer2DModel, **_PACKED | {"in_channels": 16}),
        },
    ),
    (
        "Ovis-Image",
        {"OvisImagePipeline": {}},
        {
            "vae": lambda: kl_like(0.3611, 0.1159),
            "transformer": lambda: make(diffusers.OvisImageTransformer2DModel, **_PACKED),
        },
    ),
    (
        "PRX",
        {
            "PRXPipeline": {},
            "PRXPipeline deep-compression": {
                "vae": lambda: small_vaes.deep_compression(),
                "transformer": lambda: parts.prx(4),
            },
        },
        {
            "vae": lambda: kl_like(0.3611, 0.1159),
            "default_sample_size": 64,
            "transformer": lambda: parts.prx(16),
        },
    ),
    (
        "Flux 2",
        {"Flux2Pipeline": {}, "Flux2KleinPipeline": {}},
        {
            "vae": lambda: small_vaes.flux2(),
            "transformer": lambda: make(
                diffusers.Flux2Transformer2DModel,
                in_channels=128,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=WIDTH,
                axes_dims_rope=(4, 4, 4, 4),
            ),
        },
    ),
    (
        "Qwen-Image",
        {"QwenImagePipeline": {}, "QwenImageImg2ImgPipeline": {}, "QwenImageInpaintPipeline": {}},
        {"vae": lambda: small_vaes.qwen_image(), "transformer": lambda: qwen()},
    ),
    (
        "Sana",
        {
            "SanaPipeline": {},
            "SanaPAGPipeline": {"pag_applied_layers": ["blocks.0"]},
            "SanaSprintPipeline": {
                "transformer": lambda: parts.sana(guidance_embeds=True),
                "scheduler": lambda: diffusers.SCMScheduler(),
            },
        },
        {"vae": lambda: small_vaes.deep_compression(), "transformer": lambda: parts.sana()},
    ),
)


def cases() -> Iterator[Case]:
    """All of them."""
    for name, classes, components in OTHERS:
        arguments = {**EMBEDDED, "control_mask": lambda: mask()}
        merged = {title: {**own, "call": {**arguments, **own.get("call", {})}} for title, own in classes.items()}
        yield from family(name, merged, {**MUTE, **components})
    yield from family(
        "DiT",
        {"DiTPipeline": {"call": {"class_labels": [1]}}},
        {
            "vae": lambda: kl(),
            "transformer": lambda: make(
                diffusers.DiTTransformer2DModel,
                sample_size=8,
                num_layers=1,
                patch_size=2,
                attention_head_dim=8,
                num_attention_heads=2,
                in_channels=4,
                out_channels=8,
                num_embeds_ada_norm=1000,
            ),
            "scheduler": lambda: diffusers.DDIMScheduler(),
        },
    )
