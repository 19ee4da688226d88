"""The record of a request, given once, when the request ends, to the log, the metrics and the traces.

It contains numbers, names from fixed lists, and who the client is (the name of its key, else its address); of what
a client wrote, only a short request id.  So neither logs, metrics nor traces can leak a picture, a prompt, a key or
a query.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: nginx's status for a request whose client left before the answer.
HUNG_UP = 499

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

_TRACEPARENT = re.compile(r"[0-9a-f-]{55}")


@dataclass(slots=True)
class RequestRecord:
    """One request.

    Attributes:
        request_id: That of ``X-Request-Id`` if it is short and plain, else a new one.
        client_id: ``key:NAME`` or ``address:…``.
        model: The model's name; empty for requests without a model.
        task: ``decode``, ``encode``, ``prompt``, or empty.
        status: Status of the answer; 499 if the client left before.
        milliseconds: Time of each stage, and ``total``.
        received_bytes: Bytes of the body.
        sent_bytes: Bytes of the answer's body.
        pictures: Number of pictures, videos or prompts.
        shared_by: Number of jobs in its run on the device.
        cache: ``hit`` or ``miss`` where answers are cached, else empty.
        began_at: Seconds since 1970.
        traceparent: The W3C header of that name, if there was one.
    """

    request_id: str
    client_id: str = ""
    model: str = ""
    task: str = ""
    status: int = 500
    milliseconds: dict[str, float] = field(default_factory=dict)
    received_bytes: int = 0
    sent_bytes: int = 0
    pictures: int = 0
    shared_by: int = 0
    cache: str = ""
    began_at: float = field(default_factory=time.time)
    traceparent: str | None = None


Observer = Callable[[RequestRecord], None]


def record_of(scope: Scope) -> RequestRecord:
    """Return the record of the request of an ASGI scope."""
    return cast("RequestRecord", scope["state"]["record"])


class RequestRecordMiddleware:
    """ASGI middleware: records each request, and calls the observers with the record when it ends.

    Args:
        app: The application behind it.
        observers: Each is called once for each request; they must neither wait nor fail.
    """

    def __init__(self, app: ASGIApp, observers: Sequence[Observer] = ()) -> None:
        self._app = app
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = RequestRecord(_request_id(headers), traceparent=_traceparent(headers))
        scope.setdefault("state", {})["record"] = record
        began, answered, left = time.perf_counter(), False, False

        async def receiving() -> Message:
            nonlocal left
            message = await receive()
            if message["type"] == "http.request":
                record.received_bytes += len(message.get("body", b""))
            else:
                left = not answered
            return message

        async def sending(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered, record.status = True, HUNG_UP if left else message["status"]
                MutableHeaders(scope=message)["x-request-id"] = record.request_id
            elif message["type"] == "http.response.body":
                record.sent_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receiving, sending)
        finally:
            record.milliseconds["total"] = 1e3 * (time.perf_counter() - began)
            try:
                # A turn of the event loop, in which uvloop sends the answer: the client does not wait for the
                # observers.
                await asyncio.sleep(0)
            finally:
                for observe in self._observers:
                    observe(record)


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _traceparent(headers: Headers) -> str | None:
    given = headers.get("traceparent", "")
    return given if _TRACEPARENT.fullmatch(given) else None
