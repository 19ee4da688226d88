"""Convert prompts and embeddings between the caller's types and the wire, and repeat embeddings per picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import RequestError
from ..models import text_side_for
from ..protocol import (
    PictureFile,
    PromptAnswer,
    PromptConvention,
    PromptLimits,
    PromptRequest,
    TensorLayout,
    WireTensor,
)
from ..protocol.prompt_requests import check_inputs
from .conversion import Kind, from_wire, image_to_wire

#: The server enforces the limits; these are larger than any server's.
_LIMITS = PromptLimits(max_json_bytes=1 << 30, max_prompts=1 << 20, max_characters=1 << 30, max_images=1 << 10)


class Embeddings(dict[str, Any]):
    """Text embeddings by the argument names of the pipeline's ``__call__``: ``pipe(**embeddings)``.

    A value is a tensor, or a list of tensors if the pipeline takes one for each prompt.  ``prompt`` and
    ``negative_prompt`` are None, because not every pipeline has that as its default.

    Attributes:
        layouts: For each argument, the position of the prompts; see :data:`hybridge.protocol.TensorLayout`.
        metadata: The server's facts: model, revision, dtype, class, versions of libraries.
        truncated: For each prompt argument, the indices of the texts that were cut to the maximal length.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        layouts: Mapping[str, TensorLayout],
        metadata: Mapping[str, str] | None = None,
        truncated: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        super().__init__(values)
        self.layouts = dict(layouts)
        self.metadata = dict(metadata or {})
        self.truncated = dict(truncated or {})


def prompt_request(
    inputs: Mapping[str, Any], images: Any, *, drop_padding: bool, convention: PromptConvention = "diffusers"
) -> PromptRequest:
    """Return the request for :meth:`Calls.encode_prompt`'s arguments.

    Raises:
        RequestError: for invalid arguments.
    """
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()}
    pictures = [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]
    files = tuple(map(_file_of, pictures))
    return PromptRequest(check_inputs(plain, _LIMITS), files, drop_padding, convention=convention)


def _file_of(image: Any) -> bytes:
    content, _ = image_to_wire(image)
    if not isinstance(content, PictureFile):
        raise RequestError(
            "an image for a prompt is a picture",
            saw=f"a tensor {list(content.shape)}" if isinstance(content, WireTensor) else "a video",
            expected="a PIL image, the path of a file or its bytes",
        )
    return content.data


def embeddings_of(answer: PromptAnswer, kind: Kind) -> Embeddings:
    """Convert an answer to values of ``kind``.

    Pipelines whose negative prompt is empty by default refuse it beside embeddings; so prompts are None.
    """
    values: dict[str, Any] = {
        name: [from_wire(one, kind) for one in value] if isinstance(value, tuple) else from_wire(value, kind)
        for name, value in answer.tensors.items()
    }
    side = text_side_for(answer.metadata.get("class", ""))
    is_for_pipelines = answer.metadata.get("convention", "diffusers") == "diffusers"
    if side is not None and is_for_pipelines and kind != "wire":
        negative = "negative_prompt" if side.parameter("negative_prompt") else "prompt"
        values = {"prompt": None, negative: None, **side.call_with, **values}
    return Embeddings(values, answer.layouts, answer.metadata, answer.truncated)


def repeat_for_images(embeddings: Embeddings, num_images_per_prompt: int) -> Embeddings:
    """Repeat embeddings for several pictures of each prompt; repeats of one prompt are adjacent.

    Servers return one embedding for each prompt.  Pipelines that are given embeddings handle
    ``num_images_per_prompt`` differently: some repeat them, some refuse, and some give other pictures.  So the
    embeddings are repeated here, and the pipeline is called with ``num_images_per_prompt=1``, which is its default.

    Args:
        embeddings: The result of :meth:`Client.encode_prompt`.
        num_images_per_prompt: Number of pictures of each prompt, at least 1.

    Raises:
        RequestError: for a number below 1.
    """
    count = num_images_per_prompt
    if type(count) is not int or count < 1:
        raise RequestError("num_images_per_prompt is no number of pictures", saw=repr(count), expected="1 or more")
    if count == 1:
        return embeddings
    values = {
        name: repeated(value, embeddings.layouts[name], count) if name in embeddings.layouts else value
        for name, value in embeddings.items()
    }
    return Embeddings(values, embeddings.layouts, embeddings.metadata, embeddings.truncated)


def repeated(value: Any, layout: TensorLayout, count: int) -> Any:
    """Return one value of embeddings with each prompt repeated ``count`` times."""
    if layout == "list":
        return [one for one in value for _ in range(count)]
    if isinstance(value, WireTensor):
        raise RequestError(
            "tensors of the wire are not repeated",
            saw=f"num_images_per_prompt={count}",
            hint="kind='torch' or kind='numpy'",
        )
    is_torch = hasattr(value, "repeat_interleave")
    if layout == "cu_seqlens":
        lengths = (value[1:] - value[:-1]).repeat_interleave(count) if is_torch else _np_repeat(value, count)
        sums = value.new_zeros(len(lengths) + 1) if is_torch else _np_zeros(value, len(lengths) + 1)
        sums[1:] = lengths.cumsum(0)
        return sums
    axis = 1 if layout == "batch-axis-1" else 0
    return value.repeat_interleave(count, dim=axis) if is_torch else value.repeat(count, axis=axis)


def _np_repeat(sums: Any, count: int) -> Any:
    return (sums[1:] - sums[:-1]).repeat(count)


def _np_zeros(like: Any, length: int) -> Any:
    import numpy as np

    return np.zeros(length, like.dtype)
