"""A member of a pool: the jobs that it has, and whether it can start another one soon."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from .backend import BackendLoad, ModelInfo
from .job import Job, ProgressCallback, Result
from .pending import Pending
from .queue import QueuedJob

#: Jobs that a member has at a time: one that runs, and one that starts when it ends.
_DEPTH = 2

#: Jobs beyond these, which share a run or fit into gaps.
_MOST_MORE = 8

#: As in the queue of a device: a job for the gaps of another costs at most this share of what that still has to do.
_GAP_SHARE = 1 / 4


class Member(Protocol):
    """One of several backends.  All methods but :meth:`run` return at once, and any thread may call them."""

    def info(self) -> Sequence[ModelInfo]:
        """Return the models, as :meth:`Backend.info` does."""
        ...

    def load(self) -> BackendLoad:
        """Return how busy it is."""
        ...

    def health(self) -> str | None:
        """Return None while it accepts jobs, else the reason why not."""
        ...

    def is_ready(self, part: str) -> bool:
        """Return whether a model is loaded, so that a job for it can start; takes no lock."""
        ...

    def has_failed(self, part: str) -> bool:
        """Return whether loading a model has just failed, so that a job would get that error."""
        ...

    def may_share(self, part: str) -> int:
        """Return how many jobs of equal batch keys may share a run."""
        ...

    async def run(self, job: Job[Any], on_progress: ProgressCallback | None = None) -> Result:
        """Run a job; its own queue refuses nothing.

        Raises:
            ReplicaLost: when it does not end the job.
            ModelUnavailable: when it cannot load the model.
            HybridgeError: when the job fails.
        """
        ...


class Ticket(Pending["Place"]):
    """A job in the pool's queue, which waits for the place where it may run.

    Attributes:
        cost_s: Seconds that it is expected to need.
        state: What its member said last.
        tried: Where it did not succeed.
        failed_on: Those of them where its run failed.
        attempts: How often it was given to a member.
        kills: How many members ended while they ran it.
        given_at: When it was given to the last one; a time of :func:`time.perf_counter`.
        waited_s: Seconds that it has waited for its places.
    """

    def __init__(self, job: Job[Any], on_progress: ProgressCallback | None, cost_s: float) -> None:
        super().__init__(job, on_progress)
        self.cost_s = cost_s
        self.state: Literal["waiting", "loading", "running"] = "waiting"
        self.tried: tuple[Place, ...] = ()
        self.failed_on: tuple[Place, ...] = ()
        self.attempts = self.kills = 0
        self.given_at = self.since
        self.waited_s = 0.0

    def give(self, place: Place) -> None:
        """Let it run; callable from any thread."""
        self.attempts += 1
        self.state = "waiting"
        self.given_at = time.perf_counter()
        self.waited_s += self.given_at - self.since
        self.resolve(place)


@dataclass(slots=True, eq=False)
class Place:
    """A member, the jobs that it has, and how it did lately.

    Attributes:
        name: Its name.
        member: The member.
        given: Its jobs, in the order in which they were given to it.
        failures: Jobs that failed here one after another, and succeeded elsewhere.
        rests_until: It gets no jobs before, if others can have them; a time of :func:`time.monotonic`.
        away_until: It gets no jobs before; the same.
        is_dead: Whether it has ended.
    """

    name: str
    member: Member
    given: list[QueuedJob[Ticket]] = field(default_factory=list)
    failures: int = 0
    rests_until: float = 0.0
    away_until: float = 0.0
    is_dead: bool = False

    @property
    def illness(self) -> str | None:
        """Why it gets no jobs; None if it does."""
        if (reason := self.member.health()) is not None:
            return reason
        if self.is_dead:
            return "it has ended"
        return "it cannot be reached" if time.monotonic() < self.away_until else None

    @property
    def is_resting(self) -> bool:
        """Whether it gets jobs only if no other can have them."""
        return time.monotonic() < self.rests_until

    @property
    def left_s(self) -> float:
        """Seconds of work that it has."""
        return sum(one.left_s for one in self.given)

    def has(self, part: str) -> bool:
        """Whether the model is loaded here, or will be."""
        return self.member.is_ready(part) or any(one.group == part for one in self.given)

    def has_seat(self, part: str) -> bool:
        """Whether a job for this model is the next to start here."""
        if not self.member.is_ready(part):
            # Whatever waits for the model waits here as well as in the queue, and holds nothing up.
            return sum(one.group == part for one in self.given) < _DEPTH
        return len(self._ready()) < _DEPTH

    def may_have_gaps(self, part: str) -> bool:
        """Whether :meth:`has_gap` can be true."""
        return any(one.item.state == "running" for one in self.given) or self.member.may_share(part) > 1

    def has_gap(self, ticket: Ticket) -> bool:
        """Whether a job can share a run here, or start in the gaps of the one that runs."""
        job, ready = ticket.job, self._ready()
        if not self.member.is_ready(job.part) or len(ready) >= _DEPTH + _MOST_MORE:
            return False
        most, key = self.member.may_share(job.part), job.batch_key
        if most > 1 and key is not None:
            alike = sum(one.item.state != "running" and one.item.job.batch_key == key for one in ready)
            if 0 < alike < most:
                return True
        running = [one for one in ready if one.item.state == "running"]
        is_free = job.may_interrupt_its_kind or all(one.group != job.part for one in running)
        return is_free and ticket.cost_s <= _GAP_SHARE * max((one.left_s for one in running), default=-1.0)

    def _ready(self) -> Sequence[QueuedJob[Ticket]]:
        return [one for one in self.given if self.member.is_ready(one.group)]
