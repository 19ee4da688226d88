"""How much work a request is, told before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...models import TextSide
from ...models.text_side import Encoder
from .checking import Asked
from .loading import TextParts

#: Of English, in the tokenizers of these models; other languages have fewer.
_CHARACTERS_PER_TOKEN = 3


def multiplied_weights(parts: TextParts) -> dict[str, int]:
    """Return for each encoder how many weights a token is multiplied with: all but the table of embeddings."""
    return {
        name: sum(parameter.numel() for parameter in model.parameters())
        - model.get_input_embeddings().weight.numel()
        for name, model in parts.encoders.items()
    }


def flops(asked: Asked, side: TextSide, weights: Mapping[str, int], default: Callable[[str], Any]) -> float:
    """Two operations for each token and each weight that it is multiplied with.

    Args:
        asked: The request.
        side: What is known of the encoders.
        weights: As from :func:`multiplied_weights`.
        default: The default of an option.
    """
    work = 0.0
    texts = list(asked.prompts["prompt"] or ())
    if asked.negatives is not None:
        texts += asked.negatives[next(iter(asked.negatives))] or [""] * asked.count
    for encoder in side.encoders:
        if encoder.name in weights:
            most = tokens_of(encoder, asked, default)
            work += sum(2.0 * weights[encoder.name] * _tokens(encoder, most, text) for text in texts)
    return work


def tokens_of(encoder: Encoder, asked: Asked, default: Callable[[str], Any]) -> int:
    """Return how many tokens of a prompt an encoder reads at most, without those of a template."""
    most = encoder.tokens
    return int(asked.options.get(most, default(most))) if isinstance(most, str) else most


def _tokens(encoder: Encoder, most: int, text: str) -> int:
    own = most if encoder.fills else min(most, len(text) // _CHARACTERS_PER_TOKEN + 1)
    return own + encoder.extra_tokens
