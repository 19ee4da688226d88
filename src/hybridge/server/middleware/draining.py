"""How the server goes down: no new work, what was accepted is finished, and what cannot be is answered.

Three steps.  :meth:`Drain.begin` stops admission at once, while the socket still listens, so that whoever comes
hears a 503 in JSON instead of finding nobody.  :meth:`Drain.finish` waits for the work that was accepted.  What is
left after the grace period is cancelled, and each sender is told.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import ShuttingDown
from ..error_responses import refuse

#: Seconds in which a refusal can surely be written.
_REFUSING_S = 5.0

_CLOSE = {"connection": "close"}

_Wait = Callable[[], Coroutine[object, object, object]]


class Drain:
    """Counts what has been promised to somebody, and ends it.  Belongs to one event loop."""

    def __init__(self) -> None:
        self._held: set[asyncio.Task[object]] = set()
        self._beginnings: list[Callable[[float], None]] = []
        self._others: list[_Wait] = []
        self._ends: list[_Wait] = []
        self._has_begun = False
        self._is_over = False

    @property
    def has_begun(self) -> bool:
        """Whether work is refused by now."""
        return self._has_begun

    @property
    def is_over(self) -> bool:
        """Whether the grace period has passed with work left."""
        return self._is_over

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Around work that was accepted, in the task that does it: the server waits for that task.

        Raises:
            ShuttingDown: when no more work is taken.
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
        """Waits at the end for work that no request waits for any more, such as what was accepted for later.

        Args:
            finished: Called once all that was held is done, which may have left such work behind; its coroutine
                returns when that is done, and is cancelled when the grace period has passed.
        """
        self._others.append(finished)

    def end_with(self, close: _Wait) -> None:
        """Ends what would keep connections open for ever, such as streams of events, once the wait is over."""
        self._ends.append(close)

    def begin_with(self, on_progress: Callable[[float], None]) -> None:
        """Calls this once, at the beginning, with the time in seconds since 1970 at which the grace period ends."""
        self._beginnings.append(on_progress)

    def begin(self, grace_s: float) -> None:
        """Takes no more work from now on."""
        if self._has_begun:
            return
        self._has_begun = True
        for on_progress in self._beginnings:
            on_progress(time.time() + grace_s)

    async def finish(self, grace_s: float) -> None:
        """Waits until all work is done; after ``grace_s`` cancels what is left and lets it be answered."""
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
    """What of it is not done by then, in the loop's time."""
    if not work:
        return work
    left_s = max(0.0, deadline - asyncio.get_running_loop().time())
    return (await asyncio.wait(work, timeout=left_s))[1]


class DrainMiddleware:
    """ASGI middleware: holds the drain open for work, refuses work that comes too late.

    Work is what is posted.  Questions are answered until the end, except that ``/ready`` says no; neither they nor
    a connection that is merely kept open holds up the end.
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
            if sys.version_info >= (3, 11):
                task = asyncio.current_task()
                assert task is not None  # noqa: S101 - as above
                task.uncancel()
            late = ShuttingDown("the server shut down before this request was done", hint="another server")
            await refuse(late, scope, receive, send, headers=_CLOSE)
