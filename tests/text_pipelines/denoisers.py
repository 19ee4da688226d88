"""Small denoisers and schedulers around the text encoders; most are those of ``benchmarks/diffusers_pipelines``."""

from __future__ import annotations

from typing import Any

import diffusers
import flux as flux_parts
import parts
import recipes
import small_vaes
import transformers_2d
import videos
from small_vaes import kl_like, make

#: Hidden size of the text encoders.
WIDTH = parts.WIDTH

FLOW = diffusers.FlowMatchEulerDiscreteScheduler


def stable_diffusion() -> dict[str, Any]:
    return {
        "vae": small_vaes.kl(),
        "unet": parts.unet(),
        "scheduler": diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def sdxl() -> dict[str, Any]:
    return {
        "vae": small_vaes.kl(),
        "unet": parts.unet(**parts.sdxl_config()),
        "scheduler": diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
        "add_watermarker": False,
    }


def sdxl_refiner() -> dict[str, Any]:
    return {
        **sdxl(),
        "unet": parts.unet(**parts.sdxl_config(context=WIDTH, time_ids=5)),
        "requires_aesthetics_score": True,
        "force_zeros_for_empty_prompt": False,
    }


def sd3() -> dict[str, Any]:
    return {
        "vae": kl_like(1.5305, 0.0609),
        "transformer": parts.sd3_transformer(num_layers=1, joint_attention_dim=WIDTH * 2),
        "scheduler": FLOW(),
    }


def flux(**config: Any) -> dict[str, Any]:
    return {"vae": kl_like(0.3611, 0.1159), "transformer": parts.flux_transformer(**config), "scheduler": FLOW()}


def chroma() -> dict[str, Any]:
    return {"vae": kl_like(0.3611, 0.1159), "transformer": flux_parts.chroma(), "scheduler": FLOW()}


def flux2(width: int) -> dict[str, Any]:
    transformer = make(
        diffusers.Flux2Transformer2DModel,
        in_channels=128,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=width,
        axes_dims_rope=(4, 4, 4, 4),
    )
    return {"vae": small_vaes.flux2(), "transformer": transformer, "scheduler": FLOW()}


def qwen_image() -> dict[str, Any]:
    return {"vae": small_vaes.qwen_image(), "transformer": transformers_2d.qwen(), "scheduler": FLOW()}


def z_image() -> dict[str, Any]:
    return {"vae": kl_like(0.3611, 0.1159), "transformer": transformers_2d.z_image(), "scheduler": FLOW()}


def wan() -> dict[str, Any]:
    return {"vae": small_vaes.wan(), "transformer": videos.wan(), "scheduler": FLOW(), "transformer_2": None}


def ltx() -> dict[str, Any]:
    transformer = make(
        diffusers.LTXVideoTransformer3DModel,
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=WIDTH,
    )
    return {"vae": small_vaes.ltx_coarse(), "transformer": transformer, "scheduler": FLOW()}


def picture(seed: int = 0) -> Any:
    """Random pixels."""
    return recipes.picture(seed)
