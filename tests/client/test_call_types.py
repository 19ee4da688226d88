"""The options that type checkers know: the same names and types that the calls have."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from hybridge.client import AsyncClient, Client
from hybridge.client.call_types import (
    DecodeItemOptions,
    DecodeOptions,
    DecodeQueueOptions,
    EncodeItemOptions,
    EncodeOptions,
    EncodeQueueOptions,
)


def types_of(options: Any) -> dict[str, str]:
    return {name: kind.__forward_arg__ for name, kind in options.__annotations__.items()}


def keywords_of(call: Any) -> dict[str, str]:
    parameters = inspect.signature(call).parameters.values()
    return {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("call", "options", "others"),
    [
        ("decode", DecodeOptions, {"output": "Output"}),
        ("encode", EncodeOptions, {"kind": "Kind | None"}),
    ],
)
def test_options_of_calls(client: type, call: str, options: type, others: dict[str, str]) -> None:
    assert keywords_of(getattr(client, call)) == types_of(options) | others


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("call", "options", "of_items"),
    [
        ("decode_queue", DecodeQueueOptions, DecodeItemOptions),
        ("encode_queue", EncodeQueueOptions, EncodeItemOptions),
    ],
)
def test_options_of_queues(client: type, call: str, options: type, of_items: type) -> None:
    keywords = keywords_of(getattr(client, call))
    assert keywords.pop("callback") == "Callable[[Finished[Any]], None] | None"
    assert types_of(options) == types_of(of_items) | keywords
