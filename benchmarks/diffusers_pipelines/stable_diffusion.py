"""The families of Stable Diffusion 1 to 3, whose denoisers are UNets but for the last."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import diffusers
import parts
import small_vaes
from case import Case
from parts import SIDE, WIDTH, clip, clip_processor, clip_tokenizer, clip_vision, numbers, unet
from recipes import family, mask, picture
from small_vaes import kl, make


def _ddim(**config: Any) -> Any:
    return diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1, **config)


def _euler() -> Any:
    return diffusers.EulerDiscreteScheduler(
        beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )


def _flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def _controlnet(denoiser: Any, kind: Any = diffusers.ControlNetModel, **config: Any) -> Any:
    return make(_From(kind), denoiser=denoiser, **config)


class _From:
    """A ControlNet's ``from_unet`` or ``from_transformer`` in the place of its class."""

    def __init__(self, kind: Any) -> None:
        self._make = getattr(kind, "from_unet", None) or kind.from_transformer

    def __call__(self, denoiser: Any, **config: Any) -> Any:
        return self._make(denoiser, **config)


SD: dict[str, Any] = {
    "vae": lambda: kl(),
    "text_encoder": lambda: clip(),
    "tokenizer": lambda: clip_tokenizer(),
    "unet": lambda: unet(),
    "scheduler": lambda: _ddim(),
    "inverse_scheduler": lambda: diffusers.DDIMInverseScheduler(beta_schedule="scaled_linear", clip_sample=False),
    "low_res_scheduler": lambda: diffusers.DDPMScheduler(),
    "controlnet": lambda: _controlnet(unet()),
    "adapter": lambda: make(
        diffusers.T2IAdapter, channels=[16, 32], num_res_blocks=1, downscale_factor=8, adapter_type="full_adapter"
    ),
    "image_encoder": None,
    "feature_extractor": None,
    "safety_checker": None,
    "requires_safety_checker": False,
    "depth_estimator": None,
}

SD_CLASSES: dict[str, Any] = {
    "StableDiffusionPipeline": {},
    "StableDiffusionPipeline tiny-autoencoder": {"vae": lambda: small_vaes.tiny()},
    "StableDiffusionPipeline two-levels": {"vae": lambda: kl(levels=2)},
    "StableDiffusionImg2ImgPipeline": {},
    "StableDiffusionInpaintPipeline": {},
    "StableDiffusionInpaintPipeline 9-channels": {"unet": lambda: unet(in_channels=9)},
    "StableDiffusionInpaintPipeline asymmetric": {"vae": lambda: small_vaes.asymmetric()},
    "StableDiffusionPAGPipeline": {},
    "StableDiffusionPAGImg2ImgPipeline": {},
    "StableDiffusionPAGInpaintPipeline": {},
    "StableDiffusionSAGPipeline": {},
    "StableDiffusionPanoramaPipeline": {"call": {"height": 64, "width": 128}},
    "StableDiffusionAttendAndExcitePipeline": {
        "call": {"token_indices": [1, 2], "max_iter_to_alter": 1, "thresholds": {0: 0.5}, "attn_res": (4, 4)}
    },
    "StableDiffusionControlNetPipeline": {},
    "StableDiffusionControlNetImg2ImgPipeline": {},
    "StableDiffusionControlNetInpaintPipeline": {},
    "StableDiffusionControlNetPAGPipeline": {},
    "StableDiffusionControlNetPAGInpaintPipeline": {},
    "StableDiffusionControlNetXSPipeline": {
        "unet": lambda: unet(layers_per_block=2),
        "controlnet": lambda: make(
            _From(_XS), denoiser=unet(layers_per_block=2), size_ratio=1, conditioning_channels=3
        ),
    },
    "StableDiffusionAdapterPipeline": {},
    "StableDiffusionInstructPix2PixPipeline": {"unet": lambda: unet(in_channels=8)},
    "StableDiffusionDepth2ImgPipeline": {
        "unet": lambda: unet(in_channels=5),
        "call": {"depth_map": lambda: numbers(1, SIDE, SIDE)},
    },
    "StableDiffusionUpscalePipeline": {
        "vae": lambda: kl(levels=3, scaling_factor=0.08333),
        "unet": lambda: unet(in_channels=7, num_class_embeds=1000),
        "max_noise_level": 350,
    },
    "StableDiffusionLatentUpscalePipeline": {
        "unet": lambda: unet(in_channels=8, out_channels=5, time_cond_proj_dim=128 + WIDTH),
        "scheduler": lambda: _euler(),
        "call": {"guidance_scale": 0},
    },
    "StableDiffusionImageVariationPipeline": {
        "image_encoder": lambda: clip_vision(),
        "feature_extractor": lambda: clip_processor(),
    },
    "StableDiffusionLDM3DPipeline": {"vae": lambda: kl(in_channels=6, out_channels=6)},
    "StableDiffusionGLIGENPipeline": {
        "vae": lambda: kl(sample_size=SIDE),
        "unet": lambda: unet(attention_type="gated"),
        "call": {
            "gligen_phrases": ["a cat"],
            "gligen_boxes": [[0.1, 0.2, 0.6, 0.7]],
        },
    },
    "StableDiffusionDiffEditPipeline": {
        "call": {"image_latents": lambda: numbers(1, 1, 4, 8, 8), "mask_image": lambda: mask().resize((8, 8))}
    },
    "CycleDiffusionPipeline": {
        "scheduler": lambda: _ddim(set_alpha_to_one=False),
        "call": {"source_prompt": "a dog", "num_inference_steps": 3, "strength": 0.8},
    },
    "SemanticStableDiffusionPipeline": {"call": {"editing_prompt": "snow", "edit_warmup_steps": 1}},
    "PaintByExamplePipeline": {
        "unet": lambda: unet(in_channels=9),
        "image_encoder": lambda: make(_paint_by_example, config=parts.clip_vision(False).config, proj_size=WIDTH),
        "feature_extractor": lambda: clip_processor(),
        "call": {"example_image": lambda: picture(2)},
    },
    "LatentConsistencyModelPipeline": {
        "unet": lambda: unet(time_cond_proj_dim=32),
        "scheduler": lambda: diffusers.LCMScheduler(beta_schedule="scaled_linear"),
    },
    "LatentConsistencyModelImg2ImgPipeline": {
        "unet": lambda: unet(time_cond_proj_dim=32),
        "scheduler": lambda: diffusers.LCMScheduler(beta_schedule="scaled_linear"),
    },
    "TextToVideoZeroPipeline": {"call": {"video_length": 2, "t0": 1, "t1": 2, "num_inference_steps": 4}},
}

