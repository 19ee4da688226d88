"""A job that waits, and the future for what becomes of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ...errors import HybridgeError
from .job import Job, Progress, ProgressCallback

log = logging.getLogger("hybridge.queue")

Outcome = TypeVar("Outcome")

#: The smallest step of progress that is reported; there are many strips.
_TOLD_STEP = 0.01


class Pending(Generic[Outcome]):
    """A job in a queue, made on the event loop on which its client waits.

    Args:
        job: What to do.
        on_progress: Called with its progress, on the event loop.

    Attributes:
        has_listener: Whether anybody is told of its progress.
        since: When it began to wait; a time of :func:`time.perf_counter`.
        future: Has the outcome, or raises the error.
    """

    def __init__(self, job: Job[Any], on_progress: ProgressCallback | None) -> None:
        self.job = job
        self.has_listener = on_progress is not None
        self.since = time.perf_counter()
        self._on_progress = on_progress
        self._last_progress = Progress("waiting", position=-1)
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Outcome] = self._loop.create_future()

    def wait_again(self) -> None:
        """Wait for another outcome; called on its event loop."""
        self.since = time.perf_counter()
        self.future = self._loop.create_future()

    def resolve(self, outcome: Outcome | HybridgeError) -> None:
        """Set the outcome or the error; callable from any thread."""
        self._on_loop(self._set, outcome)

    def notify(self, progress: Progress) -> None:
        """Report progress, except for small changes; callable from any thread."""
        last = self._last_progress
        has_changed = (progress.state, progress.position) != (last.state, last.position)
        if self._on_progress is not None and (has_changed or progress.done - last.done >= _TOLD_STEP):
            self._last_progress = progress
            self._on_loop(self._on_progress, progress)

    def _on_loop(self, function: Callable[[Any], None], value: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, value)
        except RuntimeError:  # the event loop has ended
            log.info("the client of a %s job has left", self.job.part)

    def _set(self, outcome: Outcome | HybridgeError) -> None:
        if self.future.done():
            return
        if isinstance(outcome, HybridgeError):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)
