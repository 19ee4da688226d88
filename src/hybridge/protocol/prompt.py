"""The wire format of prompts and of their text embeddings.

A request is a JSON object with the arguments of the pipeline's ``encode_prompt``, or a form with that object and
pictures.  An answer is one safetensors file: each tensor has the name of the argument of the pipeline's
``__call__`` that takes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast, get_args

from ..errors import BadAnswer, RequestError, TooLarge, UnsupportedMedia
from .json_bodies import read_small_json
from .messages import HttpRequest
from .multipart import read_form, write_form
from .padding import Kept, describe, drop_padding, kept_by_mask, kept_by_zeros, refill, understand
from .picture_files import sniff_picture
from .query import Parameters, format_query, read_query
from .safetensors_bytes import SAFETENSORS, read_safetensors, write_safetensors
from .tensor import WireTensor

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

#: The position of the prompts in a tensor: ``batch``: along its first axis.  ``batch-axis-1``: along its second.
#: ``list``: one tensor per prompt.  ``cu_seqlens``: the tensor has the begin of each prompt's rows and the last
#: end.
TensorLayout = Literal["batch", "batch-axis-1", "list", "cu_seqlens"]

JSON, FORM = "application/json", "multipart/form-data"

#: The names of a form's fields: the JSON object, and each picture.
REQUEST_FIELD, IMAGE_FIELD = "request", "image"

#: How embeddings are wrapped: all of them in a safetensors file, or ``prompt_embeds`` alone, as bare bytes with
#: ``shape`` and ``dtype`` headers or as ``torch.save`` writes one tensor.
PromptEnvelope = Literal["safetensors", "binary", "torch"]

#: For whom texts are encoded.
PromptConvention = Literal["diffusers", "comfyui"]

_ENVELOPES: dict[str, PromptEnvelope] = {name: name for name in get_args(PromptEnvelope)}
_CONVENTIONS: dict[str, PromptConvention] = {name: name for name in get_args(PromptConvention)}

#: The parameters of a request that are in the query.
PROMPT_PARAMETERS = ("convention", "drop_padding", "envelope", "dtype")

_EXAMPLE = '{"prompt": "a lighthouse", "negative_prompt": null, …}'

#: Most members of the object, and most items of a list that is not a list of prompts.
_MOST_MEMBERS = 64

#: Most characters of a member's name.
_MOST_NAME = 60

_BOUNDARY = "hybridge-form-7d1b2c"


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


# ---------------------------------------------------------------------------------------------- requests


def read_prompt_request(
    query: str, headers: Mapping[str, str], body: bytes, limits: PromptLimits | None = None
) -> PromptRequest:
    """Read a client's request.

    Args:
        query: The raw query string.
        headers: Header names in lower case.
        body: The whole body.
        limits: The limits of the request; None for the defaults of :class:`PromptLimits`.

    Raises:
        RequestError: for anything that cannot be read; no other exception is raised.
    """
    limits = limits or PromptLimits()
    parameters = Parameters(read_query(query))
    parameters.refuse_unknown(PROMPT_PARAMETERS)
    content_type = headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    images: tuple[bytes, ...] = ()
    if media_type == FORM:
        body, images = _read_form(body, content_type, limits)
    elif media_type not in (JSON, "", "text/json", "application/x-www-form-urlencoded"):  # curl's default
        raise UnsupportedMedia(
            "a prompt comes as JSON", saw=media_type[:_MOST_NAME], expected=f"{JSON}, or {FORM} with pictures"
        )
    document = read_small_json(body, most_bytes=limits.max_json_bytes, form=_EXAMPLE)
    dtype = parameters.dtype()
    if dtype == "uint8":
        raise RequestError("embeddings are floats", saw="dtype=uint8", expected="float16, bfloat16 or float32")
    return PromptRequest(
        check_inputs(document, limits),
        images,
        parameters.boolean("drop_padding") or False,
        parameters.choice("envelope", _ENVELOPES) or "safetensors",
        dtype,
        parameters.choice("convention", _CONVENTIONS) or "diffusers",
    )


def write_prompt_request(request: PromptRequest) -> HttpRequest:
    """Write ``request`` so that :func:`read_prompt_request` returns an equal request.

    Raises:
        RequestError: for a text with a lone surrogate, and for an image that is not a picture file.
    """
    try:
        document = json.dumps(dict(request.inputs), ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            "a prompt holds half a character", saw=f"the lone surrogate {error.object[error.start]!r}"
        ) from None
    except (TypeError, ValueError) as error:
        raise RequestError("the arguments cannot be sent", saw=error, expected="values that JSON has") from None
    query = format_query(
        {
            "drop_padding": True if request.drop_padding else None,
            "envelope": None if request.envelope == "safetensors" else request.envelope,
            "dtype": request.dtype,
            "convention": None if request.convention == "diffusers" else request.convention,
        }
    )
    if not request.images:
        return HttpRequest(query, {"content-type": JSON, "accept": SAFETENSORS}, document)
    fields = [(REQUEST_FIELD, JSON, document)]
    fields += [(IMAGE_FIELD, _picture_type(image), image) for image in request.images]
    boundary, count = _BOUNDARY, 0
    while any(boundary.encode() in data for _, _, data in fields):
        boundary, count = f"{_BOUNDARY}{count}", count + 1
    headers = {"content-type": f"{FORM}; boundary={boundary}", "accept": SAFETENSORS}
    return HttpRequest(query, headers, write_form(fields, boundary))


def check_inputs(document: object, limits: PromptLimits) -> dict[str, Json]:
    """Check the object of a request against the limits, and return it.

    Raises:
        RequestError: for any other form, and for an empty list.
        TooLarge: for too many prompts, and for a text that is too long.
    """
    if not isinstance(document, dict) or not document:
        raise RequestError("the body is no object with members", saw=type(document).__name__, expected=_EXAMPLE)
    if len(document) > _MOST_MEMBERS or any(len(name) > _MOST_NAME for name in document):
        raise TooLarge("the object has too many members, or one with a long name", expected=_EXAMPLE)
    for name, value in document.items():
        if isinstance(value, list):
            _check_list(name, value, limits)
        elif isinstance(value, dict):
            _check_items(name, [*value, *value.values()], limits)
        else:
            _check_items(name, [value], limits)
    return cast("dict[str, Json]", document)


def _check_list(name: str, items: list[object], limits: PromptLimits) -> None:
    if not items:
        raise RequestError(
            f"`{name}` is an empty list", expected="at least one text" if is_prompt(name) else "at least one item"
        )
    most = limits.max_prompts if is_prompt(name) else _MOST_MEMBERS
    if len(items) > most:
        raise TooLarge(
            f"`{name}` has too many items", saw=len(items), expected=f"at most {most}", hint="several requests"
        )
    _check_items(name, items, limits)
    if is_prompt(name) and not all(isinstance(item, str) for item in items):
        raise RequestError(f"`{name}` is no list of texts", expected="texts alone; null in place of the whole list")


def _check_items(name: str, items: Iterable[object], limits: PromptLimits) -> None:
    for item in items:
        if isinstance(item, list | dict):
            raise RequestError(f"`{name}` is nested too deeply", expected="a value, a list, or an object of values")
        if isinstance(item, str) and len(item) > limits.max_characters:
            raise TooLarge(
                f"`{name}` is too long",
                saw=f"{len(item)} characters",
                expected=f"at most {limits.max_characters}",
                hint="a shorter text: no text encoder here reads more than a few hundred words",
            )
        if isinstance(item, float) and not math.isfinite(item):
            raise RequestError(f"`{name}` is no finite number", saw=item)


def _read_form(body: bytes, content_type: str, limits: PromptLimits) -> tuple[bytes, tuple[bytes, ...]]:
    documents: list[bytes] = []
    images: list[bytes] = []
    for part in read_form(body, content_type):
        if part.name == REQUEST_FIELD:
            documents.append(part.data)
        elif part.name in (IMAGE_FIELD, f"{IMAGE_FIELD}[]"):
            _picture_type(part.data)
            images.append(part.data)
        else:
            raise RequestError(
                "unknown field of the form",
                saw=repr(part.name[:_MOST_NAME]),
                expected=f"`{REQUEST_FIELD}`, which holds {_EXAMPLE}, and `{IMAGE_FIELD}` for each picture",
            )
    if len(documents) != 1:
        raise RequestError(f"the form needs one field `{REQUEST_FIELD}`", saw=len(documents), expected=_EXAMPLE)
    if len(images) > limits.max_images:
        raise TooLarge("too many pictures", saw=len(images), expected=f"at most {limits.max_images}")
    return documents[0], tuple(images)


def _picture_type(image: bytes) -> str:
    media_type = sniff_picture(image)
    if media_type is None:
        raise UnsupportedMedia(
            "an image is no picture file",
            saw=f"{len(image)} bytes beginning with {image[:12]!r}",
            expected="a PNG, JPEG or WebP file",
        )
    return media_type


# ---------------------------------------------------------------------------------------------- answers


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
