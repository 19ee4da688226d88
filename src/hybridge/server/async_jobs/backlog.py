"""Async jobs that are not in the queue yet.

At most two async jobs per client are in the queue at once: one that runs and the next.  The others wait here in
order, so the queue stays short for clients that wait for an answer, and fair between those that do not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ..scheduling.job import Progress
from .job_state import AsyncJob

#: Async jobs of one client in the queue.
_AT_ONCE = 2


class Backlog:
    """The jobs of each client, in order.

    Args:
        begin: Puts a job into the queue; :meth:`end` must be called when the job has left it.
    """

    def __init__(self, begin: Callable[[AsyncJob], None]) -> None:
        self._begin = begin
        self._waiting: dict[str, deque[AsyncJob]] = {}
        self._begun: dict[str, int] = {}
        self._is_held = False

    def hold(self) -> None:
        """Start no more jobs."""
        self._is_held = True

    def add(self, entry: AsyncJob) -> None:
        """Add a job, and start it if fewer than two of its client's are started."""
        self._waiting.setdefault(entry.stored.client, deque()).append(entry)
        self._feed(entry.stored.client)

    def remove(self, entry: AsyncJob) -> None:
        """Remove a job, if it is still here."""
        waiting = self._waiting.get(entry.stored.client)
        if waiting and entry in waiting:
            waiting.remove(entry)

    def end(self, entry: AsyncJob) -> None:
        """Start the client's next job: one that was started has left the queue."""
        client = entry.stored.client
        self._begun[client] -= 1
        if not self._begun[client]:
            del self._begun[client]
        self._feed(client)

    def _feed(self, client: str) -> None:
        waiting = self._waiting.get(client)
        while waiting and self._begun.get(client, 0) < _AT_ONCE and not self._is_held:
            self._begun[client] = self._begun.get(client, 0) + 1
            self._begin(waiting.popleft())
        for position, entry in enumerate(waiting or ()):
            entry.on_progress(Progress("waiting", position + _AT_ONCE))
        if not waiting:
            self._waiting.pop(client, None)
