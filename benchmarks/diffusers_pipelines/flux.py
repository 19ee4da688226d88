"""Flux, VisualCloze and Chroma."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import diffusers
import parts
import small_vaes
from case import Case
from parts import WIDTH, clip, clip_tokenizer, flux_transformer
from recipes import family, picture
from small_vaes import kl, kl_like, make

FLUX: dict[str, Any] = {
    "vae": lambda: kl_like(0.3611, 0.1159),
    "text_encoder": lambda: clip(),
    "tokenizer": lambda: clip_tokenizer(),
    "text_encoder_2": lambda: parts.t5(),
    "tokenizer_2": lambda: parts.t5_tokenizer(),
    "transformer": lambda: flux_transformer(),
    "scheduler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(),
    "controlnet": lambda: make(
        diffusers.FluxControlNetModel,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    ),
    "image_encoder": None,
    "feature_extractor": None,
    "resolution": 32,
}

_CONTROL: dict[str, Any] = {"transformer": lambda: flux_transformer(in_channels=128, out_channels=64)}
_KONTEXT: dict[str, Any] = {"call": {"max_area": 64 * 64, "_auto_resize": False, "max_sequence_length": 32}}
_CLOZE: dict[str, Any] = {
    "transformer": lambda: flux_transformer(in_channels=384, out_channels=64),
    "call": {
        "task_prompt": "from a sketch to a picture",
        "content_prompt": "a cat",
        "image": lambda: [[picture(1), picture(2)], [picture(3), None]],
        "upsampling_strength": 1.0,
        "upsampling_height": 32,
        "upsampling_width": 32,
        "height": None,
        "width": None,
    },
}

FLUX_CLASSES: dict[str, Any] = {
    "FluxPipeline": {},
    "FluxPipeline tiny-autoencoder": {"vae": lambda: small_vaes.tiny(16)},
    "FluxPipeline two-levels": {
        "vae": lambda: kl(16, 2, scaling_factor=0.3611, shift_factor=0.1159),
        "call": {"height": 32, "width": 32},
    },
    "FluxImg2ImgPipeline": {},
    "FluxInpaintPipeline": {},
    "FluxFillPipeline": {"transformer": lambda: flux_transformer(in_channels=384, out_channels=64)},
    "FluxKontextPipeline": _KONTEXT,
    "FluxKontextInpaintPipeline": _KONTEXT,
    "FluxControlPipeline": _CONTROL,
    "FluxControlImg2ImgPipeline": _CONTROL,
    "FluxControlInpaintPipeline": _CONTROL,
    "FluxControlNetPipeline": {},
    "FluxControlNetImg2ImgPipeline": {},
    "FluxControlNetInpaintPipeline": {},
    "VisualClozeGenerationPipeline": _CLOZE,
    "VisualClozePipeline": _CLOZE,
}


def chroma() -> Any:
    """Chroma's transformer."""
    return make(
        diffusers.ChromaTransformer2DModel,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )


CHROMA: dict[str, Any] = {
    **FLUX,
    "text_encoder": lambda: parts.t5(),
    "tokenizer": lambda: parts.t5_tokenizer(),
    "transformer": lambda: chroma(),
}


def cases() -> Iterator[Case]:
    """All of them."""
    yield from family("Flux", FLUX_CLASSES, FLUX)
    yield from family(
        "Chroma", {"ChromaPipeline": {}, "ChromaImg2ImgPipeline": {}, "ChromaInpaintPipeline": {}}, CHROMA
    )
