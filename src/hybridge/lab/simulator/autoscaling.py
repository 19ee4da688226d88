"""When Ray Serve starts and ends replicas, by its default rules: from the jobs that replicas have."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """The rules; defaults are those of Ray Serve 2.60 and of the server's own deployment.

    Attributes:
        least: Replicas, at least.
        most: Replicas, at most.
        start_s: Seconds until a new replica takes jobs: a machine, a process, and loading a model.
        target: Jobs for each replica.
        look_s: Seconds between two looks.
        window_s: Seconds over which jobs are averaged.
        up_s: Seconds for which more have to be wanted before some are started.
        down_s: Seconds for which fewer have to be wanted before some are ended.
    """

    least: int
    most: int
    start_s: float = 60.0
    target: float = 1.0
    look_s: float = 1.0
    window_s: float = 30.0
    up_s: float = 30.0
    down_s: float = 600.0


class Autoscaler:
    """The rules at work.

    Attributes:
        rules: The rules.
        number: Replicas that there are, or that are being started.
    """

    def __init__(self, rules: Autoscaling, number: int) -> None:
        self.rules, self.number = rules, number
        self._seen: deque[tuple[float, int]] = deque()
        self._more_since: float | None = None
        self._fewer_since: float | None = None

    def wanted(self, now: float, given: int) -> int:
        """Return how many replicas there should be, from the jobs that replicas have now."""
        rules = self.rules
        self._seen.append((now, given))
        while self._seen[0][0] < now - rules.window_s:
            self._seen.popleft()
        mean = sum(number for _, number in self._seen) / len(self._seen)
        desired = min(rules.most, max(rules.least, math.ceil(mean / rules.target)))
        self._more_since = (self._more_since or now) if desired > self.number else None
        self._fewer_since = (self._fewer_since or now) if desired < self.number else None
        if self._more_since is not None and now - self._more_since >= rules.up_s:
            self._more_since = None
            return desired
        if self._fewer_since is not None and now - self._fewer_since >= rules.down_s:
            self._fewer_since = None
            return desired
        return self.number

    def start(self, wanted: int) -> int:
        """Return how many to start, and count them."""
        more = max(0, wanted - self.number)
        self.number += more
        return more
