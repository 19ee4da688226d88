"""Compare the text encoders of a pipeline with those of a server, without torch's help beyond their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..models import TextSide
from ..models.text_fingerprint import (
    ROUNDINGS,
    canonical_name,
    digests_of_weights,
    fingerprint_of_tokenizer,
    group_of_names,
    is_used,
)
from ..models.text_side import Encoder


def difference(pipe: Any, side: TextSide, served: Any) -> str | None:
    """Return why a pipeline's text encoders are not known to equal a server's; None if they do.

    Args:
        pipe: The pipeline.
        side: The facts about its text encoders.
        served: What the server says of its own: ``text`` of ``GET /v1/models/{model}``.
    """
    said = served.get("fingerprint") if isinstance(served, Mapping) else None
    if not isinstance(said, Mapping):
        why = served.get("no_fingerprint") if isinstance(served, Mapping) else None
        return f"the server does not say which weights it has{f': {str(why)[:200]}' if why else ''}"
    if served.get("quantisation"):
        return f"the server's are quantised to {str(served['quantisation'])[:40]}"
    encoders = {one.name: getattr(pipe, one.name, None) for one in side.encoders}
    others = _mapping(said.get("encoders"))
    if absent := [name for name, own in encoders.items() if (own is not None) != (name in others)]:
        return f"{absent[0]} exists {'on the server' if absent[0] in others else 'here'} only"
    for name, value in _mapping(said.get("settings")).items():
        if name in pipe.config and pipe.config[name] != value:
            return f"{name[:40]} is {pipe.config[name]} here and {str(value)[:40]} there"
    for encoder in side.encoders:
        if encoders[encoder.name] is not None:
            own = _difference_of_encoder(encoders[encoder.name], encoder, _mapping(others[encoder.name]))
            own = own or _difference_of_tokenizer(pipe, encoder, _mapping(said.get("tokenizers")))
            if own is not None:
                return own
    return None


def state_of(pipe: Any, side: TextSide) -> tuple[object, ...]:
    """Return what changes when a pipeline's text encoders are replaced, trained, or given a LoRA or tokens."""
    state: list[object] = []
    for encoder in side.encoders:
        model, tokenizer = getattr(pipe, encoder.name, None), getattr(pipe, encoder.tokenizer, None)
        tokens = None if tokenizer is None else len(getattr(tokenizer, "tokenizer", tokenizer))
        weights = {} if model is None else _weights(model, encoder, None)
        is_readable = not any(map(_why_not_readable, weights.values()))
        digests = digests_of_weights(weights, getattr(model, "config", None)) if is_readable else {}
        state.append((encoder.name, tokens, tuple(sorted(weights)), digests.get("float32")))
    return tuple(state)


def _difference_of_encoder(model: Any, encoder: Encoder, served: Mapping[str, Any]) -> str | None:
    layers = served.get("layers")
    weights = _weights(model, encoder, layers if isinstance(layers, int) else None)
    unreadable = next(filter(None, map(_why_not_readable, weights.values())), None)
    if unreadable is not None:
        return f"the weights of {encoder.name} are {unreadable} here"
    own = digests_of_weights(weights, model.config)
    numbers: dict[str, int] = {}
    for weight in weights.values():
        dtype = str(weight.dtype).removeprefix("torch.")
        numbers[dtype] = numbers.get(dtype, 0) + weight.numel()
    # One of the two was rounded to the other's dtype, or both to this pipeline's.
    dtypes = {max(numbers, key=lambda dtype: numbers[dtype]), str(served.get("stored"))} & set(ROUNDINGS)
    is_equal = any(own[dtype] == served.get(dtype) for dtype in dtypes)
    return None if is_equal else f"the weights of {encoder.name} are not the server's"


def _difference_of_tokenizer(pipe: Any, encoder: Encoder, served: Mapping[str, Any]) -> str | None:
    tokenizer = getattr(pipe, encoder.tokenizer, None)
    if tokenizer is None:
        return None
    own, other = fingerprint_of_tokenizer(tokenizer), _mapping(served.get(encoder.tokenizer))
    if own == other:
        return None
    return f"{encoder.tokenizer} has {own['tokens']} tokens here and {str(other.get('tokens'))[:20]} there" + (
        ", which differ" if own["tokens"] == other.get("tokens") else ""
    )


def _weights(model: Any, encoder: Encoder, layers: int | None) -> dict[str, Any]:
    """Return the weights that affect embeddings, by canonical name."""
    groups = group_of_names(model.named_parameters(remove_duplicate=False))
    names = {first: canonical_name(first) for first in groups}
    return {own: model.get_parameter(first) for first, own in names.items() if is_used(own, encoder, layers)}


def _why_not_readable(weight: Any) -> str | None:
    if weight.is_meta:
        return "offloaded"
    return None if weight.is_floating_point() and type(weight).__name__ == "Parameter" else "quantised"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
