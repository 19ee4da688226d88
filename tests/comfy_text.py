"""Small encoders and texts for ComfyUI's convention, for golden/record_comfyui.py and the test that compares."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from text_pipelines import encoders, tokenizers

from hybridge.models.comfyui_text import COMFY_FAMILIES

#: Each with the options of its request.
TEXTS: tuple[tuple[str, dict[str, int]], ...] = (
    ("", {}),
    ("a cat in rain", {}),
    ("a (cat:1.3) in ((rain)) and [fog], \\(not\\) (snow:0)", {}),
    ("unbalanced ) one ( two (three:0.5", {}),
    ("(((a (cat:2) b):1.5) c:x) :1.2 (:3) ()", {}),
    ("a lighthouse on a cliff, (waves:1.2) break against it, and " * 4 + "(night sky:0.8)", {}),
    ("a cat in (rain:1.4)", {"clip_layer": -2}),
    ("a cat in rain", {"clip_layer": -1}),
    ("a cat in rain", {"clip_layer": -24}),
)


def seeded(module: Any) -> Any:
    """The module with weights that depend on their names alone, whatever the versions of the libraries."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            short = name.removeprefix("text_model.").removeprefix("model.")
            draw = np.random.RandomState(zlib.crc32(short.encode())).standard_normal(tuple(weight.shape))
            is_norm = weight.ndim == 1 and "norm" in name and name.endswith("weight")
            is_table = weight.ndim == 1 or "embed" in name or "shared" in name
            scale = 0.3 if is_table else 1.5 / weight.shape[-1] ** 0.5
            weight.copy_(torch.from_numpy(draw * scale + is_norm))
    return module


def components(family: str) -> dict[str, Any]:
    """The text side of a small pipeline of a family."""
    clip_l, clip_g, t5 = tokenizers.clip(), tokenizers.clip("!"), tokenizers.t5()
    first = encoders.clip(clip_l, projected=family.startswith("sd3"))
    with_l = {"tokenizer": clip_l, "text_encoder": seeded(first)}
    with_g = {"tokenizer_2": clip_g, "text_encoder_2": seeded(encoders.clip(clip_g, projected=True))}
    made: dict[str, dict[str, Any]] = {
        "sd1": with_l,
        "sdxl": with_l | with_g,
        "sd3": with_l | with_g | {"tokenizer_3": t5, "text_encoder_3": seeded(encoders.t5(t5, width=4096))},
        "sd3_no_t5": with_l | with_g | {"tokenizer_3": None, "text_encoder_3": None},
        "flux": with_l | {"tokenizer_2": t5, "text_encoder_2": seeded(encoders.t5(t5))},
        "wan": {"tokenizer": t5, "text_encoder": seeded(encoders.umt5(t5))},
    }
    return made[family] if family in made else _chat(family)


def _chat(family: str) -> dict[str, Any]:
    """The language model of a family."""
    templates = [one.chat.template for one in COMFY_FAMILIES if one.chat]
    makers = {"flux2": tokenizers.mistral, "hunyuan": lambda: tokenizers.llama(*templates, "a\n\nb\n\nc")}
    tokenizer = makers.get(family, lambda: tokenizers.qwen(*templates))()
    if family == "hunyuan":
        clip = tokenizers.clip()
        second = {"tokenizer_2": clip, "text_encoder_2": seeded(encoders.clip(clip))}
        return {"tokenizer": tokenizer, "text_encoder": seeded(encoders.llama(tokenizer)), **second}
    makes: dict[str, Callable[[], Any]] = {
        "qwen": lambda: encoders.qwen2_vl(tokenizer),
        "z_image": lambda: encoders.qwen3(tokenizer, "Qwen3Model"),
        "flux2": lambda: encoders.mistral3(tokenizer),
        "klein": lambda: encoders.qwen3(tokenizer, "Qwen3ForCausalLM", layers=28),
    }
    return {"tokenizer": tokenizer, "text_encoder": seeded(makes[family]())}


def condensed(states: torch.Tensor) -> torch.Tensor:
    """Four sums of each vector with fixed random factors: a small record that any other vector would not give."""
    factors = np.random.RandomState(0).standard_normal((states.shape[-1], 4)) / states.shape[-1] ** 0.5
    return states.double() @ torch.from_numpy(factors)


#: Of each family, the pipeline's class.
CASES = {
    "sd1": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "sd3_no_t5": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
    "wan": "WanPipeline",
    "qwen": "QwenImagePipeline",
    "z_image": "ZImagePipeline",
    "flux2": "Flux2Pipeline",
    "klein": "Flux2KleinPipeline",
    "hunyuan": "HunyuanVideoPipeline",
}

#: Of language models as text encoders.
CHATS = ("qwen", "z_image", "flux2", "klein", "hunyuan")
