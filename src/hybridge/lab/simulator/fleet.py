"""A front with a queue, and replicas behind it, as :mod:`hybridge.scaleout` has them.

The front works on one job after another, as its event loop does; one link carries all bytes between it and the
replicas.  A replica has one job that runs and one that waits; a job that costs at most a quarter of what the
running one still has to do runs in its gaps.  The queue is in the order of arrival: clients are taken to be many
and alike.  Models are loaded everywhere.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from .autoscaling import LOOK_S, Autoscaler, Autoscaling
from .events import Clock, Station
from .workload import MOST_JOBS, JobClass

#: As in the server: jobs of a replica beside those in gaps, and the share that a job in a gap may cost.
_DEPTH, _GAP_SHARE = 2, 1 / 4


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """What is simulated.

    Attributes:
        link_bytes_per_s: Speed of the front's link to all replicas together.
        hop_s: Seconds that a job needs to a replica and back, besides its bytes.
        autoscaling: Rules by which replicas come and go; None for a fixed number.
        has_gaps: Whether short jobs run in the gaps of long ones.
        warm_up: Share of the jobs, the first ones, that the result leaves out.
    """

    replicas: int = 1
    link_bytes_per_s: float = 1.25e9
    hop_s: float = 0.006
    autoscaling: Autoscaling | None = None
    has_gaps: bool = True
    warm_up: float = 0.1
    seed: int = 0


@dataclass(slots=True, eq=False)
class SimulatedJob:
    """One job, ``left_s`` of whose run are left.  Times are in seconds from the beginning."""

    kind: JobClass
    device_s: float
    arrived_s: float
    left_s: float
    then: Callable[[], None] | None = None
    ended_s: float = 0.0

    @property
    def wall_s(self) -> float:
        """From its arrival to its answer."""
        return self.ended_s - self.arrived_s

    @property
    def waited_s(self) -> float:
        """Whatever was not its own run."""
        return self.wall_s - self.device_s


@dataclass(slots=True, eq=False)
class SimulatedReplica:
    """One replica: the job that runs, since when, and those that wait in it."""

    born_s: float
    given: int = 0
    running: SimulatedJob | None = None
    since_s: float = 0.0
    paused_by: int = 0
    waiting: deque[SimulatedJob] = field(default_factory=deque)
    busy_s: float = 0.0
    is_leaving: bool = False
    run_number: int = 0

    def left_s(self, now: float) -> float:
        """Seconds that the running job still needs."""
        if self.running is None:
            return 0.0
        done_s = 0.0 if self.paused_by else now - self.since_s
        return self.running.left_s - done_s


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a simulation.

    Attributes:
        jobs: All jobs that were answered, but the first ones.
        seconds: From the first arrival to the last answer.
        replica_s: Seconds for which there were replicas, all together.
        utilisation: The share of those in which their devices worked.
        front_busy, link_busy: The share of the time for which the front worked, and its link carried bytes.
    """

    jobs: Sequence[SimulatedJob]
    seconds: float
    replica_s: float
    utilisation: float
    front_busy: float
    link_busy: float
    most_replicas: int

    @property
    def per_second(self) -> float:
        """Answers in a second."""
        jobs = self.jobs
        if len(jobs) < 2:
            return 0.0
        span_s = max(job.ended_s for job in jobs) - min(job.arrived_s for job in jobs)
        return len(jobs) / span_s if span_s > 0 else 0.0


