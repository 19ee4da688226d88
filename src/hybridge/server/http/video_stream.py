"""A video that is sent while its later frames are decoded.

The status is that of the first bytes: whatever fails before them has an error of its own.  What fails after them
ends the response without its end, so that a client sees a transfer that broke off and never a shorter video.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...errors import HybridgeError
from ...protocol import write_failure
from ..error_responses import log_failure
from ..middleware.request_record import HUNG_UP
from ..scheduling.film import Film
from ..scheduling.vae_job import VaeJob, VaeResult
from .job_kind import ResponseTools
from .job_stream import JobStream
from .response_headers import about_job, about_run


async def answer_with_video(job: VaeJob, film: Film, tools: ResponseTools) -> Response:
    """The response to an admitted job whose frames go into ``film``.

    Raises:
        HybridgeError: when it fails before the first bytes are there.
    """
    running = asyncio.ensure_future(_run(job, tools))

    def on_end(task: asyncio.Future[VaeResult]) -> None:
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or error is not None:
            film.close(error if isinstance(error, HybridgeError) else None)

    running.add_done_callback(on_end)
    pieces = film.pieces()
    try:
        first = await anext(pieces)
    except BaseException:
        running.cancel()
        film.close()
        raise
    headers = {
        "content-type": film.options.media_type,
        **about_job(job),
        "hybridge-frames": str(job.size.frames),
    }
    if film.receipt is not None:
        headers["hybridge-receipt"] = film.receipt(False).header()
    if running.done():
        headers |= about_run(running.result(), {**tools.record.milliseconds, **running.result().milliseconds})
    return _Streamed(first, pieces, running, film, tools, headers)


async def _run(job: VaeJob, tools: ResponseTools) -> VaeResult:
    with tools.deadline.bound():
        return await tools.backend.run(job)


class _Streamed(JobStream):
    """The bytes of a film, which ends with its reader."""

    def __init__(
        self,
        first: bytes,
        others: AsyncIterator[bytes],
        running: asyncio.Future[VaeResult],
        film: Film,
        tools: ResponseTools,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(others, running, headers)
        self._first, self._others = first, others
        self._film, self._record = film, tools.record

    async def stream_response(self, send: Send) -> None:
        record = self._record
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        record.status = HUNG_UP  # unless it is sent to the end
        await self._send(send, self._first)
        try:
            async for piece in self._others:
                await self._send(send, piece)
        except HybridgeError as error:
            log_failure(error)
            record.status = write_failure(error).status
            return  # the server closes a connection whose response has no end
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        record.status, self.is_whole = self.status_code, True

    async def _send(self, send: Send, piece: bytes) -> None:
        await send({"type": "http.response.body", "body": piece, "more_body": True})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            job, record = self.job, self._record
            if job.done() and not job.cancelled() and job.exception() is None:
                record.milliseconds.update(job.result().milliseconds)
                record.shared_by = job.result().shared_by
            self._film.close()
