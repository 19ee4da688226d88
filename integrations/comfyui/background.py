"""Requests on an event loop of their own, for which a node's thread waits.

ComfyUI cannot stop a thread that waits for a socket.  So the node's thread only looks every few hundredths of a
second whether somebody has pressed *Interrupt*, and then cancels the requests: their connections close, and the
server drops the work.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from queue import SimpleQueue
from typing import Any, TypeVar

import comfy.model_management
import comfy.utils

T = TypeVar("T")

#: Seconds between two looks.
_POLL_S = 0.05

#: Requests of one node at the same time: one computes while others are on their way.
_AT_ONCE = 3

#: Steps of the progress bar for a request.
_STEPS = 100

#: Longest side of a preview in the browser.
_PREVIEW_PIXELS = 768

#: The part of a request's progress that is its way to the server; the rest is the way back.
_UP = 0.3

#: What the client calls with "up" or "down", the bytes done, and the bytes in total or None.
Progress = Callable[[str, int, "int | None"], None]

#: Begins a request.
Work = Callable[[Progress], Awaitable[T]]


class _Loop:
    """The event loop, which begins when it is first used."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def get(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="hybridge", daemon=True).start()
            return self._loop

    def stop(self) -> None:
        """End the loop and its thread; the next use begins another."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            asyncio.run_coroutine_threadsafe(loop.shutdown_asyncgens(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            while loop.is_running():
                time.sleep(0.001)
            loop.close()


_LOOP = _Loop()


def run(work: Work[T], *, shows_progress: bool = False) -> T:
    """Run one request on the loop and return its result.

    Raises:
        InterruptProcessingException: ComfyUI's own, within a tenth of a second after an interruption.
    """
    results: list[T] = []
    run_all([work], lambda _, result: results.append(result), shows_progress=shows_progress)
    return results[0]


def run_all(
    works: Sequence[Work[T]],
    take: Callable[[int, T], None],
    *,
    shows_progress: bool = False,
    previews: SimpleQueue[Any] | None = None,
) -> None:
    """Run several requests, a few at a time.

    Args:
        works: Begin the requests.
        take: Called on this thread with the index and the result of each, in the order in which they arrive.
        shows_progress: Whether the node's progress bar moves.  Inside of a sampler, the bar is the sampler's.
        previews: PIL pictures to show above the node, which the requests put there.

    Raises:
        InterruptProcessingException: as for :func:`run`.
    """
    loop, at_once = _LOOP.get(), asyncio.Semaphore(_AT_ONCE)
    shares = [0.0] * len(works)

    async def one(index: int, work: Work[T]) -> T:
        def progress(direction: str, done: int, total: int | None) -> None:
            share = done / total if total else 0.0
            share = _UP * share if direction == "up" else _UP + (1 - _UP) * share
            shares[index] = max(shares[index], share)

        async with at_once:
            result = await work(progress)
            shares[index] = 1.0
            return result

    bar = _Bar(len(works)) if shows_progress else None
    futures: dict[Future[T], int] = {}
    try:
        for index, work in enumerate(works):
            futures[asyncio.run_coroutine_threadsafe(one(index, work), loop)] = index
        waiting = set(futures)
        while waiting:
            comfy.model_management.throw_exception_if_processing_interrupted()
            done, waiting = wait(waiting, _POLL_S, FIRST_COMPLETED)
            for future in done:
                take(futures[future], future.result())
            if bar is not None:
                bar.move(sum(shares), None if previews is None or previews.empty() else previews.get())
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def begin(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Run something on the loop without waiting for it."""
    return asyncio.run_coroutine_threadsafe(work, _LOOP.get())


def stop() -> None:
    """End the event loop; nothing may be running on it."""
    _LOOP.stop()


class _Bar:
    """The node's progress bar; moving it may raise ComfyUI's interruption."""

    def __init__(self, requests: int) -> None:
        self._bar = comfy.utils.ProgressBar(requests * _STEPS)
        self._at = 0

    def move(self, shares: float, preview: Any = None) -> None:
        at = int(shares * _STEPS)
        if at > self._at or preview is not None:
            self._at = max(at, self._at)
            self._bar.update_absolute(self._at, preview=preview and ("JPEG", preview, _PREVIEW_PIXELS))
