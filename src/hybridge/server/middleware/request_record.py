"""What is remembered of a request until it ends, and then told once: to the log, the metrics and the traces.

Numbers and names from fixed lists only.  Nothing that a sender wrote is kept here except a short request id, so
nothing that observes requests can leak a picture, a prompt, a key or an address's query.
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

#: What nginx calls a request whose sender left before the answer.
HUNG_UP = 499

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

_TRACEPARENT = re.compile(r"[0-9a-f-]{55}")


@dataclass(slots=True)
class RequestRecord:
    """One request.

    Attributes:
        request_id: Its own, if it brought a sane one in ``X-Request-Id``, else a new one.
        client_id: ``key:NAME`` or ``address:…``.
        model: The model's name, empty where no model was concerned.
        task: ``decode``, ``encode``, ``prompt``, or empty.
        status: Of the answer; 499 for a sender who left.
        milliseconds: Of each stage, and ``total``.
        received_bytes: Of the body.
        sent_bytes: Of the answer's body.
        pictures: In the request; or prompts.
        shared_by: Jobs in the run on the device that answered it.
        cache: ``hit`` or ``miss`` where an answer could have been kept from before, else empty.
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
    """The record of the request that a scope belongs to."""
    return cast("RequestRecord", scope["state"]["record"])


class RequestRecordMiddleware:
    """ASGI middleware: keeps a record of each request and tells the observers when it ends.

    Args:
        app: What answers.
        observers: Called in turn, each once for a request; they must neither wait nor fail.
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
                # A turn of the loop, in which uvloop sends what was written: nobody waits for the telling.
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
