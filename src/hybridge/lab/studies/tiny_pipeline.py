"""A tiny SDXL with random weights: every library finds the modules that it looks for, and a picture takes a second.

No hub and no network.  Its pictures show nothing; that something changed, and whether it was put back, they show to
the bit.  What is kept of the real one in ``tiny_pipeline.json``, because techniques depend on it:

* three levels, of which the first has no attention and the last most of it (transformers of 1, 2 and 3 layers; the
  real one has 1, 2 and 10), so hooks on ``down_blocks`` and ``up_blocks`` find their places;
* the prompt's width is that of both text encoders together, 77 tokens long; beside it six numbers of sizes, the
  refiner's five, of eight numbers each, and the pooled text;
* eight pixels per latent, and ``force_upcast`` in the VAE's config: SDXL's own VAE overflows in float16;
* ``attention_head_dim`` is the number of heads;
* the scheduler's settings.
"""

from __future__ import annotations

import json
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

_CONFIGS: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def save_tiny(folder: Path, *, seed: int = 0) -> None:
    """Writes the base into ``folder/base`` and what goes with it beside, in the hub's layout.

    ``refiner``, ``taesd``, and ``vae-fp16-fix``: the base's own VAE, which never overflowed, without the mark.
    """
    base = tiny_base(seed=seed)
    base.save_pretrained(folder / "base")
    vae = tiny_vae(force_upcast=False)
    vae.load_state_dict(base.vae.state_dict())
    vae.save_pretrained(folder / "vae-fp16-fix")
    _refiner(base, seed=seed + 1).save_pretrained(folder / "refiner")
    torch.manual_seed(seed + 2)
    AutoencoderTiny(**_CONFIGS["taesd"]).save_pretrained(folder / "taesd")


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
        unet=UNet2DConditionModel(**_CONFIGS["unet"], **_CONFIGS["base"]),
        scheduler=EulerDiscreteScheduler(**_CONFIGS["scheduler"]),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    for part in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2, pipe.unet):
        part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_vae(*, force_upcast: bool = True) -> AutoencoderKL:
    """Four levels of 16 and 32 channels instead of 128 to 512."""
    return AutoencoderKL(**_CONFIGS["vae"], force_upcast=force_upcast)


def _refiner(base: Any, *, seed: int) -> StableDiffusionXLImg2ImgPipeline:
    """SDXL's refiner: the second text encoder alone, an aesthetic score among the sizes; shares what it can."""
    torch.manual_seed(seed)
    return StableDiffusionXLImg2ImgPipeline(
        vae=base.vae,
        text_encoder=None,
        text_encoder_2=base.text_encoder_2,
        tokenizer=None,
        tokenizer_2=base.tokenizer_2,
        unet=UNet2DConditionModel(**_CONFIGS["unet"], **_CONFIGS["refiner"]),
        scheduler=EulerDiscreteScheduler(**_CONFIGS["scheduler"]),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def _text_config(tokenizer: CLIPTokenizer, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        **_CONFIGS["text"],
        vocab_size=len(tokenizer),
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
    longest = _CONFIGS["text"]["max_position_embeddings"]
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=pad, model_max_length=longest)


def _byte_letters() -> list[str]:
    """A printable letter for each byte, as byte-level BPE has them: itself, or one above 255."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    above = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(above)) for byte in range(256)]
