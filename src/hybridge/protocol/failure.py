"""Errors ↔ HTTP: which status an error has, and the JSON body that carries it.

Every error body is JSON with the key ``error``: diffusers' client raises ``RuntimeError(response.json())``, and
anything else would reach the user as an opaque JSONDecodeError.
"""

from __future__ import annotations

import json
import math
import time
from email.utils import parsedate_to_datetime

from .. import errors
from ..errors import BadAnswer, HybridgeError, KeyNeeded, Overloaded, ServerRefused
from .messages import HttpResponse

#: The nearest ancestor of an error's class decides.  What is the sender's fault is 400, as the pilot's servers
#: had it, unless a more telling status exists.
STATUS: dict[type[HybridgeError], int] = {
    errors.RequestError: 400,
    errors.UnknownParameter: 400,
    errors.NoPreview: 400,
    errors.UnsupportedMedia: 415,
    errors.TooLarge: 413,
    errors.TooSlow: 408,
    errors.UnknownModel: 404,
    errors.KeyNeeded: 401,
    errors.UnknownJob: 404,
    errors.NotDone: 409,
    errors.AmbiguousModel: 400,
    errors.ModelUnavailable: 503,
    errors.Overloaded: 429,
    errors.ShuttingDown: 503,
    errors.ClientGone: 499,  # nginx's word for it: no answer is sent, the record has this
    errors.DeadlinePassed: 504,
    errors.StorageFailure: 503,
    errors.StorageFull: 507,
    errors.OutOfMemory: 507,
    errors.Mismatch: 500,
    HybridgeError: 500,
}

#: Whoever is told to come back later than tomorrow does not.
MAX_RETRY_AFTER_S = 86_400


def write_failure(error: HybridgeError) -> HttpResponse:
    """The response for an error: its paragraph under ``error``, its kind under ``code``, its parts beside them."""
    if isinstance(error, errors.ModelUnavailable):
        error = error.for_strangers()
    status = next(STATUS[ancestor] for ancestor in type(error).__mro__ if ancestor in STATUS)
    document = {
        "error": str(error),
        "code": type(error).__name__,
        "saw": error.saw,
        "expected": error.expected,
        "try": error.hint,
    }
    headers = {"content-type": "application/json"}
    if isinstance(error, Overloaded):
        # An estimate that has no number yet (nan, inf) must not keep the refusal from being written.
        headers["retry-after"] = str(math.ceil(min(max(1, error.retry_after_s), MAX_RETRY_AFTER_S)))
    if isinstance(error, KeyNeeded):
        # Basic is read as well, but naming it would make browsers ask for a user and a password.
        headers["www-authenticate"] = "Bearer"
    present = {name: value for name, value in document.items() if value is not None}
    return HttpResponse(status, headers, json.dumps(present, ensure_ascii=False).encode("utf-8", "replace"))


def write_status(status: int, message: str) -> HttpResponse:
    """The response for an HTTP error that no exception of ours stands for, such as 405."""
    body = json.dumps({"error": message, "code": f"http-{status}"}, ensure_ascii=False)
    return HttpResponse(status, {"content-type": "application/json"}, body.encode("utf-8", "replace"))


def read_failure(response: HttpResponse) -> ServerRefused | BadAnswer:
    """The exception for a response whose status is not 2xx."""
    try:
        document = json.loads(response.body)
        message = str(document["error"])
        code = str(document["code"]) if "code" in document else None
    except (ValueError, KeyError, TypeError, RecursionError):
        media_type = response.headers.get("content-type", "no Content-Type")
        return BadAnswer(
            f"HTTP {response.status} without an explanation",
            saw=f"{media_type}, beginning with {response.body[:60]!r}",
            expected="JSON with the key `error`",
            hint="check the address: a web page or a proxy may be answering",
        )
    return ServerRefused(
        message,
        status=response.status,
        code=code,
        retry_after_s=_seconds(response.headers.get("retry-after")),
    )


def _seconds(text: str | None) -> float | None:
    """``Retry-After`` in seconds, at most a day; its other form, a date, counts from now.  Else None."""
    try:
        seconds = float(text or "")
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text or "").timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
        seconds = max(0.0, seconds)
    return min(seconds, MAX_RETRY_AFTER_S) if math.isfinite(seconds) and seconds >= 0 else None
