"""Families with a way of their own: HiDream, LongCat, OmniGen, LEdits++, UniDiffuser, Versatile Diffusion, Mochi,
Allegro, HunyuanImage and HunyuanVideo."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import diffusers
import parts
import small_vaes
import torch
from case import Case
from parts import WIDTH, clip, clip_processor, clip_tokenizer, clip_vision, numbers, seeded
from recipes import family, picture
from small_vaes import kl, kl_like, make
from stable_diffusion import SD, SDXL
from transformers_2d import EMBEDDED, MUTE

#: The width of a denoiser, in two heads.
_HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16}


def hidream() -> Any:
    """HiDream's transformer."""
    return make(
        diffusers.HiDreamImageTransformer2DModel,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        caption_channels=[WIDTH, WIDTH],
        text_emb_dim=2 * WIDTH,
        num_routed_experts=2,
        axes_dims_rope=(8, 4, 4),
        max_resolution=(8, 8),
        llama_layers=[0, 1],
        **_HEADS,
    )


_HIDREAM_TEXT: dict[str, Any] = {
    f"{sign}{name}": (lambda shape=shape, seed=seed: numbers(*shape, seed=seed))
    for seed, sign in enumerate(("", "negative_"))
    for name, shape in (
        ("prompt_embeds_t5", (1, 8, WIDTH)),
        ("prompt_embeds_llama3", (2, 1, 8, WIDTH)),
        ("pooled_prompt_embeds", (1, 2 * WIDTH)),
    )
}


def longcat() -> Any:
    """LongCat-Image's transformer."""
    return make(
        diffusers.LongCatImageTransformer2DModel,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=[4, 4, 8],
        **_HEADS,
    )


def omnigen() -> Any:
    """OmniGen's transformer, which reads the prompt itself."""
    words = len(parts.t5_tokenizer())
    return make(
        diffusers.OmniGenTransformer2DModel,
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=64,
        num_layers=1,
        pad_token_id=0,
        vocab_size=words,
        max_position_embeddings=1000,
        original_max_position_embeddings=500,
        pos_embed_max_size=16,
        time_step_dim=16,
        rope_scaling={"long_factor": [1.0] * 8, "short_factor": [1.0] * 8},
    )


def _unidiffuser(name: str, **config: Any) -> Any:
    from diffusers.pipelines.deprecated.unidiffuser import UniDiffuserModel, UniDiffuserTextDecoder

    return make({"unet": UniDiffuserModel, "text": UniDiffuserTextDecoder}[name], **config)


UNIDIFFUSER: dict[str, Any] = {
    "vae": lambda: kl(),
    "text_encoder": lambda: clip(),
    "clip_tokenizer": lambda: clip_tokenizer(),
    "image_encoder": lambda: clip_vision(),
    "clip_image_processor": lambda: clip_processor(),
    "text_tokenizer": lambda: clip_tokenizer(),
    "scheduler": lambda: diffusers.DPMSolverMultistepScheduler(solver_order=3),
    "text_decoder": lambda: _unidiffuser(
        "text",
        prefix_length=parts.TOKENS,
        prefix_inner_dim=WIDTH,
        prefix_hidden_dim=WIDTH,
        vocab_size=len(clip_tokenizer()),
        n_positions=128,
        n_embd=WIDTH,
        n_layer=1,
        n_head=4,
    ),
    "unet": lambda: _unidiffuser(
        "unet",
        text_dim=WIDTH,
        clip_img_dim=WIDTH,
        num_text_tokens=parts.TOKENS,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        sample_size=8,
        patch_size=2,
        norm_num_groups=8,
        activation_fn="gelu",
        block_type="unidiffuser",
        norm_type="layer_norm",
    ),
}


def _small(case: Case) -> Case:
    """HiDream brings every size to about 1024²; here to the side of all others."""

    def inputs(pipe: Any) -> dict[str, Any]:
        pipe.default_sample_size = parts.SIDE // 8
        return case.inputs(pipe)

    return replace(case, inputs=inputs)


def _inverted(case: Case) -> Case:
    """LEdits++ edits a picture that it has inverted before, with the VAE."""

    def inputs(pipe: Any) -> dict[str, Any]:
        asked = case.inputs(pipe)
        torch.manual_seed(0)
        pipe.invert(picture(), num_inversion_steps=3, skip=0.2, generator=seeded())
        return asked

    return replace(case, inputs=inputs)


def allegro_vae() -> Any:
    """Allegro's, with tiles of the size of the pictures."""
    vae = small_vaes.allegro(sample_size=128)
    vae.enable_tiling()  # diffusers has no other way for it
    return vae


