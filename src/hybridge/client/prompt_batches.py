"""Prompts that are too many for one request: parted into several, whose embeddings are joined in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..errors import BadAnswer, RequestError
from ..protocol import PromptRequest, TensorLayout, WireTensor
from ..protocol.prompt import is_prompt
from .prompts import Embeddings

#: Facts about the encoders, which must not change between two parts.
_SAME = ("model", "class", "revision", "weights", "dtype")


def parts_of(request: PromptRequest, most: int) -> list[PromptRequest]:
    """Return requests with at most ``most`` prompts each; the request alone if it cannot be parted.

    A text that is no list, such as one negative prompt, is in every part.  Pictures belong to all prompts together.
    """
    batch = request.batch
    texts = {name: value for name, value in request.inputs.items() if is_prompt(name) and isinstance(value, list)}
    if not 0 < most < batch or request.images or any(len(value) != batch for value in texts.values()):
        return [request]
    return [
        replace(request, inputs={**request.inputs, **{name: texts[name][begin : begin + most] for name in texts}})
        for begin in range(0, batch, most)
    ]


def joined(parts: Sequence[PromptRequest], answers: Sequence[Embeddings]) -> Embeddings:
    """Return the embeddings of all parts' prompts, in order.

    Raises:
        BadAnswer: when the parts were encoded by different models.
        RequestError: when they differ in length, because these encoders pad to the longest prompt of a request; and
            for tensors of the wire.
    """
    first = answers[0]
    for other in answers[1:]:
        changed = [name for name in _SAME if first.metadata.get(name) != other.metadata.get(name)]
        if changed or first.keys() != other.keys() or first.layouts != other.layouts:
            raise BadAnswer(
                "the text encoders changed between two requests", saw=", ".join(changed), hint="once more"
            )
    values = {
        name: _joined([one[name] for one in answers], first.layouts[name]) if name in first.layouts else first[name]
        for name in first
    }
    return Embeddings(values, first.layouts, first.metadata, _truncated(parts, answers))


def _joined(values: Sequence[Any], layout: TensorLayout) -> Any:
    if layout == "list":
        return [one for value in values for one in value]
    if any(isinstance(value, WireTensor) for value in values):
        raise RequestError("tensors of the wire are not joined", hint="kind='torch' or kind='numpy'")
    if layout == "cu_seqlens":
        moved = [values[0]]
        for value in values[1:]:
            moved.append(value[1:] + moved[-1][-1])
        return _concatenated(moved, 0)
    return _concatenated(values, 1 if layout == "batch-axis-1" else 0)


def _concatenated(values: Sequence[Any], axis: int) -> Any:
    shapes = {(*value.shape[:axis], *value.shape[axis + 1 :]) for value in values}
    if len(shapes) > 1:
        raise RequestError(
            "embeddings of several requests differ in length",
            saw=" and ".join(sorted(str(list(shape)) for shape in shapes)),
            expected="one length: these text encoders pad to the longest prompt of a request",
            hint="no more prompts at once than the server's --max-batch",
        )
    first = values[0]
    shape = (*first.shape[:axis], sum(value.shape[axis] for value in values), *first.shape[axis + 1 :])
    if hasattr(first, "new_empty"):  # torch's
        whole = first.new_empty(shape)
    else:
        import numpy as np

        whole = np.empty(shape, first.dtype)
    begin = 0
    for value in values:
        end = begin + value.shape[axis]
        whole[(slice(None),) * axis + (slice(begin, end),)] = value
        begin = end
    return whole


def _truncated(parts: Sequence[PromptRequest], answers: Sequence[Embeddings]) -> dict[str, tuple[int, ...]]:
    """Return which texts were cut, by their places among all prompts."""
    cut: dict[str, tuple[int, ...]] = {}
    begin = 0
    for part, answer in zip(parts, answers, strict=True):
        for name, places in answer.truncated.items():
            moved_by = begin if isinstance(part.inputs.get(name), list) else 0
            cut[name] = tuple(sorted({*cut.get(name, ()), *(place + moved_by for place in places)}))
        begin += part.batch
    return cut
