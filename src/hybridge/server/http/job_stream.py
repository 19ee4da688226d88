"""A response whose pieces are sent while its job runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from .response_headers import UNBUFFERED

#: Seconds in which a job ends whose last piece was sent: it has nothing left to do.
_ENDING_S = 1.0


class JobStream(StreamingResponse):
    """The response.  Its job is cancelled if the client leaves.

    Args:
        pieces: The body.
        job: The job that runs.
        headers: The headers, but for those of every stream.

    Attributes:
        job: The job that runs.
        is_whole: Whether all pieces were sent; the job is waited for then.
    """

    def __init__(self, pieces: AsyncIterator[bytes], job: asyncio.Future[Any], headers: Mapping[str, str]) -> None:
        super().__init__(pieces, headers={**UNBUFFERED, **headers})
        self.job = job
        self.is_whole = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
            if self.is_whole:
                await asyncio.wait({self.job}, timeout=_ENDING_S)
        finally:
            self.job.cancel()
