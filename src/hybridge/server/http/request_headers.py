"""What a request says beside its content: who sends it, by when, and whether now or later."""

from __future__ import annotations

import math
from typing import cast

from starlette.requests import Request

from ...errors import RequestError
from ...protocol import DecodeRequest
from ..scheduling.job import AnyJob, PromptJob

#: Of a result for each pixel at most: three floats in base64; three bytes of a file, which grows a little if its
#: content is noise.
_TENSOR_BYTES_PER_PIXEL = 16
_FILE_BYTES_PER_PIXEL = 4

#: Of a prompt's embeddings: most are smaller, those of FLUX.2 are as large.
_PROMPT_BYTES = 16 * 2**20

#: What a file takes beside its pixels, and a refusal at most.
_LEAST_BYTES = 64 * 1024


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


def result_bytes(job: AnyJob) -> int:
    """What the result of a job takes at most; of prompts, about."""
    if isinstance(job, PromptJob):
        return _LEAST_BYTES + 2 * job.request.batch * _PROMPT_BYTES
    request = job.request
    is_file = isinstance(request, DecodeRequest) and request.output in ("picture", "video")
    return _LEAST_BYTES + job.size.pixels * (_FILE_BYTES_PER_PIXEL if is_file else _TENSOR_BYTES_PER_PIXEL)
