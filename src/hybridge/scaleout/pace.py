"""What jobs cost, learned by the front from the results of its replicas.  The front has no engine to ask."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from ..server.scheduling.cost_model import CostModel
from ..server.scheduling.job import Job, Result

#: FLOPs for each pixel or prompt before a result of the kind was seen: those of Stable Diffusion's decoder.
_FIRST_GUESS = 9.5e6

#: Sizes whose FLOPs are kept; the least recently used are dropped, because strangers choose the sizes.
_MOST_SIZES = 4096


class Pace:
    """The arithmetic of jobs and the speed of the replicas.  Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds = CostModel()
        self._flops: OrderedDict[tuple[str, int, int], float] = OrderedDict()
        self._per_amount: dict[str, float] = {}

    def cost(self, job: Job[Any]) -> tuple[float, bool]:
        """Return the expected seconds of a job, and whether they are a guess."""
        with self._lock:
            flops = self._flops.get(_size_of(job)) or self._guess(job)
            return self._seconds.seconds(job.cost_key, flops), not self._seconds.knows(job.cost_key)

    def learn(self, job: Job[Any], result: Result) -> None:
        """Learn from the result of a job."""
        if result.cache == "hit":
            return
        seconds = result.milliseconds.get("device", 0.0) / 1e3 / result.shared_by
        with self._lock:
            size, ran = _size_of(job), result.ran
            if ran is not None and ran.flops:
                self._flops[size] = flops = ran.flops / result.shared_by
                self._flops.move_to_end(size)
                if len(self._flops) > _MOST_SIZES:
                    self._flops.popitem(last=False)
                self._per_amount[job.cost_key] = flops / job.amount
            else:
                flops = self._flops.get(size) or self._guess(job)
            self._seconds.learn(job.cost_key, flops, seconds)

    def _guess(self, job: Job[Any]) -> float:
        return job.amount * self._per_amount.get(job.cost_key, _FIRST_GUESS)


def _size_of(job: Job[Any]) -> tuple[str, int, int]:
    return job.cost_key, job.amount, job.batch