_XS = diffusers.ControlNetXSAdapter


def _paint_by_example(config: Any, proj_size: int) -> Any:
    from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder

    return PaintByExampleImageEncoder(config, proj_size=proj_size)


MARIGOLD: dict[str, Any] = {
    **SD,
    "unet": lambda: unet(in_channels=8),
    "prediction_type": "depth",
    "scale_invariant": True,
    "shift_invariant": True,
    "default_denoising_steps": 2,
    "default_processing_resolution": SIDE,
    "target_properties": None,
}

SDXL: dict[str, Any] = {
    **SD,
    "vae": lambda: kl(scaling_factor=0.13025),
    "text_encoder_2": lambda: clip(True),
    "tokenizer_2": lambda: clip_tokenizer(),
    "unet": lambda: unet(**parts.sdxl_config()),
    "scheduler": lambda: _euler(),
    "controlnet": lambda: _controlnet(unet(**parts.sdxl_config())),
    "add_watermarker": False,
}

_UNION: dict[str, Any] = {
    "controlnet": lambda: make(
        diffusers.ControlNetUnionModel,
        **{
            name: value
            for name, value in unet(**parts.sdxl_config()).config.items()
            if name in inspect.signature(diffusers.ControlNetUnionModel.__init__).parameters
        },
        conditioning_embedding_out_channels=(16, 16, 16, 16),
        num_trans_channel=16,
        num_trans_head=2,
        num_proj_channel=16,
    ),
    "call": {"control_mode": [0], "control_image": lambda: [picture(1)]},
}

