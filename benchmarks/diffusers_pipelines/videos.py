"""Families of frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import diffusers
import parts
import small_vaes
from case import Case
from parts import WIDTH, clip_processor, clip_vision, unet
from recipes import family, picture
from small_vaes import kl, make
from stable_diffusion import SD, SDXL
from transformers_2d import EMBEDDED, MUTE


def _video() -> list[Any]:
    return [picture(seed) for seed in range(4)]


def _linear() -> Any:
    return diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False)


ANIMATED: dict[str, Any] = {
    **SD,
    "motion_adapter": lambda: parts.motion_adapter(),
    "scheduler": lambda: _linear(),
}
FRAMES: dict[str, Any] = {
    "num_frames": 4,
    "video": lambda: _video(),
    "conditioning_frames": lambda: _video(),
    "video_length": 2,
    "decode_chunk_size": 2,
}

TEXT_TO_VIDEO: dict[str, Any] = {
    **SD,
    "unet": lambda: make(
        diffusers.UNet3DConditionModel,
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=2,
    ),
}


def latte() -> Any:
    """Latte's transformer."""
    return make(
        diffusers.LatteTransformer3DModel,
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=WIDTH,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        video_length=2,
    )


def cogvideox(*, text_length: int) -> Any:
    """CogVideoX's transformer, for prompts of so many tokens."""
    return make(
        diffusers.CogVideoXTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=WIDTH,
        num_layers=1,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=text_length,
    )


_WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": WIDTH,
    "freq_dim": 256,
    "ffn_dim": 32,
    "num_layers": 1,
    "rope_max_seq_len": 32,
}


def wan(**config: Any) -> Any:
    """Wan's transformer."""
    return make(diffusers.WanTransformer3DModel, **{**_WAN, **config})


def wan_vace() -> Any:
    """Wan's transformer with conditions: 2×16 latents, and a mask of 64."""
    return make(diffusers.WanVACETransformer3DModel, **_WAN, vace_layers=[0], vace_in_channels=96)


#: Family, classes, components beside MUTE.
EMBEDDED_VIDEO: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    (
        "Latte",
        {"LattePipeline": {}},
        {"vae": lambda: kl(), "transformer": lambda: latte(), "scheduler": lambda: diffusers.DDIMScheduler()},
    ),
    (
        "CogVideoX",
        {"CogVideoXPipeline": {}, "CogVideoXVideoToVideoPipeline": {}},
        {
            "vae": lambda: small_vaes.cogvideox(4),
            "transformer": lambda: cogvideox(text_length=8),
            "scheduler": lambda: diffusers.CogVideoXDDIMScheduler(),
        },
    ),
    (
        "Wan",
        {
            "WanPipeline": {},
            "WanVideoToVideoPipeline": {},
            "WanImageToVideoPipeline": {"transformer": lambda: wan(in_channels=36)},
            "WanVACEPipeline": {"transformer": lambda: wan_vace()},
        },
        {
            "vae": lambda: small_vaes.wan(),
            "transformer": lambda: wan(),
            "transformer_2": None,
            "image_encoder": None,
            "image_processor": None,
        },
    ),
    (
        "LTX-Video",
        {"LTXPipeline": {}},
        {
            "vae": lambda: small_vaes.ltx_coarse(),
            "transformer": lambda: make(
                diffusers.LTXVideoTransformer3DModel,
                in_channels=8,
                out_channels=8,
                num_attention_heads=4,
                attention_head_dim=8,
                cross_attention_dim=32,
                num_layers=1,
                caption_channels=WIDTH,
            ),
        },
    ),
)


def cases() -> Iterator[Case]:
    """All of them."""
    yield from family(
        "AnimateDiff",
        {
            "AnimateDiffPipeline": {},
            "AnimateDiffControlNetPipeline": {},
            "AnimateDiffPAGPipeline": {"pag_applied_layers": "mid_block.*attentions"},
            "AnimateDiffVideoToVideoPipeline": {},
            "AnimateDiffVideoToVideoControlNetPipeline": {},
            "AnimateDiffSparseControlNetPipeline": {
                "controlnet": lambda: make(
                    diffusers.SparseControlNetModel,
                    block_out_channels=(16, 32),
                    layers_per_block=1,
                    in_channels=4,
                    conditioning_channels=4,
                    down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
                    cross_attention_dim=WIDTH,
                    conditioning_embedding_out_channels=(16, 16),
                    norm_num_groups=8,
                    attention_head_dim=4,
                    num_attention_heads=4,
                    motion_num_attention_heads=4,
                    concat_conditioning_mask=False,
                    use_simplified_condition_embedding=True,
                ),
                "call": {"conditioning_frames": lambda: [picture()]},
            },
            "PIAPipeline": {"unet": lambda: unet(in_channels=9)},
        },
        ANIMATED,
        FRAMES,
    )
    yield from family(
        "AnimateDiff",
        {"AnimateDiffSDXLPipeline": {}},
        {**SDXL, "motion_adapter": lambda: parts.motion_adapter(), "scheduler": lambda: _linear()},
        FRAMES,
    )
    yield from family(
        "Text to video", {"TextToVideoSDPipeline": {}, "VideoToVideoSDPipeline": {}}, TEXT_TO_VIDEO, FRAMES
    )
    yield from family(
        "I2VGen-XL",
        {"I2VGenXLPipeline": {}},
        {
            **SD,
            "image_encoder": lambda: clip_vision(),
            "feature_extractor": lambda: clip_processor(),
            "unet": lambda: make(
                diffusers.I2VGenXLUNet,
                block_out_channels=(8, 16),
                layers_per_block=1,
                sample_size=8,
                down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
                up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
                cross_attention_dim=WIDTH,
                num_attention_heads=4,
                norm_num_groups=2,
            ),
        },
        FRAMES,
    )
    yield from family(
        "Stable Video Diffusion",
        {"StableVideoDiffusionPipeline": {}},
        {
            "vae": lambda: small_vaes.stable_video(),
            "image_encoder": lambda: clip_vision(side=224),
            "feature_extractor": lambda: clip_processor(),
            "scheduler": lambda: diffusers.EulerDiscreteScheduler(
                beta_schedule="scaled_linear", prediction_type="v_prediction", use_karras_sigmas=True
            ),
            "unet": lambda: make(
                diffusers.UNetSpatioTemporalConditionModel,
                block_out_channels=(32, 64),
                layers_per_block=1,
                sample_size=8,
                in_channels=8,
                out_channels=4,
                down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
                up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
                cross_attention_dim=WIDTH,
                num_attention_heads=8,
                projection_class_embeddings_input_dim=96,
                addition_time_embed_dim=32,
            ),
        },
        {**FRAMES, "num_frames": 2},
    )
    for name, classes, components in EMBEDDED_VIDEO:
        arguments = {**EMBEDDED, **FRAMES, "num_frames": 9, "video": lambda: [picture(n) for n in range(9)]}
        if name == "Latte":
            arguments["video_length"] = 2
        yield from family(name, classes, {**MUTE, **components}, arguments)
