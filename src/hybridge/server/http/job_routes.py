"""The handlers of ``/v1/jobs``: status, events, result and deletion of an async job."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ...errors import HybridgeError, Overloaded, RequestError
from ...protocol import read_query
from ..async_jobs.registry import AsyncJobRegistry
from ..async_jobs.store import StoredRequest, StoredResult
from ..middleware.request_record import RequestRecord, record_of
from .endpoints import accepted
from .request_headers import client_of, query_of
from .response_headers import UNBUFFERED

Read = TypeVar("Read")

#: Bytes of a result that are read at a time.
_PIECE_BYTES = 128 * 1024

#: Streams of events that one client may keep open: each holds a connection for as long as its job takes.
MOST_STREAMS = 128

#: Checks a request that will be done later: (request, body, record to fill) → bytes that its result takes at most.
Check = Callable[[StoredRequest, bytes, RequestRecord], Awaitable[int]]


class JobRoutes:
    """The handlers, around the async jobs.

    Args:
        async_jobs: Keeps the jobs.
        check: Refuses what cannot be done before it is accepted.
    """

    def __init__(self, async_jobs: AsyncJobRegistry, check: Check) -> None:
        self._async_jobs = async_jobs
        self._check = check
        self._streams: Counter[str] = Counter()

    def routes(self) -> list[Route]:
        """Return the routes of the handlers."""
        return [
            Route("/v1/jobs/{job}", self.status, methods=["GET"]),
            Route("/v1/jobs/{job}", self.cancel, methods=["DELETE"]),
            Route("/v1/jobs/{job}/events", self.events, methods=["GET"]),
            Route("/v1/jobs/{job}/result", self.result, methods=["GET"]),
            Route("/v1/jobs/{job}/again", self.again, methods=["POST"]),
        ]

    async def status(self, request: Request) -> Response:
        """GET /v1/jobs/{job}"""
        return JSONResponse(self._async_jobs.status(*_who(request)))

    async def result(self, request: Request) -> Response:
        """GET /v1/jobs/{job}/result"""
        return _Fetched(await self._unless_deleted(request, self._async_jobs.result(*_who(request))))

    async def cancel(self, request: Request) -> Response:
        """DELETE /v1/jobs/{job}"""
        await self._async_jobs.cancel(*_who(request))
        return Response(status_code=204)

    async def events(self, request: Request) -> Response:
        """GET /v1/jobs/{job}/events: server-sent events, each named after the job's state."""
        job_id, client = _who(request)
        self._async_jobs.status(job_id, client)  # so that an unknown job is a 404, not a stream that breaks off
        if self._streams[client] >= MOST_STREAMS:
            raise Overloaded(
                f"{MOST_STREAMS} streams of events are open already for this client",
                retry_after_s=1,
                hint="one stream for each job, closed when it is no longer read; or GET /v1/jobs/ID now and then",
            )
        return _Watched(_as_events(self._async_jobs.events(job_id, client)), client, self._streams)

    async def again(self, request: Request) -> Response:
        """POST /v1/jobs/{job}/again?…: the same body; parameters that are given replace those of before."""
        job_id, client = _who(request)
        if request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
            raise RequestError("a job that is done again keeps its body", saw="another body", expected="none")
        before, body = await self._unless_deleted(request, self._async_jobs.request(job_id, client))
        given = read_query(query_of(request))
        names = {name for name, _ in given}
        old = read_query(before.query)
        query = urlencode([pair for pair in old if pair[0] not in names] + given)
        wanted = request.headers.get("accept", "*/*")
        headers = before.headers if wanted == "*/*" else {**before.headers, "accept": wanted}
        again = StoredRequest("", client, query, headers, before.task, before.model)
        record = record_of(request.scope)
        result_bytes = await self._check(again, body, record)
        made = await self._async_jobs.accept(again, body, result_bytes=result_bytes, record=record)
        return accepted(self._async_jobs.status(made, client))

    async def _unless_deleted(self, request: Request, reading: Awaitable[Read]) -> Read:
        """Return what is read; a job that was deleted meanwhile is unknown (404), and no failure of the disk."""
        try:
            return await reading
        except HybridgeError:
            self._async_jobs.status(*_who(request))
            raise


class _Watched(StreamingResponse):
    """A stream of events, which counts against the limit of its client until it ends."""

    def __init__(self, told: AsyncIterator[str], client: str, streams: Counter[str]) -> None:
        headers = {"cache-control": "no-store", **UNBUFFERED}
        super().__init__(told, media_type="text/event-stream", headers=headers)
        self._client, self._streams = client, streams
        streams[client] += 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams[self._client] -= 1
            if not self._streams[self._client]:
                del self._streams[self._client]


class _Fetched(StreamingResponse):
    """A result in pieces, each read when the one before was sent: a slow client holds one piece in memory."""

    def __init__(self, kept: StoredResult) -> None:
        headers = {**kept.headers, "content-length": str(kept.nbytes)}
        super().__init__(self._pieces(), kept.status, headers)
        self._kept = kept

    async def _pieces(self) -> AsyncIterator[bytes]:
        while piece := await run_in_threadpool(self._kept.stream.read, _PIECE_BYTES):
            yield piece

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._kept.close()


def _who(request: Request) -> tuple[str, str]:
    return request.path_params["job"], client_of(request)


async def _as_events(told: AsyncIterator[dict[str, Any] | None]) -> AsyncIterator[str]:
    async for status in told:
        yield ": still here\n\n" if status is None else f"event: {status['state']}\ndata: {json.dumps(status)}\n\n"
