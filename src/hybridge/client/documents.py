"""Documents of a server: how they are asked for, and read."""

from __future__ import annotations

import json
from typing import Any, cast

from ..errors import BadAnswer
from ..protocol import Json
from .address import Address
from .answer_limits import MOST_DOCUMENT_BYTES
from .flow_types import Arrived, Build, Call


def getter(path: str) -> Build:
    """Return the function that builds the call for a document."""

    def build(address: Address, left_s: float | None) -> Call:
        headers = {"accept": "application/json", **address.headers()}
        return Call("GET", address.resolve(path), headers, timeout_s=left_s, most_bytes=MOST_DOCUMENT_BYTES)

    return build


def read_model_list(arrived: Arrived, address: Address) -> list[dict[str, Any]]:
    """Return a server's list of models.

    Raises:
        BadAnswer: when the answer is not such a list.
    """
    document = read_document(arrived, address)
    models = document.get("models") if isinstance(document, dict) else None
    if not isinstance(models, list):
        keys = f"JSON with the keys {list(document)[:8]}" if isinstance(document, dict) else None
        saw = keys or repr(document)[:60]
        raise BadAnswer("this did not list its models", saw=saw, expected="them under `models`")
    return cast("list[dict[str, Any]]", models)


def read_most_in_a_batch(arrived: Arrived, address: Address) -> int:
    """Return how many pictures or prompts a server takes in one request; 0 if it does not say."""
    document = read_document(arrived, address)
    limits = document.get("limits") if isinstance(document, dict) else None
    most = limits.get("max_batch") if isinstance(limits, dict) else None
    return most if isinstance(most, int) else 0


def read_document(arrived: Arrived, _: Address) -> Json:
    """Return the JSON document or the plain text of a response."""
    media_type = arrived.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "text/plain":
        return arrived.body.decode("utf-8", "replace")
    try:
        return cast(Json, json.loads(arrived.body))
    except (ValueError, RecursionError):
        raise BadAnswer(
            "this is not a hybridge server",
            saw=f"{media_type or 'no Content-Type'}, beginning with {arrived.body[:60]!r}",
            expected="JSON",
            hint="check the address: a web page or a proxy may be answering",
        ) from None
