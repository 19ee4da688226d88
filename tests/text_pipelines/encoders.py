"""Small text encoders of the real classes with random weights; each is made for a tokenizer's vocabulary."""

from __future__ import annotations

from typing import Any

import torch
import transformers

#: Hidden size of every encoder.
WIDTH = 32

_SMALL = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def make(kind: str, config: Any, seed: int = 0) -> Any:
    """A frozen model of transformers in eval mode; models that are made of a config are in train mode."""
    torch.manual_seed(seed)
    return getattr(transformers, kind)(config).eval().requires_grad_(False)


def clip(tokenizer: Any, *, projected: bool = False, positions: int = 77, seed: int = 0) -> Any:
    """CLIP's, with a projection or without."""
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return make("CLIPTextModelWithProjection" if projected else "CLIPTextModel", config, seed)


def t5(tokenizer: Any, *, width: int = WIDTH, seed: int = 0) -> Any:
    """T5's encoder, of mT5 and ByT5 too."""
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_ff=64,
        d_kv=8,
        num_heads=4,
        num_layers=2,
        feed_forward_proj="gated-gelu",
    )
    return make("T5EncoderModel", config, seed)


def umt5(tokenizer: Any) -> Any:
    """Wan's and AuraFlow's."""
    config = transformers.UMT5Config(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_ff=64,
        d_kv=8,
        num_heads=4,
        num_layers=2,
        feed_forward_proj="gated-gelu",
    )
    return make("UMT5EncoderModel", config)


def bert(tokenizer: Any) -> Any:
    """Hunyuan-DiT's first."""
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
    )
    return make("BertModel", config)


def gemma2(tokenizer: Any) -> Any:
    """Lumina 2's and Sana's."""
    config = transformers.Gemma2Config(
        vocab_size=len(tokenizer), head_dim=8, pad_token_id=0, eos_token_id=1, bos_token_id=2, **_SMALL
    )
    return make("Gemma2Model", config)


def gemma3(tokenizer: Any) -> Any:
    """LTX-2's, which can see."""
    text = transformers.Gemma3TextConfig(
        vocab_size=len(tokenizer), head_dim=8, pad_token_id=0, eos_token_id=1, bos_token_id=2, **_SMALL
    )
    image = tokenizer.convert_tokens_to_ids("<image_soft_token>")
    config = transformers.Gemma3Config(
        text_config=text.to_dict(),
        vision_config={**_VISION, "image_size": 28, "patch_size": 14},
        image_token_index=image,
        mm_tokens_per_image=4,
    )
    return make("Gemma3ForConditionalGeneration", config)


_VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def mistral3(tokenizer: Any) -> Any:
    """FLUX.2's: more layers than pipelines read."""
    text = {
        "model_type": "mistral",
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 33,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    vision = {**_VISION, "model_type": "pixtral", "image_size": 28, "patch_size": 14, "head_dim": 8}
    config = transformers.Mistral3Config(
        text_config=text, vision_config=vision, image_token_index=tokenizer.convert_tokens_to_ids("[INST]")
    )
    return make("Mistral3ForConditionalGeneration", config)


def qwen3(tokenizer: Any, kind: str, *, layers: int = 3, width: int = WIDTH) -> Any:
    """Klein's, Z-Image's and Ovis's."""
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer), head_dim=8, **{**_SMALL, "num_hidden_layers": layers, "hidden_size": width}
    )
    return make(kind, config)


def qwen2_vl(tokenizer: Any, *, version: str = "2_5") -> Any:
    """Qwen-Image's, HunyuanImage's, Kandinsky's, LongCat's; EasyAnimate's is the version before."""
    names = ("vision_start", "vision_end", "image_pad", "video_pad")
    start, end, image, video = (tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names)
    tokens = {
        "vision_start_token_id": start,
        "vision_end_token_id": end,
        "image_token_id": image,
        "video_token_id": video,
    }
    text = {**_qwen2_text(tokenizer), **tokens}
    if version == "2":
        vision = {
            "depth": 1,
            "embed_dim": 32,
            "hidden_size": WIDTH,
            "num_heads": 2,
            "patch_size": 14,
            "mlp_ratio": 2,
        }
        config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, **tokens)
        return make("Qwen2VLForConditionalGeneration", config)
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=_QWEN_VISION, **tokens)
    return make("Qwen2_5_VLForConditionalGeneration", config)


def qwen2_vl_text(tokenizer: Any) -> Any:
    """HunyuanVideo 1.5's: the part of the same that reads."""
    return make("Qwen2_5_VLTextModel", transformers.Qwen2_5_VLTextConfig(**_qwen2_text(tokenizer)))


_QWEN_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": WIDTH,
    "patch_size": 14,
    "fullatt_block_indexes": [0],
}


def _qwen2_text(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        **_SMALL,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "rope_theta": 1_000_000.0,
    }


def llama(tokenizer: Any, kind: str = "LlamaModel", *, layers: int = 4) -> Any:
    """HunyuanVideo's and HiDream's."""
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        **{**_SMALL, "num_hidden_layers": layers},
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return make(kind, config)


def llava(tokenizer: Any) -> Any:
    """That of HunyuanVideo from a picture, which sees it in 24×24 patches."""
    text = transformers.LlamaConfig(
        vocab_size=len(tokenizer), **{**_SMALL, "num_hidden_layers": 4}, pad_token_id=tokenizer.pad_token_id
    )
    vision = {
        **_VISION,
        "model_type": "clip_vision_model",
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 16,
    }
    config = transformers.LlavaConfig(
        text_config=text.to_dict(),
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        pad_token_id=tokenizer.pad_token_id,
    )
    return make("LlavaForConditionalGeneration", config)


def glm(tokenizer: Any) -> Any:
    """CogView4's."""
    config = transformers.GlmConfig(
        vocab_size=len(tokenizer), head_dim=8, pad_token_id=tokenizer.pad_token_id, **_SMALL
    )
    return make("GlmModel", config)
