"""Records what ComfyUI's own code makes of the texts in comfy_text.py, with small encoders of random weights.

    COMFYUI_DIR=~/ComfyUI PYTHONPATH=tests python tests/golden/record_comfyui.py

ComfyUI needs einops, psutil and torch.  Its tokenizers, its encoders and what its models do with them run here; the
sizes of the encoders alone are others than in its files.
"""

# ruff: noqa: E402 - ComfyUI reads the command line when it is imported

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.argv = sys.argv[:1]
sys.path.insert(0, os.path.expanduser(os.environ["COMFYUI_DIR"]))

import comfy.cli_args

comfy.cli_args.args.cpu = True

import torch
from comfy import sd1_clip, sdxl_clip
from comfy.text_encoders import flux, sd3_clip, t5
from comfy_text import CASES, TEXTS, components, condensed
from safetensors.torch import save_file

HERE = Path(__file__).parent

_T5_TOKENS = {
    "pad_with_end": False,
    "has_start_token": False,
    "pad_to_max_length": False,
    "max_length": 99999999,
}
_PENULTIMATE = {"layer": "hidden", "layer_idx": -2, "layer_norm_hidden_state": False}


def tokenizer_of(tokenizer: Any, **how: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return sd1_clip.SDTokenizer(folder, tokenizer_class=type(tokenizer), **how)


def clip_of(model: Any, tokenizer: Any, **how: Any) -> Any:
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "hidden_act")
    config = {name: getattr(model.config, name) for name in names}
    config |= {"vocab_size": model.config.vocab_size, "max_position_embeddings": 77}
    special = {"start": tokenizer.start_token, "end": tokenizer.end_token, "pad": tokenizer.pad_token}
    made = sd1_clip.SDClipModel(textmodel_json_config=config, special_tokens=special, dtype=torch.float32, **how)
    weights = {
        name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}": weight
        for name, weight in model.state_dict().items()
    }
    lacking = made.load_sd(weights)
    assert set(lacking.missing_keys) <= {"text_projection.weight"}
    assert not lacking.unexpected_keys
    return made


def t5_of(model: Any, **how: Any) -> Any:
    names = ("num_layers", "d_model", "d_kv", "num_heads", "d_ff", "is_gated_act", "model_type", "vocab_size")
    config = {name: getattr(model.config, name) for name in names} | {"dense_act_fn": "gelu_pytorch_tanh"}
    special = {"end": 1, "pad": 0}
    how = {"textmodel_json_config": config, "special_tokens": special, "model_class": t5.T5} | how
    made = sd1_clip.SDClipModel(dtype=torch.float32, **how)
    assert not made.load_sd(dict(model.state_dict())).missing_keys
    return made


def model_of(family: str) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """The tokenizers and the encoders by ComfyUI's names, and what its model does with their tokens."""
    parts = components(family)
    tokenizers: dict[str, Any] = {}
    towers: dict[str, Any] = {}
    if family != "wan":
        tokenizers["l"] = tokenizer_of(parts["tokenizer"])
        how = {} if family in ("sd1", "flux") else dict(_PENULTIMATE)
        if family in ("sd3", "sd3_no_t5", "flux"):
            how["return_projected_pooled"] = False
        towers["clip_l"] = clip_of(parts["text_encoder"], tokenizers["l"], **how)
    if family.startswith("sd") and family != "sd1":
        tokenizers["g"] = tokenizer_of(parts["tokenizer_2"], pad_with_end=False)
        towers["clip_g"] = clip_of(parts["text_encoder_2"], tokenizers["g"], **_PENULTIMATE)
    if family == "sd3":
        tokenizers["t5xxl"] = tokenizer_of(parts["tokenizer_3"], min_length=77, **_T5_TOKENS)
        towers["t5xxl"] = t5_of(parts["text_encoder_3"])
    if family == "flux":
        tokenizers["t5xxl"] = tokenizer_of(parts["tokenizer_2"], min_length=256, **_T5_TOKENS)
        towers["t5xxl"] = t5_of(parts["text_encoder_2"])
    if family == "wan":
        tokenizers["umt5xxl"] = tokenizer_of(parts["tokenizer"], min_length=512, pad_token=0, **_T5_TOKENS)
        masked = {"enable_attention_masks": True, "zero_out_masked": True}
        towers["umt5xxl"] = t5_of(parts["text_encoder"], **masked)
    held = SimpleNamespace(**{"t5xxl": None, "t5_attention_mask": False, **towers})
    joins = {
        "sd1": lambda tokens: held.clip_l.encode_token_weights(tokens["l"]),
        "sdxl": lambda tokens: sdxl_clip.SDXLClipModel.encode_token_weights(held, tokens),
        "sd3": lambda tokens: sd3_clip.SD3ClipModel.encode_token_weights(held, {"t5xxl": [], **tokens}),
        "flux": lambda tokens: flux.FluxClipModel.encode_token_weights(held, tokens),
        "wan": lambda tokens: held.umt5xxl.encode_token_weights(tokens["umt5xxl"]),
    }
    return tokenizers, towers, joins[family.removesuffix("_no_t5")]


@torch.no_grad()
def main() -> None:
    recorded: dict[str, torch.Tensor] = {}
    for family in CASES:
        tokenizers, towers, encode = model_of(family)
        for index, (text, options) in enumerate(TEXTS):
            if family == "wan" and options:
                continue
            for name, tower in towers.items():
                tower.reset_clip_options()
                if "clip_layer" in options and name.startswith("clip"):
                    tower.set_clip_options({"layer": options["clip_layer"]})
            tokens = {name: tokenizer.tokenize_with_weights(text) for name, tokenizer in tokenizers.items()}
            cond, pooled, *_ = encode(tokens)
            recorded[f"{family}.{index}.cond"] = condensed(cond)
            if pooled is not None:
                recorded[f"{family}.{index}.pooled_output"] = condensed(pooled)
    rounded = {name: tensor.float().contiguous() for name, tensor in recorded.items()}
    save_file(rounded, HERE / "comfyui_text.safetensors")


if __name__ == "__main__":
    main()