class Fleet:
    """A simulation; :meth:`open_loop` or :meth:`closed_loop` runs it once."""

    def __init__(self, options: FleetOptions) -> None:
        self.clock = Clock()
        self._options = options
        self._draw = random.Random(options.seed)  # noqa: S311 - not secrets
        self._front, self._link = Station(self.clock), Station(self.clock)
        self._queue: deque[SimulatedJob] = deque()
        self._replicas = [SimulatedReplica(0.0) for _ in range(options.replicas)]
        self._gone: list[SimulatedReplica] = []
        self._free: list[deque[SimulatedReplica]] = [deque(self._replicas), deque()]  # by jobs that they have
        self._done: list[SimulatedJob] = []
        self._open, self._replica_s = 0, 0.0
        self._most = options.replicas
        self._has_more = True
        self._scaler = None if options.autoscaling is None else Autoscaler(options.autoscaling, options.replicas)

    def open_loop(self, arrivals: Iterator[tuple[float, JobClass]]) -> Outcome:
        """Run jobs that come at their own times, in order."""

        def next_arrival() -> None:
            found = next(arrivals, None)
            if found is None:
                self._has_more = False
                return
            at_s, kind = found

            def arrive() -> None:
                self._arrive(kind)
                next_arrival()

            self.clock.at(at_s, arrive)

        next_arrival()
        return self._run()

    def closed_loop(self, clients: Sequence[JobClass], jobs: int, seconds: float | None = None) -> Outcome:
        """Run clients, one for each kind in ``clients``, that send their next job when they have an answer.

        Args:
            jobs: Most jobs.
            seconds: No job begins later; None for no bound.
        """
        left = iter(range(min(jobs, MOST_JOBS)))

        def ask(kind: JobClass) -> None:
            if (seconds is not None and self.clock.now >= seconds) or next(left, None) is None:
                self._has_more = False
            else:
                self._arrive(kind, lambda: ask(kind))

        for kind in clients:
            ask(kind)
        return self._run()

    def _run(self) -> Outcome:
        if self._scaler is not None:
            self.clock.after(LOOK_S, self._scale)
        self.clock.run(lambda: not self._has_more and not self._open)
        now = self.clock.now
        replica_s = self._replica_s + sum(now - replica.born_s for replica in self._replicas)
        busy_s = sum(replica.busy_s for replica in (*self._gone, *self._replicas))
        skipped = int(len(self._done) * self._options.warm_up)
        return Outcome(
            jobs=sorted(self._done, key=lambda job: job.arrived_s)[skipped:],
            seconds=now,
            replica_s=replica_s,
            utilisation=busy_s / replica_s if replica_s else 0.0,
            front_busy=self._front.busy_s / now if now else 0.0,
            link_busy=self._link.busy_s / now if now else 0.0,
            most_replicas=self._most,
        )

    # ------------------------------------------------------------------------------------------- jobs

    def _arrive(self, kind: JobClass, then: Callable[[], None] | None = None) -> None:
        device_s = self._draw.choice(kind.device_s)
        job = SimulatedJob(kind, device_s, self.clock.now, device_s, then)
        self._open += 1
        self._front.serve(kind.front_s / 2, lambda: self._enqueue(job))

    def _enqueue(self, job: SimulatedJob) -> None:
        self._queue.append(job)
        self._dispatch()

    def _dispatch(self) -> None:
        while self._queue:
            replica = self._with_a_seat()
            if replica is None:
                break
            self._give(self._queue.popleft(), replica)
        if self._queue and self._options.has_gaps:
            self._fill_gap()

    def _with_a_seat(self) -> SimulatedReplica | None:
        """A replica with the fewest jobs that has a seat; lists hold replicas that have changed since, too."""
        for given, free in enumerate(self._free):
            while free:
                replica = free[0]
                if replica.given == given and not replica.is_leaving:
                    return replica
                free.popleft()
        return None

    def _fill_gap(self) -> None:
        """Give the first job that is short enough to the replica whose run is longest, to run in its gaps."""
        runs = [replica for replica in self._staying() if replica.running and replica.given <= _DEPTH]
        replica = max(runs, key=lambda one: one.left_s(self.clock.now), default=None)
        if replica is None:
            return
        most_s = replica.left_s(self.clock.now) * _GAP_SHARE
        for index, job in enumerate(self._queue):
            if job.device_s <= most_s:
                del self._queue[index]
                self._give(job, replica)
                return

    def _give(self, job: SimulatedJob, replica: SimulatedReplica) -> None:
        replica.given += 1
        self._offer(replica)
        self._carry(job, lambda: self._reach(job, replica))

    def _offer(self, replica: SimulatedReplica) -> None:
        """Let whoever looks for a replica find it, if it has a seat."""
        if replica.given < _DEPTH:
            self._free[replica.given].append(replica)

    def _carry(self, job: SimulatedJob, then: Callable[[], None]) -> None:
        """Take a job to its replica, or its answer back."""
        half_s = job.kind.nbytes / 2 / self._options.link_bytes_per_s
        self._link.serve(half_s, lambda: self.clock.after(self._options.hop_s / 2, then))

    def _reach(self, job: SimulatedJob, replica: SimulatedReplica) -> None:
        if replica.running is None:
            self._start(job, replica)
        elif self._options.has_gaps and job.device_s <= replica.left_s(self.clock.now) * _GAP_SHARE:
            self._nest(job, replica.running, replica)
        else:
            replica.waiting.append(job)

    def _start(self, job: SimulatedJob, replica: SimulatedReplica) -> None:
        replica.running, replica.since_s = job, self.clock.now
        self._plan_end(job, replica)

    def _plan_end(self, job: SimulatedJob, replica: SimulatedReplica) -> None:
        replica.run_number += 1
        number = replica.run_number

        def end() -> None:
            if number == replica.run_number:  # or it was paused since
                replica.running = None
                self._end(job, replica)
                if replica.waiting:
                    self._start(replica.waiting.popleft(), replica)

        self.clock.after(job.left_s, end)

    def _nest(self, job: SimulatedJob, outer: SimulatedJob, replica: SimulatedReplica) -> None:
        """Run a job in the gaps of the running one, which pauses meanwhile; several run at the same time's cost."""
        if not replica.paused_by:
            outer.left_s -= self.clock.now - replica.since_s
        replica.paused_by += 1
        replica.run_number += 1

        def resume() -> None:
            replica.paused_by -= 1
            if not replica.paused_by:
                self._start(outer, replica)
            self._end(job, replica)

        self.clock.after(job.device_s * replica.paused_by, resume)

    def _end(self, job: SimulatedJob, replica: SimulatedReplica) -> None:
        replica.busy_s += job.device_s
        replica.given -= 1
        if replica.is_leaving:
            self._remove_if_idle(replica)
        else:
            self._offer(replica)
        self._carry(job, lambda: self._answer(job))
        self._dispatch()

    def _answer(self, job: SimulatedJob) -> None:
        self._front.serve(
            job.kind.front_s / 2, lambda: self.clock.after(job.kind.aside_s, lambda: self._finish(job))
        )

    def _finish(self, job: SimulatedJob) -> None:
        job.ended_s = self.clock.now
        self._open -= 1
        self._done.append(job)
        if job.then is not None:
            job.then()

    # ------------------------------------------------------------------------------------ autoscaling

    def _staying(self) -> list[SimulatedReplica]:
        return [replica for replica in self._replicas if not replica.is_leaving]

    def _scale(self) -> None:
        assert self._scaler is not None  # noqa: S101 - or nobody plans this
        staying = self._staying()
        wanted = self._scaler.wanted(self.clock.now, sum(replica.given for replica in staying))
        for _ in range(self._scaler.start(wanted)):
            self.clock.after(self._scaler.rules.start_s, self._add)
        idlest = sorted(staying, key=lambda replica: replica.given)
        for replica in idlest[: max(0, len(staying) - wanted)]:
            replica.is_leaving = True
            self._scaler.number -= 1
            self._remove_if_idle(replica)
        self.clock.after(LOOK_S, self._scale)

    def _add(self) -> None:
        replica = SimulatedReplica(self.clock.now)
        self._replicas.append(replica)
        self._free[0].append(replica)
        self._most = max(self._most, len(self._replicas))
        self._dispatch()

    def _remove_if_idle(self, replica: SimulatedReplica) -> None:
        if not replica.given:
            self._replicas.remove(replica)
            self._gone.append(replica)
            self._replica_s += self.clock.now - replica.born_s