#: Family, classes, components beside MUTE, arguments beside EMBEDDED.
VIDEOS: tuple[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]], ...] = (
    (
        "Mochi",
        {"MochiPipeline": {}},
        {
            "vae": small_vaes.mochi,
            "transformer": lambda: make(
                diffusers.MochiTransformer3DModel,
                num_layers=2,
                in_channels=12,
                pooled_projection_dim=16,
                text_embed_dim=WIDTH,
                time_embed_dim=8,
                max_sequence_length=8,
                num_attention_heads=2,
                attention_head_dim=16,
            ),
        },
        {"num_frames": 7},
    ),
    (
        "Allegro",
        {"AllegroPipeline": {}},
        {
            "vae": lambda: allegro_vae(),
            "scheduler": lambda: diffusers.DDIMScheduler(),
            "transformer": lambda: make(
                diffusers.AllegroTransformer3DModel,
                num_attention_heads=2,
                attention_head_dim=12,
                in_channels=4,
                out_channels=4,
                num_layers=1,
                cross_attention_dim=24,
                sample_width=8,
                sample_height=8,
                sample_frames=8,
                caption_channels=WIDTH,
            ),
        },
        {"num_frames": 24, "height": 128, "width": 128},
    ),
    (
        "HunyuanImage",
        {"HunyuanImagePipeline": {}},
        {
            "vae": lambda: small_vaes.hunyuan_image(latent_channels=32, block_out_channels=(64,) * 4),
            "text_encoder_2": None,
            "tokenizer_2": None,
            "guider": lambda: diffusers.guiders.AdaptiveProjectedMixGuidance(enabled=False),
            "ocr_guider": lambda: diffusers.guiders.AdaptiveProjectedMixGuidance(enabled=False),
            "transformer": lambda: make(
                diffusers.HunyuanImageTransformer2DModel,
                in_channels=32,
                out_channels=32,
                num_layers=1,
                num_single_layers=1,
                num_refiner_layers=1,
                text_embed_dim=WIDTH,
                text_embed_2_dim=WIDTH,
                rope_axes_dim=(8, 8),
                num_attention_heads=2,
                attention_head_dim=16,
            ),
        },
        {
            "negative_prompt_embeds": None,
            "prompt_embeds_mask": lambda: numbers(1, 8) * 0 + 1,
            "prompt_embeds_2": lambda: numbers(1, 8, WIDTH, seed=2),
            "prompt_embeds_mask_2": lambda: numbers(1, 8) * 0 + 1,
        },
    ),
    (
        "HunyuanVideo",
        {"HunyuanVideoPipeline": {}},
        {
            "vae": lambda: small_vaes.hunyuan_video(latent_channels=4),
            "text_encoder_2": None,
            "tokenizer_2": None,
            "transformer": lambda: make(
                diffusers.HunyuanVideoTransformer3DModel,
                in_channels=4,
                out_channels=4,
                num_layers=1,
                num_single_layers=1,
                num_refiner_layers=1,
                text_embed_dim=WIDTH,
                pooled_projection_dim=WIDTH,
                rope_axes_dim=(4, 4, 8),
                num_attention_heads=2,
                attention_head_dim=16,
            ),
        },
        {"num_frames": 5, "pooled_prompt_embeds": lambda: numbers(1, WIDTH)},
    ),
)


def cases() -> Iterator[Case]:
    """All of them."""
    yield from map(
        _small,
        family(
            "HiDream",
            {"HiDreamImagePipeline": {"call": {**EMBEDDED, **_HIDREAM_TEXT}}},
            {
                **MUTE,
                "vae": lambda: kl_like(0.3611, 0.1159),
                "transformer": lambda: hidream(),
                **dict.fromkeys(
                    f"{what}_{number}" for what in ("text_encoder", "tokenizer") for number in (2, 3, 4)
                ),
            },
        ),
    )
    yield from family(
        "LongCat",
        {"LongCatImagePipeline": {"call": {"enable_prompt_rewrite": False}}},
        {
            **MUTE,
            "vae": lambda: kl_like(0.3611, 0.1159),
            "transformer": lambda: longcat(),
            "text_encoder": lambda: parts.t5(),
            "tokenizer": lambda: parts.t5_tokenizer(),
            "text_processor": None,
        },
    )
    yield from family(
        "OmniGen",
        {"OmniGenPipeline": {}},  # which needs torchvision, for pictures beside the prompt
        {
            "vae": lambda: kl(scaling_factor=0.13025),
            "tokenizer": lambda: parts.t5_tokenizer(),
            "transformer": lambda: omnigen(),
            "scheduler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(),
        },
    )
    for name, components in (
        ("LEditsPPPipelineStableDiffusion", SD),
        ("LEditsPPPipelineStableDiffusionXL", SDXL),
    ):
        edits = {"editing_prompt": ["a dog"], "edit_threshold": [0.5], "edit_guidance_scale": [5.0]}
        own = {
            **components,
            "scheduler": lambda: diffusers.DPMSolverMultistepScheduler(
                algorithm_type="sde-dpmsolver++", solver_order=2
            ),
        }
        yield from map(_inverted, family("LEdits++", {name: {"call": {"use_intersect_mask": False, **edits}}}, own))
    yield from family("UniDiffuser", {"UniDiffuserPipeline": {"call": {"image": None}}}, UNIDIFFUSER)
    yield from family(
        "Versatile Diffusion",
        {
            "VersatileDiffusionTextToImagePipeline": {"text_encoder": lambda: clip(projected=True)},
            "VersatileDiffusionImageVariationPipeline": {},
        },
        {
            **SD,
            "image_unet": lambda: parts.unet(),
            "text_unet": None,
            "image_encoder": lambda: clip_vision(),
            "image_feature_extractor": lambda: clip_processor(),
        },
    )
    for name, classes, components, arguments in VIDEOS:
        yield from family(name, classes, {**MUTE, **components}, {**EMBEDDED, **arguments})