SDXL_CLASSES: dict[str, Any] = {
    "StableDiffusionXLPipeline": {},
    "StableDiffusionXLPipeline playground": {
        "vae": lambda: kl(
            scaling_factor=0.5, latents_mean=[-1.6, 1.1, 3.3, -0.8], latents_std=[8.4, 6.0, 5.1, 6.6]
        ),
        "scheduler": lambda: diffusers.EDMDPMSolverMultistepScheduler(),
    },
    "StableDiffusionXLPipeline tiny-autoencoder": {"vae": lambda: small_vaes.tiny()},
    "StableDiffusionXLImg2ImgPipeline": {},
    "StableDiffusionXLImg2ImgPipeline playground": {
        "vae": lambda: kl(
            scaling_factor=0.5, latents_mean=[-1.6, 1.1, 3.3, -0.8], latents_std=[8.4, 6.0, 5.1, 6.6]
        ),
    },
    "StableDiffusionXLInpaintPipeline": {},
    "StableDiffusionXLInpaintPipeline 9-channels": {
        "unet": lambda: unet(**{**parts.sdxl_config(), "in_channels": 9}),
    },
    "StableDiffusionXLInstructPix2PixPipeline": {"unet": lambda: unet(**parts.sdxl_config(), in_channels=8)},
    "StableDiffusionXLInstructPix2PixPipeline cosxl": {
        "unet": lambda: unet(**parts.sdxl_config(), in_channels=8),
        "is_cosxl_edit": True,
    },
    "StableDiffusionXLPAGPipeline": {},
    "StableDiffusionXLPAGImg2ImgPipeline": {},
    "StableDiffusionXLPAGInpaintPipeline": {},
    "StableDiffusionXLControlNetPipeline": {},
    "StableDiffusionXLControlNetImg2ImgPipeline": {},
    "StableDiffusionXLControlNetInpaintPipeline": {},
    "StableDiffusionXLControlNetPAGPipeline": {},
    "StableDiffusionXLControlNetPAGImg2ImgPipeline": {},
    "StableDiffusionXLControlNetUnionPipeline": _UNION,
    "StableDiffusionXLControlNetUnionImg2ImgPipeline": _UNION,
    "StableDiffusionXLControlNetUnionInpaintPipeline": _UNION,
    "StableDiffusionXLControlNetXSPipeline": {
        "unet": lambda: unet(**parts.sdxl_config(), layers_per_block=2),
        "controlnet": lambda: make(
            _From(_XS),
            denoiser=unet(**parts.sdxl_config(), layers_per_block=2),
            size_ratio=1,
            conditioning_channels=3,
        ),
    },
    "StableDiffusionXLAdapterPipeline": {
        "adapter": lambda: make(
            diffusers.T2IAdapter,
            channels=[16, 32],
            num_res_blocks=1,
            downscale_factor=16,
            adapter_type="full_adapter_xl",
        )
    },
    "TextToVideoZeroSDXLPipeline": {"call": {"video_length": 2, "t0": 1, "t1": 2, "num_inference_steps": 4}},
}


def _kolors_text() -> dict[str, Any]:
    return {
        "prompt": None,
        "prompt_embeds": lambda: numbers(1, 8, 2 * WIDTH),
        "negative_prompt_embeds": lambda: numbers(1, 8, 2 * WIDTH, seed=1),
        "pooled_prompt_embeds": lambda: numbers(1, WIDTH, seed=2),
        "negative_pooled_prompt_embeds": lambda: numbers(1, WIDTH, seed=3),
    }


SD3: dict[str, Any] = {
    "vae": lambda: small_vaes.kl_like(1.5305, 0.0609),
    "text_encoder": lambda: clip(True),
    "text_encoder_2": lambda: clip(True),
    "tokenizer": lambda: clip_tokenizer(),
    "tokenizer_2": lambda: clip_tokenizer(),
    "text_encoder_3": None,
    "tokenizer_3": None,
    "transformer": lambda: parts.sd3_transformer(),
    "scheduler": lambda: _flow(),
    "controlnet": lambda: make(diffusers.SD3ControlNetModel, **_sd3_control()),
    "pag_applied_layers": "blocks.1",
}


def _sd3_control(**config: Any) -> dict[str, Any]:
    return {**parts.sd3_transformer().config, "num_layers": 1, **config} | {"dual_attention_layers": ()}


SD3_CLASSES: dict[str, Any] = {
    "StableDiffusion3Pipeline": {},
    "StableDiffusion3Img2ImgPipeline": {},
    "StableDiffusion3InpaintPipeline": {},
    "StableDiffusion3PAGPipeline": {},
    "StableDiffusion3PAGImg2ImgPipeline": {},
    "StableDiffusion3ControlNetPipeline": {},
    "StableDiffusion3ControlNetInpaintingPipeline": {
        "controlnet": lambda: make(
            diffusers.SD3ControlNetModel,
            **_sd3_control(extra_conditioning_channels=1, force_zeros_for_pooled_projection=False),
        ),
        "call": {"control_mask": lambda: mask(), "control_image": lambda: picture(1)},
    },
}


def cases() -> Iterator[Case]:
    """All of them."""
    yield from family("Stable Diffusion", SD_CLASSES, SD)
    yield from family(
        "Marigold",
        {
            "MarigoldDepthPipeline": {},
            "MarigoldNormalsPipeline": {"prediction_type": "normals", "use_full_z_range": True},
            "MarigoldIntrinsicsPipeline": {
                "unet": lambda: unet(in_channels=12, out_channels=8),
                "prediction_type": "intrinsics",
                "target_properties": {"target_names": ["albedo", "roughness"]},
            },
        },
        MARIGOLD,
    )
    yield from family("Stable Diffusion XL", SDXL_CLASSES, SDXL)
    yield from family(
        "Kolors",
        {"KolorsPipeline": {}, "KolorsImg2ImgPipeline": {}, "KolorsPAGPipeline": {}},
        {**SDXL, "text_encoder": None, "tokenizer": None},
        _kolors_text(),
    )
    yield from family("Stable Diffusion 3", SD3_CLASSES, SD3)
