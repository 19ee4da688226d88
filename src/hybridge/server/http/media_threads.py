"""Threads that read and write picture files, video and base64 beside the event loop and the device."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

Made = TypeVar("Made")

#: Threads, however many processors there are: a file of the largest size takes one of them for a second or two.
_COUNT = 4


class MediaThreads:
    """The threads.  None can be stopped in the middle of a file, so shutdown does not depend on it.

    Args:
        count: How many files are worked on at a time.
    """

    def __init__(self, count: int = _COUNT) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="hybridge-media")
        self._unfinished: set[Future[Any]] = set()

    async def run(self, function: Callable[..., Made], *args: Any) -> Made:
        """Return the function's result.  Cancelling keeps it from starting, but does not stop it once it runs."""
        future = self._pool.submit(function, *args)
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        return await asyncio.wrap_future(future)

    def close(self, patience_s: float) -> None:
        """Start nothing more, and return once each thread is done with its file.

        Args:
            patience_s: Seconds after which it returns anyway; :attr:`is_busy` tells.
        """
        self._pool.shutdown(wait=False, cancel_futures=True)
        wait(tuple(self._unfinished), patience_s)

    @property
    def is_busy(self) -> bool:
        """Whether a thread works on a file, or a file waits for a thread."""
        return bool(self._unfinished)
