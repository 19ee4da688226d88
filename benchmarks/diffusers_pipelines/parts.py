"""Small components with random weights, made in code: tokenizers, text and picture encoders, denoisers.

Every function seeds torch first, so that two calls give the same weights.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers
from small_vaes import make

#: Sides of all pictures, in pixels.
SIDE = 64

#: Hidden size of every encoder.
WIDTH = 32

#: CLIP's sequence length.
TOKENS = 77


def seeded(seed: int = 0) -> torch.Generator:
    """A generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normally distributed."""
    return torch.randn(*shape, generator=seeded(seed))


# ------------------------------------------------------------------------------------------------ text


def clip_tokenizer() -> Any:
    """A CLIPTokenizer over bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in plain] + [chr(256 + index) for index in range(256 - len(plain))]
    end = "<|endoftext|>"
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", end]
    vocabulary = {word: index for index, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=end, model_max_length=TOKENS)


def t5_tokenizer() -> Any:
    """A T5Tokenizer whose pieces are letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(chr(code), -3.0) for code in range(33, 127)]
    return transformers.T5Tokenizer(vocab=pieces + letters, extra_ids=0, model_max_length=TOKENS)


def _clip_config() -> Any:
    tokenizer = clip_tokenizer()
    return transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )


def clip(projected: bool = False) -> Any:
    """CLIP's text encoder."""
    name = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    return make(getattr(transformers, name), config=_clip_config())


def t5() -> Any:
    """T5's encoder."""
    config = transformers.T5Config(
        vocab_size=len(t5_tokenizer()), d_model=WIDTH, d_ff=64, d_kv=8, num_heads=4, num_layers=1
    )
    return make(transformers.T5EncoderModel, config=config)


# --------------------------------------------------------------------------------------------- pictures


def clip_vision(projected: bool = True, side: int = 32) -> Any:
    """CLIP's picture encoder for pictures of ``side``."""
    config = transformers.CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=side,
        patch_size=side // 4,
    )
    name = "CLIPVisionModelWithProjection" if projected else "CLIPVisionModel"
    return make(getattr(transformers, name), config=config)


def clip_processor() -> Any:
    """What goes before it."""
    return transformers.CLIPImageProcessor(crop_size=32, size=32)


# -------------------------------------------------------------------------------------------- denoisers


def unet(kind: str = "UNet2DConditionModel", **config: Any) -> Any:
    """SD's layout with two levels."""
    layout = {
        "sample_size": SIDE // 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
        "cross_attention_dim": WIDTH,
        "norm_num_groups": 8,
    }
    return make(getattr(diffusers, kind), **{**layout, **config})


def sdxl_config(context: int = 2 * WIDTH, time_ids: int = 6, pooled: int = WIDTH) -> dict[str, Any]:
    """What SDXL's layout adds to SD's."""
    return {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "use_linear_projection": True,
        "cross_attention_dim": context,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": time_ids * 8 + pooled,
    }


def motion_adapter() -> Any:
    """AnimateDiff's."""
    return make(
        diffusers.MotionAdapter,
        block_out_channels=(16, 32),
        motion_layers_per_block=1,
        motion_norm_num_groups=8,
        motion_num_attention_heads=4,
    )


def flux_transformer(**config: Any) -> Any:
    """Flux's, whose tokens are 2×2 latents."""
    layout = {
        "in_channels": 64,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": WIDTH,
        "pooled_projection_dim": WIDTH,
        "axes_dims_rope": (4, 4, 8),
    }
    return make(diffusers.FluxTransformer2DModel, **{**layout, **config})


def sd3_transformer(kind: str = "SD3Transformer2DModel", **config: Any) -> Any:
    """SD3's."""
    layout = {
        "sample_size": SIDE // 8,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "caption_projection_dim": 32,
        "joint_attention_dim": 2 * WIDTH,
        "pooled_projection_dim": 2 * WIDTH,
        "pos_embed_max_size": 16,
    }
    return make(getattr(diffusers, kind), **{**layout, **config})


def prx(channels: int) -> Any:
    """PRX's transformer."""
    return make(
        diffusers.PRXTransformer2DModel,
        in_channels=channels,
        context_in_dim=WIDTH,
        hidden_size=32,
        num_heads=2,
        depth=1,
        axes_dim=[8, 8],
    )


def sana(**config: Any) -> Any:
    """Sana's transformer."""
    return make(
        diffusers.SanaTransformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=WIDTH,
        sample_size=32,
        **config,
    )
