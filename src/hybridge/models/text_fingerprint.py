"""Tell whether a pipeline's text encoders are those of a server, without sending or reading all weights.

Both sides compute the same digests: of some numbers of each weight, of the entries of the config that change
results, and of the tokenizer.  A fine-tuned model, a merged LoRA and added tokens change a digest.  Weights are
rounded to a dtype first, because both sides may have rounded the same file differently.

Nothing here imports torch; the tensors and tokenizers are the caller's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from .text_side import Encoder

#: Dtypes to which weights are rounded, and the method of a tensor that does it.
ROUNDINGS = {"float32": "float", "float16": "half", "bfloat16": "bfloat16"}

#: Numbers that are read of each weight.  Merging a LoRA or training changes nearly all numbers of a matrix.
_SAMPLES = 64

#: Parts of names that differ between releases of transformers, and between classes that share weights.
_WRAPPERS = frozenset({"model", "text_model", "language_model"})

_LAYER = re.compile(r"layers\.(\d+)\.")

#: Entries of configs that change results and exist in all releases of transformers that have the model.
_CONFIG_ENTRIES = (
    *("hidden_act", "hidden_activation", "dense_act_fn", "eos_token_id", "head_dim"),
    *("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps"),
    *("num_attention_heads", "num_heads", "num_key_value_heads", "sliding_window"),
)

#: Letters, digits, quotes, accents and other scripts: tokenizers that differ in a rule read it differently.
_PROBE = 'A photo of 2 Cats, "naïve"  café — 東京!'

_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


def canonical_name(name: str) -> str:
    """Return a weight's name without the parts that differ between releases of transformers."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def is_used(name: str, encoder: Encoder, kept_layers: int | None) -> bool:
    """Return whether a weight affects embeddings.

    Args:
        name: Its canonical name.
        encoder: The row, which says what does not.
        kept_layers: The number of layers that are read; None for all.
    """
    if f"{name}.".startswith(tuple(f"{canonical_name(path)}." for path in encoder.without if canonical_name(path))):
        return False
    layer = _LAYER.match(name)
    return kept_layers is None or layer is None or int(layer[1]) < kept_layers


def digests_of_weights(weights: Mapping[str, Any], config: Any) -> dict[str, str]:
    """Return the digest of weights for each dtype of :data:`ROUNDINGS`.

    Args:
        weights: Tensors with any strides, on any device, by canonical name.
        config: The model's config.
    """
    samples = {name: _sample(weights[name]) for name in sorted(weights)}
    text = getattr(config, "text_config", None) or config
    entries = {name: getattr(text, name, None) for name in _CONFIG_ENTRIES}
    digests = {}
    for dtype, rounded in ROUNDINGS.items():
        digest = hashlib.sha256(json.dumps(entries, sort_keys=True, default=str).encode())
        for name, sample in samples.items():
            digest.update(f"\0{name} {tuple(weights[name].shape)}\0".encode())
            digest.update(getattr(sample, rounded)().float().numpy().tobytes())
        digests[dtype] = digest.hexdigest()[:16]
    return digests


def _sample(weight: Any) -> Any:
    """Return some numbers of a weight, on the CPU: evenly spaced, the first one included."""
    flat = weight.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES].cpu()


def fingerprint_of_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Return a tokenizer's number of tokens, and a digest of its vocabulary and of how it reads a text.

    Settings that pipelines change while they encode are left out.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
    facts: list[Any] = [sorted(tokenizer.get_vocab().items()), tokenizer(_PROBE)["input_ids"]]
    facts += [getattr(tokenizer, name, None) for name in (*_SPECIAL_TOKENS, "model_max_length", "chat_template")]
    digest = hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:16]
    return {"tokens": len(tokenizer), "digest": digest}


def group_of_names(names: Iterable[tuple[str, Any]]) -> dict[str, list[str]]:
    """Return all names of each tensor, by the first: tied weights have several names.

    Args:
        names: Names and tensors, duplicates included.
    """
    groups: dict[int, list[str]] = {}
    for name, tensor in names:
        groups.setdefault(id(tensor), []).append(name)
    return {group[0]: group for group in groups.values()}
