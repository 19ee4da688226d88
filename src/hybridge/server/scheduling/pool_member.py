"""A member of a pool of backends: the jobs that it has, and whether it can start another one soon."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from .backend import Backend
from .job import Job, ProgressCallback, Result

#: Jobs that a member has at a time: one that runs, and one that starts when it ends.
_DEPTH = 2

#: Jobs beyond these, which share a run or fit into gaps.
_MOST_MORE = 8

#: As in the queue of a device: a job for the gaps of another costs at most this share of what that still has to do.
_GAP_SHARE = 1 / 4


class Member(Backend, Protocol):
    """A backend of a pool."""

    def is_ready(self, part: str) -> bool:
        """Return whether a model is loaded, so that a job for it can start."""
        ...

    def expected_s(self, job: Job[Any]) -> tuple[float, bool]:
        """Return the expected seconds of a job on the device, and whether they are a guess.

        Raises:
            RequestError: when the job cannot be done.
        """
        ...

    def kept_result(self, job: Job[Any]) -> Result | None:
        """Return the result of a job if it is kept from before."""
        ...


@dataclass(slots=True, eq=False)
class Pending:
    """A job in the queue, and the future for its result."""

    job: Job[Any]
    cost_s: float
    on_progress: ProgressCallback | None
    future: asyncio.Future[Result]
    since: float = field(default_factory=time.perf_counter)
    failed_on: list[Place] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Given:
    """A job that a member has."""

    pending: Pending
    cost_s: float
    left_s: float
    is_running: bool = False


@dataclass(slots=True, eq=False)
class Place:
    """A member, the jobs that it has, and how it did lately."""

    name: str
    backend: Member
    given: list[Given] = field(default_factory=list)
    failures: int = 0
    rests_until: float = 0.0

    def has(self, part: str) -> bool:
        """Whether the model is loaded here, or will be."""
        return self.backend.is_ready(part) or any(one.pending.job.part == part for one in self.given)

    @property
    def left_s(self) -> float:
        """Seconds of work that it has."""
        return sum(one.left_s for one in self.given)

    def has_room(self, job: Job[Any], cost_s: float) -> bool:
        """Whether a job can start here soon."""
        if not self.backend.is_ready(job.part):
            # Whatever waits for the model waits here as well as in the queue, and holds nothing up.
            return sum(one.pending.job.part == job.part for one in self.given) < _DEPTH
        ready = [one for one in self.given if self.backend.is_ready(one.pending.job.part)]
        if len(ready) < _DEPTH:
            return True
        if len(ready) >= _DEPTH + _MOST_MORE:
            return False
        waiting = [one for one in ready if not one.is_running]
        key = job.batch_key
        if key is not None and any(one.pending.job.batch_key == key for one in waiting):
            return True
        return cost_s <= _GAP_SHARE * max((one.left_s for one in ready if one.is_running), default=0.0)
