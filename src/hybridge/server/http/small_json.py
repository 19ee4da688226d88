"""Small JSON objects as request bodies: everything but work for a model."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Any

import anyio
from starlette.requests import ClientDisconnect, Request

from ...errors import ClientGone, RequestError, TooLarge, TooSlow, UnknownParameter

#: Most bytes of a body, and the seconds in which it has to arrive.
_MOST_BYTES, _PATIENCE_S = 4096, 10.0


async def read_object(request: Request, names: Sequence[str]) -> dict[str, Any]:
    """Return the JSON object in the body of a request.

    Args:
        request: The request.
        names: The names that the object may have.

    Raises:
        TooLarge: above 4096 bytes.
        TooSlow: when it has not arrived within 10 s.
        ClientGone: when the client closes the connection.
        RequestError: when it is no JSON object; UnknownParameter when it has another name.
    """
    body = b""
    try:
        with anyio.fail_after(_PATIENCE_S):
            async for part in request.stream():
                body += part
                if len(body) > _MOST_BYTES:
                    raise TooLarge(
                        "the request body is too large",
                        saw=f"more than {_MOST_BYTES} bytes",
                        expected=f"at most {_MOST_BYTES}",
                    )
    except TimeoutError:
        raise TooSlow("the body stopped coming", expected=f"all of it within {_PATIENCE_S:g} s") from None
    except ClientDisconnect:
        raise ClientGone("the client closed the connection before its body was complete") from None
    expected = "a JSON object with " + ", ".join(names)
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError("the body is not JSON", expected=expected) from None
    if not isinstance(given, dict):
        raise RequestError("the body is not an object", saw=type(given).__name__, expected=expected)
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise UnknownParameter(
                "unknown name", saw=repr(name[:40]), expected=", ".join(names), hint=near[0] if near else None
            )
    return given
