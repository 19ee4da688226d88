"""What a run of text encoders gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...models.text_side import NEGATIVE_PREFIX


@dataclass(frozen=True, slots=True)
class Truncation:
    """A prompt of which an encoder did not read the end.

    Attributes:
        prompt: ``prompt`` or ``negative_prompt``.
        index: Which one of the request.
        tokenizer: The component that cut it.
        tokens: How many were read, special ones and those of a template included.
    """

    prompt: str
    index: int
    tokenizer: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What a pipeline's ``__call__`` takes in place of prompts, one for each.

    Attributes:
        tensors: By the names of its arguments, on the engine's device.  What the pipeline makes None is not there.
        truncated: What was not read.
    """

    tensors: dict[str, torch.Tensor | list[torch.Tensor]]
    truncated: tuple[Truncation, ...] = ()


def truncations(reads: Mapping[str, Sequence[Any]], count: int, prefix: str) -> Iterator[Truncation]:
    """Of each tokenizer, the first texts are the prompts and the next ones the negative prompts."""
    for tokenizer, texts in reads.items():
        for place, text in enumerate(texts[: 2 * count]):
            if text.is_cut:
                negative = NEGATIVE_PREFIX if place >= count else prefix
                yield Truncation(f"{negative}prompt", place % count, tokenizer, text.tokens)
