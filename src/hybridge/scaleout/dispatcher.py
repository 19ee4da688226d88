"""Which job runs next, and on which replica.

*Order* is that of the fair queue.  *Depth*: a replica has at most two jobs, one that runs and one whose transfer it
hides; jobs that wait for their model do not count.  Beyond these it gets jobs that may run in the gaps of the one
that runs, by the rules of the queue.  *Affinity*: a job goes to the replica that would end it first, which counts
the work that a replica has and the time to load the model; if that replica is busy, the job waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..errors import HybridgeError
from ..server.scheduling.job import Progress
from ..server.scheduling.queue import FairQueue, QueuedJob, QueueLimits
from .messages import ReplicaState
from .pace import Pace
from .ticket import Ticket

#: Jobs that a replica has beside those that wait for their model or run in gaps.
_DEPTH = 2

#: Jobs that a replica has beyond these.
_MOST_IN_GAPS, _MOST_LOADING = 2, 8

#: Seconds to load a model before one was loaded.
_LOAD_S = 10.0

#: Seconds for which a replica that died is not believed to be alive again: an older answer of it may still arrive.
_GONE_S = 10.0


@dataclass(slots=True, eq=False)
class Seats:
    """A replica and the jobs that it has.

    Attributes:
        state: What it said last.
        serving: Its jobs, in the order in which they were given to it.
        promised: Models that it has been given jobs for since.
        unable: Models that it could not load since.
    """

    state: ReplicaState
    serving: list[QueuedJob[Ticket]] = field(default_factory=list)
    promised: set[str] = field(default_factory=set)
    unable: set[str] = field(default_factory=set)

    @property
    def left_s(self) -> float:
        """Seconds of work that it has."""
        return sum(queued.left_s for queued in self.serving)

    @property
    def has_room(self) -> bool:
        """Whether it may have another job."""
        loading = sum(queued.item.state == "loading" for queued in self.serving)
        return len(self.serving) - loading < _DEPTH and loading < _MOST_LOADING

    def has(self, part: str) -> bool:
        """Whether a model is loaded there, or will be."""
        return part in self.promised or self.state.has(part)

    @property
    def running(self) -> QueuedJob[Ticket] | None:
        """The job that runs, as far as it is known."""
        return next((queued for queued in self.serving if queued.item.state == "running"), None)


class Dispatcher:
    """The queue and the replicas.  Any thread may call it.

    Args:
        limits: Limits of the queue.
        pace: Knows what jobs cost.
    """

    def __init__(self, limits: QueueLimits, pace: Pace) -> None:
        self.queue: FairQueue[Ticket] = FairQueue(limits, self.is_loaded, lambda: len(self._replicas) or 1)
        self.load_s: dict[str, float] = {}
        self._pace = pace
        self._lock = threading.RLock()
        self._replicas: dict[str, Seats] = {}
        self._gone: dict[str, float] = {}
        self._loaded: frozenset[str] = frozenset()
        self._listeners = 0

    # -------------------------------------------------------------------------------------- replicas

    def update(self, states: Iterable[ReplicaState]) -> None:
        """Set which replicas there are, and what they say."""
        now = time.monotonic()
        with self._lock:
            self._gone = {name: at for name, at in self._gone.items() if now - at < _GONE_S}
            known, self._replicas = self._replicas, {}
            for state in states:
                if state.name not in self._gone:
                    seats = self._replicas[state.name] = known.get(state.name) or Seats(state)
                    seats.state = state
                    seats.promised = {queued.item.job.part for queued in seats.serving}
                    seats.unable = set()
            self._note_loaded()
        self.dispatch()

    def lose(self, name: str, *, is_dead: bool) -> None:
        """Give no more jobs to a replica, which died, or does not answer at the moment.

        Of a replica that died, the jobs that it was running are noted as what may have killed it.
        """
        with self._lock:
            seats = self._replicas.pop(name, None)
            self._note_loaded()
            if is_dead:
                self._gone[name] = time.monotonic()
            if is_dead and seats is not None:
                ran = [queued for queued in seats.serving if queued.item.state == "running"]
                for queued in ran or seats.serving[:1]:
                    queued.item.kills += 1

    def note_failure(self, name: str, part: str) -> None:
        """Note that a replica could not load a model."""
        with self._lock:
            if name in self._replicas:
                self._replicas[name].unable.add(part)

    def states(self) -> Sequence[ReplicaState]:
        """Return what the replicas said last."""
        with self._lock:
            return [seats.state for seats in self._replicas.values()]

    def is_loaded(self, part: str) -> bool:
        """Whether a job for this model can start now somewhere; takes no lock, because the queue calls it."""
        return part in self._loaded

    def _note_loaded(self) -> None:
        infos = [info for seats in self._replicas.values() for info in seats.state.infos]
        self._loaded = frozenset(info.part for info in infos if info.state == "loaded")

    # ------------------------------------------------------------------------------------------ jobs

    def put(self, ticket: Ticket) -> QueuedJob[Ticket]:
        """Put a job into the queue.

        Raises:
            Overloaded: when the queue is full.
            ShuttingDown: when it is closed.
        """
        queued = self.queue.put_job(ticket, ticket.job, self._pace.cost(ticket.job))
        self._listeners += ticket.has_listener
        self.dispatch()
        return queued

    def leave(self, queued: QueuedJob[Ticket], seconds: float | None = None) -> None:
        """End a job: off the queue, or off its replica.

        Args:
            queued: The job.
            seconds: Time that its client is charged with; None for the time since it was given to its replica.
        """
        ticket = queued.item
        self._listeners -= ticket.has_listener
        if not self.queue.leave(queued):
            self._unseat(queued)
            if queued in self.queue.serving():
                self.queue.end(queued, time.perf_counter() - ticket.granted_at if seconds is None else seconds)
        self.dispatch()

    def put_back(self, queued: QueuedJob[Ticket]) -> bool:
        """Put a job back into the queue for another turn, on its event loop; False if the queue is closed."""
        self._unseat(queued)
        queued.item.renew()
        is_back = self.queue.put_back(queued)
        self.dispatch()
        return is_back

    def progress(self, queued: QueuedJob[Ticket], progress: Progress) -> None:
        """Note what a replica says about a job, and tell its listener."""
        ticket = queued.item
        has_changed = ticket.state != progress.state
        ticket.state = progress.state
        if progress.state == "running":
            self.queue.advance(queued, progress.done)
        ticket.notify(progress)
        if has_changed or self.queue.is_short_waiting(queued):
            self.dispatch()

    def fail_waiting(self, error: HybridgeError) -> None:
        """Fail all jobs that wait for a replica."""
        for queued in self.queue.waiting():
            queued.item.fail(error)

    def dispatch(self) -> None:
        """Give jobs to replicas as long as there are both."""
        with self._lock:
            while len(self.queue) and self._seat_one():
                pass
            if len(self.queue):
                for seats in self._replicas.values():
                    self._fill_gaps(seats)
        self._notify_positions()

    def _seat_one(self) -> bool:
        if not any(seats.has_room for seats in self._replicas.values()):
            return False
        best: dict[tuple[str, frozenset[str]], Seats | None] = {}

        def is_ready(ticket: Ticket) -> bool:
            key = (ticket.job.part, ticket.refused_by)
            if key not in best:
                best[key] = self._best(*key)
            seats = best[key]
            return seats is not None and seats.has_room

        queued = self.queue.take_now(is_ready)
        if queued is None:
            return False
        seats = best[queued.item.job.part, queued.item.refused_by]
        assert seats is not None  # noqa: S101 - or the job was not ready
        self._grant(queued, seats)
        return True

    def _best(self, part: str, refused_by: frozenset[str]) -> Seats | None:
        """The replica that would end a job of this model first; None if no replica takes it."""
        sound = [
            seats
            for seats in self._replicas.values()
            if seats.state.health is None and seats.state.name not in refused_by
        ]
        able = [seats for seats in sound if not (part in seats.unable or seats.state.failed(part))]
        load_s = self.load_s.get(part, _LOAD_S)

        def order(seats: Seats) -> tuple[float, int, str]:
            begins_s = seats.left_s + (0.0 if seats.has(part) else load_s)
            return begins_s, len(seats.serving), seats.state.name

        return min(able or sound, key=order, default=None)

    def _fill_gaps(self, seats: Seats) -> None:
        outer = seats.running
        if outer is None or seats.state.health is not None:
            return
        most = _DEPTH + _MOST_IN_GAPS

        def may_run(ticket: Ticket) -> bool:
            job = ticket.job
            is_free = job.may_interrupt_its_kind or job.part != outer.item.job.part
            return is_free and seats.has(job.part) and seats.state.name not in ticket.refused_by

        while len(seats.serving) < most and self.queue.is_short_waiting(outer):
            queued = self.queue.interrupt(outer, before=self.queue.arrivals, is_ready=may_run)
            if queued is None:
                return
            self._grant(queued, seats)

    def _grant(self, queued: QueuedJob[Ticket], seats: Seats) -> None:
        seats.serving.append(queued)
        seats.promised.add(queued.item.job.part)
        queued.item.grant(seats.state.name)

    def _unseat(self, queued: QueuedJob[Ticket]) -> None:
        with self._lock:
            for seats in self._replicas.values():
                if queued in seats.serving:
                    seats.serving.remove(queued)

    def _notify_positions(self) -> None:
        """Report to every waiting job its position, if anybody listens."""
        if not self._listeners:
            return
        share = 1 / max(1, len(self._replicas))
        ahead_s = sum(queued.left_s for queued in self.queue.serving()) * share
        for position, queued in enumerate(self.queue.waiting()):
            ahead_s += queued.cost_s * share
            queued.item.notify(Progress("waiting", position, ahead_s))
