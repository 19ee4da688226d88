"""A job between the front's queue and a replica."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Literal

from ..errors import HybridgeError
from ..server.scheduling.job import Job, Progress, ProgressCallback

log = logging.getLogger("hybridge.scaleout")

#: The smallest step of progress that is reported.
_TOLD_STEP = 0.01


class Ticket:
    """A job in the queue, whose turn belongs to the event loop on which it was made.

    Args:
        job: The job.
        on_progress: Called with its progress, on the event loop.

    Attributes:
        turn: The name of the replica that it may run on, once there is one.
        state: What its replica said last.
        refused_by: Replicas that cannot load its model.
        attempts: How often it was given to a replica.
        kills: How many replicas died while they ran it.
        has_sent: Whether bytes of its film came back.
        granted_at: When it got its turn; a time of :func:`time.perf_counter`.
    """

    def __init__(self, job: Job[Any], on_progress: ProgressCallback | None) -> None:
        self.job = job
        self.has_listener = on_progress is not None
        self.state: Literal["waiting", "loading", "running"] = "waiting"
        self.refused_by: frozenset[str] = frozenset()
        self.attempts = self.kills = 0
        self.has_sent = False
        self.queued_at = self.granted_at = time.perf_counter()
        self.waited_s = 0.0
        self._on_progress = on_progress
        self._told = Progress("waiting", position=-1)
        self._loop = asyncio.get_running_loop()
        self.turn: asyncio.Future[str] = self._loop.create_future()

    def grant(self, replica: str) -> None:
        """Give it its turn; callable from any thread."""
        self.attempts += 1
        self.state = "waiting"
        self.granted_at = time.perf_counter()
        self.waited_s += self.granted_at - self.queued_at
        self._on_loop(self._set_turn, replica)

    def renew(self) -> None:
        """Let it wait for another turn; called on its event loop."""
        self.queued_at = time.perf_counter()
        self.turn = self._loop.create_future()

    def fail(self, error: HybridgeError) -> None:
        """End its waiting with an error; callable from any thread."""
        self._on_loop(self._set_turn, error)

    def notify(self, progress: Progress) -> None:
        """Report progress, except for small changes; callable from any thread."""
        told = self._told
        has_changed = (progress.state, progress.position) != (told.state, told.position)
        if self._on_progress is not None and (has_changed or progress.done - told.done >= _TOLD_STEP):
            self._told = progress
            self._on_loop(self._on_progress, progress)

    def _set_turn(self, turn: str | HybridgeError) -> None:
        if self.turn.done():
            return
        if isinstance(turn, HybridgeError):
            self.turn.set_exception(turn)
        else:
            self.turn.set_result(turn)

    def _on_loop(self, function: Callable[[Any], None], value: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, value)
        except RuntimeError:  # the event loop has ended
            log.info("the client of a %s job has left", self.job.part)
