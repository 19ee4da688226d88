"""Families with a VQ model in the place of a VAE: Kandinsky, Stable Cascade, Amused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import diffusers
from case import Case
from parts import WIDTH, clip, clip_tokenizer, numbers, unet
from recipes import family, picture
from small_vaes import make


def movq() -> Any:
    """Kandinsky's."""
    return make(
        diffusers.VQModel,
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        latent_channels=4,
        vq_embed_dim=4,
    )


KANDINSKY: dict[str, Any] = {
    "movq": lambda: movq(),
    "scheduler": lambda: diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    "unet": lambda: kandinsky(),
}


def kandinsky(**config: Any) -> Any:
    """Kandinsky 2.2's UNet."""
    return unet(
        **{
            "out_channels": 8,
            "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "addition_embed_type": "image",
            "encoder_hid_dim_type": "image_proj",
            "encoder_hid_dim": WIDTH,
            "resnet_time_scale_shift": "scale_shift",
            "class_embed_type": None,
            **config,
        }
    )


_EMBEDDINGS: dict[str, Any] = {
    "image_embeds": lambda: numbers(1, WIDTH),
    "negative_image_embeds": lambda: numbers(1, WIDTH, seed=1),
}


def paella() -> Any:
    """Würstchen's and Stable Cascade's."""
    return make(
        _paella(), bottleneck_blocks=1, num_vq_embeddings=8, embed_dim=8, latent_channels=4, scale_factor=0.3764
    )


def _paella() -> Any:
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

    return PaellaVQModel


def _cascade() -> Any:
    from diffusers.models import StableCascadeUNet

    return StableCascadeUNet


def cases() -> Iterator[Case]:
    """All of them."""
    yield from family(
        "Kandinsky",
        {
            "KandinskyV22Pipeline": {},
            "KandinskyV22Img2ImgPipeline": {},
            "KandinskyV22InpaintPipeline": {"unet": lambda: kandinsky(in_channels=9)},
        },
        KANDINSKY,
        _EMBEDDINGS,
    )
    yield from family(
        "Stable Cascade",
        {
            "StableCascadeDecoderPipeline": {
                "call": {"image_embeddings": lambda: numbers(1, 4, 4, 4), "guidance_scale": 2.0}
            }
        },
        {
            "vqgan": lambda: paella(),
            "text_encoder": lambda: clip(True),
            "tokenizer": lambda: clip_tokenizer(),
            "scheduler": lambda: diffusers.DDPMWuerstchenScheduler(),
            "latent_dim_scale": 4.0,
            "decoder": lambda: make(
                _cascade(),
                in_channels=4,
                out_channels=4,
                conditioning_dim=128,
                block_out_channels=(16, 32),
                num_attention_heads=(-1, 2),
                down_num_layers_per_block=(1, 1),
                up_num_layers_per_block=(1, 1),
                down_blocks_repeat_mappers=(1, 1),
                up_blocks_repeat_mappers=(1, 1),
                block_types_per_layer=(
                    ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
                    ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
                ),
                switch_level=None,
                clip_text_pooled_in_channels=WIDTH,
                dropout=(0.1, 0.1),
                effnet_in_channels=4,
            ),
        },
    )
    yield from family(
        "Amused",
        {"AmusedPipeline": {}, "AmusedImg2ImgPipeline": {"call": {"strength": 0.5}}},
        {
            "vqvae": lambda: make(
                diffusers.VQModel,
                block_out_channels=(8,),
                layers_per_block=1,
                latent_channels=8,
                num_vq_embeddings=32,
                norm_num_groups=4,
                lookup_from_codebook=True,
            ),
            "text_encoder": lambda: clip(True),
            "tokenizer": lambda: clip_tokenizer(),
            "scheduler": lambda: diffusers.AmusedScheduler(mask_token_id=31),
            "transformer": lambda: make(
                diffusers.UVit2DModel,
                hidden_size=8,
                use_bias=False,
                hidden_dropout=0.0,
                cond_embed_dim=WIDTH,
                micro_cond_encode_dim=2,
                micro_cond_embed_dim=10,
                encoder_hidden_size=WIDTH,
                vocab_size=32,
                codebook_size=32,
                in_channels=8,
                block_out_channels=8,
                num_res_blocks=1,
                downsample=True,
                upsample=True,
                block_num_heads=1,
                num_hidden_layers=1,
                num_attention_heads=1,
                attention_dropout=0.0,
                intermediate_size=8,
                layer_norm_eps=1e-6,
                ln_elementwise_affine=True,
            ),
        },
        {"height": 16, "width": 16, "image": lambda: picture(0, 16)},
    )
