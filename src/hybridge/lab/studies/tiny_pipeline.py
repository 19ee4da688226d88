"""A tiny SDXL with random weights: every library finds the modules that it looks for, and a picture takes a second.

No hub and no network.  Its pictures show nothing; that something changed, and whether it was put back, they show to
the bit.  What is kept of the real one, because techniques depend on it:

* three levels, of which the first has no attention and the last most of it (transformers of 1, 2 and 3 layers; the
  real one has 1, 2 and 10), so hooks on ``down_blocks`` and ``up_blocks`` find their places;
* the prompt's width is that of both text encoders together, 77 tokens long; six numbers of sizes beside it;
* eight pixels per latent, and ``force_upcast`` in the VAE's config: SDXL's own VAE overflows in float16;
* the scheduler's settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

#: Sides of its pictures, unless asked for others.
PIXELS = 128

#: Hidden size of both text encoders, and of the projection.
_TEXT_WIDTH = 32

#: Of each number that says a size.
_SIZE_WIDTH = 8

_TOKENS = 77


def save_tiny(folder: Path, *, seed: int = 0) -> None:
    """Writes the base into ``folder/base`` and what goes with it beside, in the hub's layout.

    ``refiner``, ``taesd``, and ``vae-fp16-fix``: the base's own VAE, which never overflowed, without the mark.
    """
    base = tiny_base(seed=seed)
    base.save_pretrained(folder / "base")
    vae = tiny_vae(force_upcast=False)
    vae.load_state_dict(base.vae.state_dict())
    vae.save_pretrained(folder / "vae-fp16-fix")
    tiny_refiner(base, seed=seed + 1).save_pretrained(folder / "refiner")
    tiny_taesd(seed=seed + 2).save_pretrained(folder / "taesd")


def tiny_base(*, seed: int = 0) -> StableDiffusionXLPipeline:
    """SDXL base: a StableDiffusionXLPipeline in float32 on the CPU, in eval mode and frozen."""
    torch.manual_seed(seed)
    tokenizer, tokenizer_2 = _tokenizer("<|endoftext|>"), _tokenizer("!")
    pipe = StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(_text_config(tokenizer, "quick_gelu")),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer_2, "gelu")),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=_unet(sizes=6, context=2 * _TEXT_WIDTH),
        scheduler=_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    return _ready(pipe)


def tiny_refiner(base: Any, *, seed: int = 1) -> StableDiffusionXLImg2ImgPipeline:
    """SDXL's refiner: the second text encoder alone, an aesthetic score among the sizes; shares what it can."""
    torch.manual_seed(seed)
    pipe = StableDiffusionXLImg2ImgPipeline(
        vae=base.vae,
        text_encoder=None,
        text_encoder_2=base.text_encoder_2,
        tokenizer=None,
        tokenizer_2=base.tokenizer_2,
        unet=_unet(sizes=5, context=_TEXT_WIDTH),
        scheduler=_scheduler(),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    return _ready(pipe)


def tiny_vae(*, force_upcast: bool = True) -> AutoencoderKL:
    """Four levels of 16 and 32 channels instead of 128 to 512."""
    channels = (16, 32, 32, 32)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=PIXELS,
        scaling_factor=0.13025,
        force_upcast=force_upcast,
    )


def tiny_taesd(*, seed: int = 2) -> AutoencoderTiny:
    """TAESD's shape, 16 channels wide instead of 64."""
    torch.manual_seed(seed)
    widths = (16,) * 4
    module = AutoencoderTiny(encoder_block_out_channels=widths, decoder_block_out_channels=widths)
    return module.eval().requires_grad_(False)


def _unet(*, sizes: int, context: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=PIXELS // 8,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3),
        attention_head_dim=(4, 4, 4),  # heads: in SDXL's configs the name means their number
        use_linear_projection=True,
        norm_num_groups=16,
        cross_attention_dim=context,
        addition_embed_type="text_time",
        addition_time_embed_dim=_SIZE_WIDTH,
        projection_class_embeddings_input_dim=sizes * _SIZE_WIDTH + _TEXT_WIDTH,
    )


def _scheduler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )


def _text_config(tokenizer: CLIPTokenizer, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_TEXT_WIDTH,
        intermediate_size=4 * _TEXT_WIDTH,
        projection_dim=_TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=_TOKENS,
        hidden_act=activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )


def _tokenizer(pad: str) -> CLIPTokenizer:
    """CLIP's own class over single bytes: any prompt, no merges."""
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=pad, model_max_length=_TOKENS)


def _byte_letters() -> list[str]:
    """A printable letter for each byte, as byte-level BPE has them: itself, or one above 255."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    above = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(above)) for byte in range(256)]


def _ready(pipe: Any) -> Any:
    for part in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2, pipe.unet):
        if part is not None:
            part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
