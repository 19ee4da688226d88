"""Requests for text embeddings, and what answers them, as values.

:mod:`.prompt_requests` and :mod:`.prompt_answers` say how they are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from .tensor import WireTensor

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

#: The position of the prompts in a tensor: ``batch``: along its first axis.  ``batch-axis-1``: along its second.
#: ``list``: one tensor per prompt.  ``cu_seqlens``: the tensor has the begin of each prompt's rows and the last
#: end.
TensorLayout = Literal["batch", "batch-axis-1", "list", "cu_seqlens"]

#: How embeddings are wrapped: all of them in a safetensors file, or ``prompt_embeds`` alone, as bare bytes with
#: ``shape`` and ``dtype`` headers or as ``torch.save`` writes one tensor.
PromptEnvelope = Literal["safetensors", "binary", "torch"]

#: For whom texts are encoded.
PromptConvention = Literal["diffusers", "comfyui"]


@dataclass(frozen=True, slots=True)
class PromptLimits:
    """The limits of one request.

    Attributes:
        max_json_bytes: Most bytes of the JSON object.
        max_prompts: Most prompts in a list.
        max_characters: Most characters of one text; tokenizers read the whole text before they truncate it.
        max_images: Most pictures.
    """

    max_json_bytes: int = 256 * 1024
    max_prompts: int = 32
    max_characters: int = 16_384
    max_images: int = 8


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """A request to encode prompts.

    Attributes:
        inputs: The arguments of ``encode_prompt``, by name, in JSON's types: ``prompt``, ``negative_prompt``,
            ``prompt_2``, …, ``max_sequence_length``, ….  A value None means that null was sent.
        images: Picture files, in the order in which they were sent.
        drop_padding: Whether the answer may omit rows of padding, where that changes no picture.
        envelope: The form of the answer.
        dtype: What floats are rounded to; None for the model's own.
        convention: ``comfyui``: the answer has the entries of a CONDITIONING, each as a list of one per prompt.
    """

    inputs: Mapping[str, Json] = field(repr=False)
    images: tuple[bytes, ...] = field(default=(), repr=False)
    drop_padding: bool = False
    envelope: PromptEnvelope = "safetensors"
    dtype: str | None = None
    convention: PromptConvention = "diffusers"

    @property
    def batch(self) -> int:
        """Number of prompts: the length of the longest list among ``prompt``, ``prompt_2``, … and negative ones."""
        lists = [value for name, value in self.inputs.items() if is_prompt(name) and isinstance(value, list)]
        return max(map(len, lists), default=1)


@dataclass(frozen=True, slots=True)
class PromptAnswer:
    """The text embeddings of one or more prompts.

    Attributes:
        tensors: The tensors by the argument names of the pipeline's ``__call__``; a tuple has a tensor per prompt.
        layouts: For each of the tensors, the position of the prompts in it.
        metadata: Facts as text: ``model``, ``class``, ``revision``, ``dtype``, versions of libraries, …
        truncated: For each prompt argument, the indices of the texts that were cut to the maximal length.
    """

    tensors: Mapping[str, WireTensor | tuple[WireTensor, ...]]
    layouts: Mapping[str, TensorLayout]
    metadata: Mapping[str, str] = field(default_factory=dict)
    truncated: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.flat().values())

    def flat(self) -> dict[str, WireTensor]:
        """Return the tensors by their names in the file: the items of a list are ``name.0``, ``name.1``, …"""
        flat: dict[str, WireTensor] = {}
        for name, value in self.tensors.items():
            if isinstance(value, tuple):
                flat |= {f"{name}.{index}": tensor for index, tensor in enumerate(value)}
            else:
                flat[name] = value
        return flat


def is_prompt(name: str) -> bool:
    """Return whether a member contains prompts: ``prompt``, ``prompt_2``, ``negative_prompt``, …"""
    stem, _, number = name.removeprefix("negative_").partition("_")
    return stem == "prompt" and (not number or number.isdecimal())
