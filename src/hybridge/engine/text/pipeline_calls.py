"""One request as calls of the pipeline's own ``encode_prompt``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...models import TextSide
from ...models.text_side import NEGATIVE_PREFIX, Call
from .checking import Asked
from .cost import tokens_of
from .embeddings import Truncation, truncations
from .loading import TextParts
from .pictures import PREPARED, Prepared
from .tokenizers import fresh

#: What ``encode_prompt`` may be told, besides what a request says.
_PER_PROMPT = ("num_images_per_prompt", "num_videos_per_prompt")


@dataclass(frozen=True, slots=True)
class PipelineCalls:
    """Calls ``encode_prompt`` as the pipeline's ``__call__`` does.

    Attributes:
        side: What is known of the pipeline's text encoders.
        parts: The pipeline and its encoders.
        device: Where they are.
    """

    side: TextSide
    parts: TextParts
    device: torch.device

    def encode(
        self, asked: Asked, images: Sequence[Any]
    ) -> tuple[dict[str, torch.Tensor | list[torch.Tensor]], list[Truncation]]:
        """Return what ``__call__`` would have of these prompts, by the names of its arguments, and what was cut.

        Args:
            asked: The prompts, which may be encoded together.
            images: Pillow's pictures, for pipelines whose embeddings depend on them.
        """
        tensors: dict[str, torch.Tensor | list[torch.Tensor]] = {}
        truncated: list[Truncation] = []
        pictures: Prepared = ({}, {})
        if self.side.picture:
            pictures = PREPARED[self.side.picture](self.parts.pipeline, images, asked.options)
        negatives = self._negatives(asked)
        for call in self.side.calls:
            texts: dict[str, list[str] | None] = dict(asked.prompts)
            guided = call.negative == "argument" and negatives is not None
            if call.negative == "argument":
                texts |= negatives or dict.fromkeys(self.side.negatives)
            self._call(call, texts, asked, guided, pictures[0], "", tensors, truncated)
            if call.negative == "call" and negatives is not None:
                instead = {name.removeprefix(NEGATIVE_PREFIX): list_ for name, list_ in negatives.items()}
                self._call(call, instead, asked, False, pictures[1], NEGATIVE_PREFIX, tensors, truncated)
        return tensors, truncated

    def _call(
        self,
        call: Call,
        texts: Mapping[str, list[str] | None],
        asked: Asked,
        guided: bool,
        pictures: Mapping[str, Any],
        prefix: str,
        tensors: dict[str, torch.Tensor | list[torch.Tensor]],
        truncated: list[Truncation],
    ) -> None:
        """Calls ``encode_prompt`` once, and adds what it gives under the names of ``__call__``'s arguments."""
        takes = inspect.signature(self.parts.pipeline.encode_prompt).parameters
        given: dict[str, Any] = {"device": self.device, "do_classifier_free_guidance": guided}
        given |= dict.fromkeys(_PER_PROMPT, 1)
        if self.side.takes_dtype:
            given["dtype"] = self.parts.dtype.value
        given |= {name: self.default(name) for name in self._options() if name not in asked.options}
        given |= {**asked.options, **pictures}
        given = {name: value for name, value in given.items() if name in takes} | dict(call.arguments)
        if self.side.count:
            given[self.side.count] = asked.count
        # Copies, since pipelines write into the lists that they are given.
        given |= {name: None if all_ is None else list(all_) for name, all_ in texts.items() if name in takes}
        with fresh(self.parts.reads) as reads:
            made = self.parts.pipeline.encode_prompt(**given)
            truncated += truncations(reads, asked.count, prefix)
        known = {(one.prompt, one.index, one.tokenizer) for one in truncated}
        cut_before = self._cut_before(texts["prompt"] or [], asked, prefix)
        truncated += [one for one in cut_before if (one.prompt, one.index, one.tokenizer) not in known]
        for name, value in zip(call.returns, made, strict=True):
            is_wanted = guided or not (name or "").startswith(NEGATIVE_PREFIX)
            if name is not None and value is not None and is_wanted:
                tensors[prefix + name] = value

    def _cut_before(self, prompts: Sequence[str], asked: Asked, prefix: str) -> Iterator[Truncation]:
        """What pipelines cut before a tokenizer could, found by counting once more."""
        for encoder in self.side.encoders:
            if encoder.cut_with is None:
                continue
            tokenizer = getattr(self.parts.pipeline, encoder.tokenizer)
            most = tokens_of(encoder, asked, self.default)
            for index, text in enumerate(prompts):
                if len(tokenizer(text, add_special_tokens=False)["input_ids"]) + encoder.cut_with > most:
                    yield Truncation(f"{prefix}prompt", index, encoder.tokenizer, most)

    def _negatives(self, asked: Asked) -> dict[str, list[str] | None] | None:
        """The negative prompts to encode; None where the pipeline uses none."""
        guidance = self.side.guidance
        if asked.negatives is None or guidance is None:
            return None
        negatives = dict(asked.negatives)
        first = f"{NEGATIVE_PREFIX}prompt"
        if negatives[first] is not None:
            return negatives
        if guidance.only_if_given:
            return None
        text = guidance.text if self.side.parameter(first) is None else self.default(first)
        text = guidance.text if text is None else text
        negatives[first] = None if text is None else [text] * asked.count
        return negatives

    def _options(self) -> list[str]:
        return [one.name for one in self.side.parameters if one.kind not in ("prompt", "negative")]

    def default(self, name: str) -> Any:
        """That of the pipeline's ``__call__``, which is not always that of its ``encode_prompt``."""
        return inspect.signature(type(self.parts.pipeline).__call__).parameters[name].default
