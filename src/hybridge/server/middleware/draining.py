"""Shutdown: new work is refused, accepted work is finished, and what cannot be finished is answered with an error.

There are three steps.  :meth:`Drain.begin` stops admission at once, while the socket still listens, so that new
requests get a 503 in JSON.  :meth:`Drain.finish` waits for the accepted work.  After the grace period the rest is
cancelled, and each client gets an error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import ShuttingDown
from ..error_responses import refuse

#: Seconds in which every error response can be written.
_REFUSING_S = 5.0

_CLOSE = {"connection": "close"}

_Wait = Callable[[], Coroutine[object, object, object]]


class Drain:
    """Counts the accepted work, and ends it.  Belongs to one event loop."""

    def __init__(self) -> None:
        self._held: set[asyncio.Task[object]] = set()
        self._beginnings: list[Callable[[float], None]] = []
        self._others: list[_Wait] = []
        self._ends: list[_Wait] = []
        self._has_begun = False
        self._is_over = False

    @property
    def has_begun(self) -> bool:
        """Whether new work is refused."""
        return self._has_begun

    @property
    def is_over(self) -> bool:
        """Whether the grace period has passed with work left."""
        return self._is_over

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Count the work of the current task inside the block: the server waits for that task.

        Raises:
            ShuttingDown: when new work is refused.
        """
        if self._has_begun:
            raise ShuttingDown("the server is shutting down", hint="another server, or again in a while")
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine that runs, runs in a task
        self._held.add(task)
        try:
            yield
        finally:
            self._held.discard(task)

    def also_wait_for(self, finished: _Wait) -> None:
        """Also wait for work that no request waits for, such as async jobs.

        Args:
            finished: Called once all counted work is done, which may have left such work behind; its coroutine
                returns when that is done, and is cancelled after the grace period.
        """
        self._others.append(finished)

    def end_with(self, close: _Wait) -> None:
        """Call this after the wait, to end what would keep connections open for ever, such as streams of events."""
        self._ends.append(close)

    def begin_with(self, on_begin: Callable[[float], None]) -> None:
        """Call this once at the beginning, with the time at which the grace period ends, in seconds since 1970."""
        self._beginnings.append(on_begin)

    def begin(self, grace_s: float) -> None:
        """Refuse new work from now on."""
        if self._has_begun:
            return
        self._has_begun = True
        for on_begin in self._beginnings:
            on_begin(time.time() + grace_s)

    async def finish(self, grace_s: float) -> None:
        """Wait until all work is done; after ``grace_s`` cancel the rest, and let it be answered."""
        self.begin(grace_s)
        deadline = asyncio.get_running_loop().time() + grace_s
        left = await _unfinished(set(self._held), deadline)
        left |= await _unfinished({asyncio.create_task(finished()) for finished in self._others}, deadline)
        self._is_over = True
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_REFUSING_S)
        for close in self._ends:
            await close()


async def _unfinished(work: set[asyncio.Task[object]], deadline: float) -> set[asyncio.Task[object]]:
    """Return the work that is not done at a time of the event loop."""
    if not work:
        return work
    left_s = max(0.0, deadline - asyncio.get_running_loop().time())
    return (await asyncio.wait(work, timeout=left_s))[1]


class DrainMiddleware:
    """ASGI middleware: counts work for the drain, and refuses work during shutdown.

    Work is POST requests.  Other requests are answered until the end, except that ``/ready`` returns 503; neither
    they nor idle connections delay the shutdown.
    """

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_answered = False

        async def closing(message: Message) -> None:
            nonlocal is_answered
            if message["type"] == "http.response.start":
                is_answered = True
                if self._drain.has_begun:
                    MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        try:
            if scope["method"] == "POST":
                with self._drain.hold():
                    await self._app(scope, receive, closing)
            elif scope["path"] == "/ready" and self._drain.has_begun:
                raise ShuttingDown("not ready: the server is shutting down")
            else:
                await self._app(scope, receive, closing)
        except ShuttingDown as refusal:
            await refuse(refusal, scope, receive, send, headers=_CLOSE)
        except asyncio.CancelledError:
            if is_answered or not self._drain.is_over:
                raise
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - as above
            task.uncancel()
            late = ShuttingDown("the server shut down before this request was done", hint="another server")
            await refuse(late, scope, receive, send, headers=_CLOSE)
