"""When Ray Serve starts and ends replicas, by its default rules: from the jobs that replicas have."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

#: Seconds between two looks.
LOOK_S = 1.0

#: Jobs for each replica, and the seconds over which they are averaged.
_TARGET, _WINDOW_S = 1.0, 30.0

#: Seconds for which more replicas have to be wanted before some are started.
_UP_S = 30.0


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """The rules; defaults are those of Ray Serve 2.60 and of the server's own deployment.

    Attributes:
        least, most: Replicas.
        start_s: Seconds until a new replica takes jobs: a machine, a process, and loading a model.
        down_s: Seconds for which fewer have to be wanted before some are ended.
    """

    least: int
    most: int
    start_s: float = 60.0
    down_s: float = 600.0


class Autoscaler:
    """The rules at work; ``number`` is that of the replicas that there are, or that are being started."""

    def __init__(self, rules: Autoscaling, number: int) -> None:
        self.rules, self.number = rules, number
        self._seen: deque[tuple[float, int]] = deque()
        self._direction, self._since = 0, 0.0

    def wanted(self, now: float, given: int) -> int:
        """Return how many replicas there should be, from the jobs that replicas have now."""
        self._seen.append((now, given))
        while self._seen[0][0] < now - _WINDOW_S:
            self._seen.popleft()
        mean = sum(number for _, number in self._seen) / len(self._seen)
        desired = min(self.rules.most, max(self.rules.least, math.ceil(mean / _TARGET)))
        direction = (desired > self.number) - (desired < self.number)
        if direction != self._direction:
            self._direction, self._since = direction, now
        if direction and now - self._since >= (_UP_S if direction > 0 else self.rules.down_s):
            self._direction = 0
            return desired
        return self.number

    def start(self, wanted: int) -> int:
        """Return how many to start, and count them."""
        more = max(0, wanted - self.number)
        self.number += more
        return more
