"""The core of a discrete-event simulation: a clock with events, and a station that serves one after another."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class Clock:
    """Simulated time in seconds, and what happens when."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def at(self, time_s: float, event: Callable[[], None]) -> None:
        """Let something happen at a time; events of one time happen in the order in which they were planned."""
        heapq.heappush(self._events, (max(time_s, self.now), next(self._numbers), event))

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Let something happen after some seconds."""
        self.at(self.now + seconds, event)

    def run(self, is_over: Callable[[], bool]) -> None:
        """Let events happen until there are none, or until ``is_over``."""
        while self._events and not is_over():
            self.now, _, event = heapq.heappop(self._events)
            event()


class Station:
    """Serves one after another, in the order of arrival: a processor, or a link; it was in use for ``busy_s``."""

    def __init__(self, clock: Clock) -> None:
        self.busy_s = 0.0
        self._clock = clock
        self._free_at = 0.0

    def serve(self, seconds: float, then: Callable[[], None]) -> None:
        """Serve for some seconds when it is free, and call back."""
        self._free_at = max(self._free_at, self._clock.now) + seconds
        self.busy_s += seconds
        self._clock.at(self._free_at, then)
