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
from comfy import clip_model, sd1_clip, sdxl_clip
from comfy.text_encoders import flux, hunyuan_video, llama, qwen_image, sd3_clip, t5
from comfy_text import CASES, CHATS, TEXTS, components, condensed
from safetensors.torch import save_file

from hybridge.models.comfyui_text import COMFY_FAMILIES

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
    config["eos_token_id"] = tokenizer.end_token
    # Releases differ in whether the config or a default, the first one, has the size of the vocabulary.
    embeddings = clip_model.CLIPEmbeddings.__init__
    embeddings.__defaults__ = (model.config.vocab_size, *embeddings.__defaults__[1:])
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
        if family != "sdxl":
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


class Decoder(llama.BaseLlama, torch.nn.Module):
    """ComfyUI's language model in another size."""

    def __init__(self, config: Any, dtype: Any, device: Any, operations: Any) -> None:
        super().__init__()
        self.num_layers = config["num_hidden_layers"]
        self.model = llama.Llama2_(SimpleNamespace(**config), device=device, dtype=dtype, ops=operations)


#: Of each language model: the layers that are read, the length to which a text is padded, a token before it.
_CHATS: dict[str, tuple[dict[str, Any], int, bool]] = {
    "qwen": ({"layer": "last"}, 1, False),
    "z_image": ({"layer": "hidden", "layer_idx": -2}, 1, False),
    "flux2": ({"layer": [10, 20, 30]}, 1, True),
    "klein": ({"layer": [9, 18, 27]}, 512, False),
    "hunyuan": ({"layer": "hidden", "layer_idx": -3}, 1, True),
}


def chat_of(family: str) -> tuple[Any, Any]:
    """The tokenizer of a language model, and what its model does with the tokens of a text in its template."""
    parts = components(family)
    own, model = parts["tokenizer"], parts["text_encoder"]
    layers, least, has_start = _CHATS[family]
    decoder = next(one for one in model.modules() if hasattr(one, "embed_tokens") and hasattr(one, "layers"))
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = {name: getattr(decoder.config, name) for name in (*names, "num_key_value_heads", "rms_norm_eps")}
    norm = "gemma3" if family in ("z_image", "klein") else None
    config |= {"q_norm": norm, "k_norm": norm, "qkv_bias": family == "qwen", "final_norm": True, "lm_head": False}
    config |= {"transformer_type": "llama", "rms_norm_add": False, "mlp_activation": "silu"}
    config |= {"head_dim": decoder.layers[0].self_attn.head_dim, "rope_dims": None, "rope_scale": None}
    config |= {"rope_theta": decoder.config.rope_parameters["rope_theta"]}
    special = {"start": own.bos_token_id} if has_start else {}
    special["pad"] = own.pad_token_id
    made = sd1_clip.SDClipModel(
        textmodel_json_config=config,
        special_tokens=special,
        model_class=Decoder,
        dtype=torch.float32,
        layer_norm_hidden_state=False,
        enable_attention_masks=True,
        return_attention_masks=True,
        **layers,
    )
    assert not made.load_sd({f"model.{name}": one for name, one in decoder.state_dict().items()}).missing_keys
    made.float()
    tokenizer = tokenizer_of(
        own,
        pad_with_end=False,
        has_start_token=family == "hunyuan",  # whose tokenizer puts it before every text
        has_end_token=False,
        pad_to_max_length=False,
        max_length=99999999,
        min_length=least,
        pad_token=own.pad_token_id,
    )
    if has_start:
        tokenizer.start_token = own.bos_token_id
    tokenizer.tokenizer.padding_side = "right"
    if family == "hunyuan":
        real = {"<|start_header_id|>": 128006, "<|end_header_id|>": 128007, "<|eot_id|>": 128009}
        to_real = {own.convert_tokens_to_ids(name): number for name, number in real.items()}
        for word, number in (("user", 882), ("\n\n", 271)):
            (token,) = own(word, add_special_tokens=False)["input_ids"]
            to_real[token] = number
        clip_tokens = tokenizer_of(parts["tokenizer_2"])
        clip = clip_of(parts["text_encoder_2"], clip_tokens, return_projected_pooled=False)
        return tokenizer, _hunyuan(made, clip, clip_tokens, to_real)
    if family == "qwen":
        to_real = {own.convert_tokens_to_ids("<|im_start|>"): 151644, own("user")["input_ids"][0]: 872}
        to_real[own("\n")["input_ids"][0]] = 198
        return tokenizer, _as("qwen25_7b", qwen_image.QwenImageTEModel, made, to_real)
    if family in ("flux2", "klein"):
        return tokenizer, _as("mistral3_24b", flux.Flux2TEModel, made, {})
    return tokenizer, lambda tokens: made.encode_token_weights(tokens)


def _as(name: str, kind: Any, tower: Any, to_real: dict[int, int]) -> Any:
    """ComfyUI's model around a tower, to which tokens that it looks for have their real numbers."""
    model = kind.__new__(kind)
    torch.nn.Module.__init__(model)
    model.clip_name = model.clip = name

    class Inner(torch.nn.Module):
        def encode_token_weights(self, pairs: Any) -> Any:
            return tower.encode_token_weights([[(t.own, w) for t, w in row] for row in pairs])

    setattr(model, name, Inner())
    encode = _renumbered(to_real)
    return lambda tokens: model.encode_token_weights({name: encode(tokens)})


def _renumbered(to_real: dict[int, int]) -> Any:
    """Gives tokens that ComfyUI looks for their real numbers, and others numbers that it does not look for."""

    class Token(int):
        own: int

    def token(number: int) -> Token:
        made = Token(to_real.get(number, number + 10**6))
        made.own = number
        return made

    return lambda tokens: [[(token(number), weight) for number, weight in row] for row in tokens]


def _hunyuan(tower: Any, clip: Any, clip_tokens: Any, to_real: dict[int, int]) -> Any:
    class Llama:
        def encode_token_weights(self, pairs: Any) -> Any:
            return tower.encode_token_weights([[(t.own, w) for t, w in row] for row in pairs])

    held, encode = SimpleNamespace(llama=Llama(), clip_l=clip), _renumbered(to_real)

    def encoded(tokens: Any, text: str) -> Any:
        pairs = {"llama": encode(tokens), "l": clip_tokens.tokenize_with_weights(text)}
        return hunyuan_video.HunyuanVideoClipModel.encode_token_weights(held, pairs)

    return encoded


def record_chats(recorded: dict[str, torch.Tensor]) -> None:
    for family in CHATS:
        tokenizer, encode = chat_of(family)
        template = next(one.chat.template for one in COMFY_FAMILIES if one.chat and one.side == CASES[family])
        for index, (text, options) in enumerate(TEXTS):
            if options:
                continue
            reads_weights = family == "hunyuan"
            tokens = tokenizer.tokenize_with_weights(template.format(text), disable_weights=not reads_weights)
            cond, pooled, extra = encode(tokens, text) if reads_weights else encode(tokens)
            recorded[f"{family}.{index}.cond"] = condensed(cond)
            if pooled is not None:
                recorded[f"{family}.{index}.pooled_output"] = condensed(pooled)
            if "attention_mask" in extra:
                recorded[f"{family}.{index}.attention_mask"] = extra["attention_mask"]


@torch.no_grad()
def main() -> None:
    recorded: dict[str, torch.Tensor] = {}
    record_chats(recorded)
    for family in CASES:
        if family in CHATS:
            continue
        tokenizers, towers, encode = model_of(family)
        for index, (text, options) in enumerate(TEXTS):
            if options and family not in ("sd1", "sdxl"):
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
