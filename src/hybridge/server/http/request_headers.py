"""What the headers of a request say: the client, the time limit, and whether to answer later."""

from __future__ import annotations

import math
from typing import cast

from starlette.requests import Request

from ...errors import RequestError


def client_of(request: Request) -> str:
    """Return who sends a request: the name of its key where keys are in use, else its address."""
    known = request.scope.get("state", {}).get("client_id")
    if known:
        return str(known)
    return f"address:{request.client.host}" if request.client else "address:unknown"


def query_of(request: Request) -> str:
    """Return the query string as it was sent, still percent-encoded.

    ``request.url`` is not used, because it is built with the Host header: in some versions of Starlette a Host such
    as ``x#`` hides the query, and ``[`` raises an error.
    """
    return cast("bytes", request.scope["query_string"]).decode("latin-1")


def prefers_async(request: Request) -> bool:
    """Whether ``Prefer: respond-async`` was sent (RFC 7240)."""
    preferences = ",".join(request.headers.getlist("prefer")).split(",")
    return any(one.partition(";")[0].strip().lower() == "respond-async" for one in preferences)


def timeout_of(request: Request, default_s: float | None) -> float | None:
    """Return the time limit of a request in seconds: ``Request-Timeout``, or the server's own if that is less.

    Raises:
        RequestError: when the header is no number of seconds.
    """
    text = request.headers.get("request-timeout")
    if text is None:
        return default_s
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise RequestError("Request-Timeout cannot be read", saw=repr(text[:40]), expected="seconds, above zero")
    return seconds if default_s is None else min(seconds, default_s)
