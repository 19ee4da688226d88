"""What a request says beside its content: who sends it, by when, and whether now or later."""

from __future__ import annotations

import math
from typing import cast

from starlette.requests import Request

from ...errors import RequestError


def client_of(request: Request) -> str:
    """Who sends it: the name of a key where keys are in use, else an address."""
    known = request.scope.get("state", {}).get("client_id")
    if known:
        return str(known)
    return f"address:{request.client.host}" if request.client else "address:unknown"


def query_of(request: Request) -> str:
    """The query string as it was sent, still percent-encoded.

    Not that of ``request.url``, which is put together with the Host header: some versions of Starlette let a Host
    such as ``x#`` swallow the query, and fail on ``[``.
    """
    return cast("bytes", request.scope["query_string"]).decode("latin-1")


def prefers_async(request: Request) -> bool:
    """Whether ``Prefer: respond-async`` was sent (RFC 7240)."""
    preferences = ",".join(request.headers.getlist("prefer")).split(",")
    return any(one.partition(";")[0].strip().lower() == "respond-async" for one in preferences)


def timeout_of(request: Request, default_s: float | None) -> float | None:
    """Seconds that the sender gives the request: ``Request-Timeout``, or the server's own bound if that is less.

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
