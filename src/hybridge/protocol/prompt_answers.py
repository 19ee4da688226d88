"""The wire format of text embeddings: one safetensors file.

Each tensor has the name of the argument of the pipeline's ``__call__`` that takes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast, get_args

from ..errors import BadAnswer
from .padding import Kept, describe, drop_padding, kept_by_mask, kept_by_zeros, refill, understand
from .prompt import PromptAnswer, TensorLayout
from .safetensors_bytes import SAFETENSORS, read_safetensors, write_safetensors
from .tensor import WireTensor

#: Most characters of a name in an error.
_MOST_NAME = 60


def padding_of(answer: PromptAnswer, masks: Mapping[str, str]) -> dict[str, Kept]:
    """Return the rows to keep of each tensor whose padding may be omitted from an answer.

    Rows of zeros at the end may be omitted, because they are restored exactly.  Rows that a mask excludes may be
    omitted if the pipeline is known not to use them.

    Args:
        answer: The answer.
        masks: For each tensor whose masked rows are not used, the name of its mask.
    """
    found: dict[str, Kept] = {}
    for name, tensor in answer.tensors.items():
        if isinstance(tensor, tuple) or answer.layouts.get(name) != "batch":
            continue
        mask = answer.tensors.get(masks.get(name, ""))
        kept = kept_by_mask(mask) if isinstance(mask, WireTensor) else None
        if kept is None or tensor.shape[:2] != (len(kept.ranges), kept.rows):
            kept = kept_by_zeros(tensor)
        if kept is not None and kept.is_worthwhile:
            found[name] = kept
    return found


def write_prompt_answer(answer: PromptAnswer, padding: Mapping[str, Kept] | None = None) -> bytes:
    """Write the answer as one safetensors file; tensors in ``padding`` have only the rows that are kept."""
    padding = padding or {}
    about = {
        **answer.metadata,
        "layouts": json.dumps(dict(answer.layouts)),
        "truncated": json.dumps({name: list(items) for name, items in answer.truncated.items()}),
    }
    if padding:
        about["padding"] = json.dumps({name: describe(kept) for name, kept in padding.items()})
    tensors = {
        name: drop_padding(tensor, padding[name]) if name in padding else tensor
        for name, tensor in answer.flat().items()
    }
    return write_safetensors(tensors, about)


def read_prompt_answer(body: bytes, *, most_bytes: int) -> PromptAnswer:
    """Read a server's answer, and restore the padding that was omitted.

    Args:
        body: The safetensors file.
        most_bytes: Most bytes of all tensors, padding included; checked before memory is taken.

    Raises:
        BadAnswer: when it is not an answer of a hybridge server, or is truncated.
    """
    tensors, metadata = read_safetensors(body)
    layouts = _described(metadata.pop("layouts", None))
    padding = {name: understand(value) for name, value in _described(metadata.pop("padding", "{}")).items()}
    truncated = _described(metadata.pop("truncated", "{}"))
    if (
        any(layout not in get_args(TensorLayout) for layout in layouts.values())
        or not padding.keys() <= tensors.keys()
    ):
        raise _strange("layouts or padding")
    left = most_bytes - sum(tensor.nbytes for tensor in tensors.values())
    for name, kept in padding.items():
        left += tensors[name].nbytes
        tensors[name] = refill(tensors[name], kept, most_bytes=left)
        left -= tensors[name].nbytes
    read: dict[str, WireTensor | tuple[WireTensor, ...]] = {}
    for name, layout in layouts.items():
        members = [member for member in tensors if member.rpartition(".")[0] == name]
        names = [f"{name}.{index}" for index in range(len(members))] if layout == "list" else [name]
        if not names or not tensors.keys() >= set(names):
            raise _strange(f"no tensor for {name[:_MOST_NAME]!r}")
        taken = tuple(tensors.pop(member) for member in names)
        read[name] = taken if layout == "list" else taken[0]
    if tensors:
        raise _strange(f"a tensor {next(iter(tensors))[:_MOST_NAME]!r} without a layout")
    try:
        cut = {name: tuple(int(item) for item in items) for name, items in truncated.items()}
    except (TypeError, ValueError):
        raise _strange("what was truncated") from None
    return PromptAnswer(read, cast("dict[str, TensorLayout]", layouts), metadata, cut)


def _described(text: str | None) -> dict[str, Any]:
    try:
        document = json.loads(text or "")
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise _strange("metadata")
    return document


def _strange(saw: str) -> BadAnswer:
    return BadAnswer(
        "the answer is not one of text embeddings",
        saw=f"{saw} of another form",
        expected=f"{SAFETENSORS} as a hybridge server sends it",
        hint="a look at the address, or at the server's version",
    )
