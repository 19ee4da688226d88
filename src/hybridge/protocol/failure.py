"""Convert errors to and from HTTP: the status of an error, and the JSON body that describes it.

Every error body is JSON with the key ``error``: diffusers' client raises ``RuntimeError(response.json())``, so any
other body would reach the user as a JSONDecodeError without a reason.
"""

from __future__ import annotations

import json
import math
import time
from email.utils import parsedate_to_datetime

from .. import errors
from ..errors import BadAnswer, HybridgeError, KeyNeeded, Overloaded, ServerRefused
from .messages import HttpResponse

#: The status of an error class; subclasses inherit the nearest one.  A sender's mistake is 400, as on the pilot's
#: servers, unless a more specific status exists.
STATUS: dict[type[HybridgeError], int] = {
    errors.RequestError: 400,
    errors.UnknownParameter: 400,
    errors.NoPreview: 400,
    errors.UnsupportedMedia: 415,
    errors.TooLarge: 413,
    errors.TooSlow: 408,
    errors.UnknownModel: 404,
    errors.KeyNeeded: 401,
    errors.AdminNeeded: 403,
    errors.PairingRefused: 403,
    errors.UnknownKey: 404,
    errors.KeyExists: 409,
    errors.UnknownJob: 404,
    errors.NotDone: 409,
    errors.AmbiguousModel: 400,
    errors.ModelUnavailable: 503,
    errors.ReplicaUnavailable: 503,
    errors.Overloaded: 429,
    errors.ShuttingDown: 503,
    errors.ClientGone: 499,  # nginx's status for this: no answer is sent, only the request record has it
    errors.DeadlinePassed: 504,
    errors.StorageFailure: 503,
    errors.StorageFull: 507,
    errors.OutOfMemory: 507,
    errors.Mismatch: 500,
    HybridgeError: 500,
}

#: Longest time in ``Retry-After``: a client that is told to wait longer than a day does not return.
MAX_RETRY_AFTER_S = 86_400


def write_failure(error: HybridgeError) -> HttpResponse:
    """Return the response for an error: its text as ``error``, its kind as ``code``, its parts as further keys."""
    if isinstance(error, errors.ModelUnavailable):
        error = error.for_strangers()
    status = next(STATUS[ancestor] for ancestor in type(error).__mro__ if ancestor in STATUS)
    document = {
        "error": str(error),
        "code": type(error).__name__,
        "cause": error.cause,
        "saw": error.saw,
        "expected": error.expected,
        "try": error.hint,
    }
    headers = {"content-type": "application/json"}
    if isinstance(error, Overloaded):
        # An estimate that is not a number yet (nan, inf) must not prevent the response.
        headers["retry-after"] = str(math.ceil(min(max(1, error.retry_after_s), MAX_RETRY_AFTER_S)))
    if isinstance(error, KeyNeeded):
        # Basic is accepted, too, but naming it would make browsers ask for a user name and a password.
        headers["www-authenticate"] = "Bearer"
    present = {name: value for name, value in document.items() if value is not None}
    return HttpResponse(status, headers, json.dumps(present, ensure_ascii=False).encode("utf-8", "replace"))


def write_status(status: int, message: str) -> HttpResponse:
    """Return the response for an HTTP error without an exception of ours, such as 405."""
    body = json.dumps({"error": message, "code": f"http-{status}"}, ensure_ascii=False)
    return HttpResponse(status, {"content-type": "application/json"}, body.encode("utf-8", "replace"))


def read_failure(response: HttpResponse) -> ServerRefused | BadAnswer:
    """Return the exception for a response whose status is not 2xx."""
    try:
        document = json.loads(response.body)
        message = str(document["error"])
        code, cause = (str(document[key]) if key in document else None for key in ("code", "cause"))
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
        cause=cause,
        retry_after_s=_seconds(response.headers.get("retry-after")),
    )


def _seconds(text: str | None) -> float | None:
    """Return ``Retry-After`` in seconds, at most a day; a date is converted to seconds from now.  Else None."""
    try:
        seconds = float(text or "")
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text or "").timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
        seconds = max(0.0, seconds)
    return min(seconds, MAX_RETRY_AFTER_S) if math.isfinite(seconds) and seconds >= 0 else None
