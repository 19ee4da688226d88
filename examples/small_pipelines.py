"""Pipelines of the real classes with random weights, made in code.

No hub, no files that stay, a few million parameters.

They show nothing worth looking at, but every call runs diffusers' own pipelines, and takes a moment on a CPU.
The layouts are the real ones: eight pixels per latent, SDXL's two text encoders and its size embeddings, SD3's
sixteen channels, Flux's packed tokens.  Each builder takes the VAE, which may be None, and further components.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionLatentUpscalePipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

#: Hidden size of every text encoder.
TEXT_WIDTH = 32

#: CLIP's sequence length.
TOKENS = 77

_TIME_WIDTH = 8


def vae(latent_channels: int = 4, *, seed: int = 0, levels: int = 4, **config: Any) -> AutoencoderKL:
    """An AutoencoderKL with 8 and 16 channels instead of 128 to 512; four levels make eight pixels per latent."""
    torch.manual_seed(seed)
    return _frozen(
        AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
            block_out_channels=(8, 8, 16, 16)[-levels:],
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=latent_channels,
            **config,
        )
    )


def stable_diffusion(
    vae: Any, pipeline: type[DiffusionPipeline] = StableDiffusionPipeline, *, seed: int = 1, **components: Any
) -> Any:
    """SD v1.5's layout; ``pipeline`` may be its image-to-image, inpainting or ControlNet class."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    return _quiet(
        pipeline(
            vae=vae,
            text_encoder=_frozen(CLIPTextModel(_clip_config(tokenizer))),
            tokenizer=tokenizer,
            unet=_frozen(_unet()),
            scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **components,
        )
    )


def controlnet(unet: UNet2DConditionModel, *, seed: int = 2) -> ControlNetModel:
    """A ControlNet for ``unet``, with random numbers where training starts from zero, so that it has an effect."""
    torch.manual_seed(seed)
    model = ControlNetModel.from_unet(unet, conditioning_channels=3)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return _frozen(model)


def latent_upscaler(vae: Any, *, seed: int = 3) -> Any:
    """The ×2 upscaler of SD latents: it gets the picture's beside the noise, and gives a channel too many."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    noise_level_width = 128
    return _quiet(
        StableDiffusionLatentUpscalePipeline(
            vae=vae,
            text_encoder=_frozen(CLIPTextModel(_clip_config(tokenizer))),
            tokenizer=tokenizer,
            unet=_frozen(_unet(in_channels=8, out_channels=5, time_cond_proj_dim=noise_level_width + TEXT_WIDTH)),
            scheduler=_euler(),
        )
    )


def stable_diffusion_xl(vae: Any, *, seed: int = 4) -> Any:
    """SDXL base."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    return _quiet(
        StableDiffusionXLPipeline(
            vae=vae,
            text_encoder=_frozen(CLIPTextModel(_clip_config(tokenizer))),
            text_encoder_2=_frozen(CLIPTextModelWithProjection(_clip_config(tokenizer))),
            tokenizer=tokenizer,
            tokenizer_2=clip_tokenizer(),
            unet=_frozen(_sdxl_unet(time_ids=6, context=2 * TEXT_WIDTH)),
            scheduler=_euler(),
            add_watermarker=False,
        )
    )


def stable_diffusion_xl_refiner(vae: Any, *, seed: int = 5) -> Any:
    """SDXL's refiner: one text encoder, and an aesthetic score among the size embeddings."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    return _quiet(
        StableDiffusionXLImg2ImgPipeline(
            vae=vae,
            text_encoder=None,
            text_encoder_2=_frozen(CLIPTextModelWithProjection(_clip_config(tokenizer))),
            tokenizer=None,
            tokenizer_2=tokenizer,
            unet=_frozen(_sdxl_unet(time_ids=5, context=TEXT_WIDTH)),
            scheduler=_euler(),
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=False,
            add_watermarker=False,
        )
    )


def stable_diffusion_3(
    vae: Any, pipeline: type[DiffusionPipeline] = StableDiffusion3Pipeline, *, seed: int = 6
) -> Any:
    """SD3, without its third text encoder, as many people run it."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=2 * TEXT_WIDTH,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=16,
    )
    return _quiet(
        pipeline(
            vae=vae,
            text_encoder=_frozen(CLIPTextModelWithProjection(_clip_config(tokenizer))),
            text_encoder_2=_frozen(CLIPTextModelWithProjection(_clip_config(tokenizer))),
            text_encoder_3=None,
            tokenizer=tokenizer,
            tokenizer_2=clip_tokenizer(),
            tokenizer_3=None,
            transformer=_frozen(transformer),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
    )


def flux(vae: Any, pipeline: type[DiffusionPipeline] = FluxPipeline, *, seed: int = 7) -> Any:
    """Flux, whose latents are packed: 2×2 of 16 channels make a token of 64."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    pieces = t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    reader = T5EncoderModel(
        T5Config(vocab_size=len(pieces), d_model=TEXT_WIDTH, d_ff=64, d_kv=8, num_heads=4, num_layers=1)
    )
    return _quiet(
        pipeline(
            vae=vae,
            text_encoder=_frozen(CLIPTextModel(_clip_config(tokenizer))),
            text_encoder_2=_frozen(reader),
            tokenizer=tokenizer,
            tokenizer_2=pieces,
            transformer=_frozen(transformer),
            scheduler=FlowMatchEulerDiscreteScheduler(),
        )
    )


# ---------------------------------------------------------------------------------------------- the parts


def clip_tokenizer() -> CLIPTokenizer:
    """A real CLIPTokenizer over bytes, so that every prompt can be read."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    letters = [chr(byte) for byte in plain] + [chr(256 + index) for index in range(len(rest))]
    end = "<|endoftext|>"
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", end]
    vocabulary = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=end, model_max_length=TOKENS)


def t5_tokenizer() -> T5Tokenizer:
    """A real T5Tokenizer whose pieces are letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(chr(code), -3.0) for code in range(ord("a"), ord("z") + 1)]
    return T5Tokenizer(vocab=pieces + letters, extra_ids=0, model_max_length=TOKENS)


def _clip_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )


def _unet(**config: Any) -> UNet2DConditionModel:
    layout = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
        "cross_attention_dim": TEXT_WIDTH,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**{**layout, **config})


def _sdxl_unet(*, time_ids: int, context: int) -> UNet2DConditionModel:
    return _unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True,
        cross_attention_dim=context,
        addition_embed_type="text_time",
        addition_time_embed_dim=_TIME_WIDTH,
        projection_class_embeddings_input_dim=time_ids * _TIME_WIDTH + TEXT_WIDTH,
    )


def _euler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1)


def _frozen(module: Any) -> Any:
    return module.eval().requires_grad_(False)


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe
