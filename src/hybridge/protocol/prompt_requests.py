"""The wire format of requests for text embeddings.

A request is a JSON object with the arguments of the pipeline's ``encode_prompt``, or a form with that object and
pictures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import cast, get_args

from ..errors import RequestError, TooLarge, UnsupportedMedia
from .json_bodies import read_small_json
from .messages import HttpRequest
from .multipart import read_form, write_form
from .picture_files import sniff_picture
from .prompt import Json, PromptConvention, PromptEnvelope, PromptLimits, PromptRequest, is_prompt
from .query import Parameters, format_query, read_query
from .safetensors_bytes import SAFETENSORS

JSON, FORM = "application/json", "multipart/form-data"

#: The names of a form's fields: the JSON object, and each picture.
REQUEST_FIELD, IMAGE_FIELD = "request", "image"

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
