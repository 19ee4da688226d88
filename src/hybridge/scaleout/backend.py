"""The backend of a front: its queue here, the work on replicas elsewhere."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from ..errors import HybridgeError, ModelUnavailable, OutOfMemory, ReplicaUnavailable, ShuttingDown
from ..server.scheduling.backend import BackendLoad, ModelInfo
from ..server.scheduling.film import Film
from ..server.scheduling.job import Job, Progress, ProgressCallback, Result, ResultT
from ..server.scheduling.queue import QueuedJob, QueueLimits
from ..server.scheduling.vae_job import VaeJob
from .dispatcher import Dispatcher
from .messages import Order, Piece, ReplicaState, Reply
from .pace import Pace
from .replicas import ReplicaLost, Replicas
from .ticket import Ticket

log = logging.getLogger("hybridge.scaleout")

#: How often a job is given to a replica at most, and how many may die of it before it is refused.
_MOST_ATTEMPTS, _MOST_KILLS = 3, 2

#: Jobs that take longer report their progress, because shorter ones may run in their gaps.
_REPORTED_S = 0.3

#: Seconds between two questions to all replicas: while there are none, and else; and for each replica.
_SEARCH_S, _POLL_S, _POLL_EACH_S = 0.2, 1.0, 0.01

#: Seconds that jobs wait for any replica.
_PATIENCE_S = 60.0


class ReplicaBackend:
    """Keeps the queue and gives its jobs to replicas.

    Args:
        replicas: The replicas; closed with the backend.
        limits: Limits of the queue.
        patience_s: Seconds that jobs wait while there is no replica.
    """

    def __init__(self, replicas: Replicas, limits: QueueLimits, *, patience_s: float = _PATIENCE_S) -> None:
        self._replicas, self._patience_s = replicas, patience_s
        self._pace = Pace()
        self._dispatcher = Dispatcher(limits, self._pace)
        self._infos: Sequence[ModelInfo] = ()
        self._away: str | None = None
        self._has_ended = threading.Event()
        self._ask_soon = threading.Event()
        self._in_flight = 0
        self._poll()
        self._thread = threading.Thread(target=self._watch, name="hybridge-replicas", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------ the interface

    def info(self) -> Sequence[ModelInfo]:
        return self._infos

    def cost(self, job: Job[Any]) -> float:
        return self._pace.cost(job)[0]

    async def run(self, job: Job[ResultT], on_progress: ProgressCallback | None = None) -> ResultT:
        return cast("ResultT", await self._run(job, on_progress))

    def load(self) -> BackendLoad:
        queue = self._dispatcher.queue
        waiting = queue.waiting()
        each = {state.name: state.load for state in self._dispatcher.states()}
        return BackendLoad(
            waiting=len(waiting),
            waiting_cost=sum(queued.cost_s for queued in waiting),
            running=len(queue.serving()),
            weights_bytes=sum(load.weights_bytes for load in each.values()),
            loads=_summed(load.loads for load in each.values()),
            evictions=_summed(load.evictions for load in each.values()),
            replicas=each,
        )

    def fingerprint(self, part: str) -> Mapping[str, Any]:
        try:
            return self._replicas.fingerprint(part)
        except ReplicaLost as error:
            return {"no_fingerprint": f"no replica answers: {error}"}

    def health(self) -> str | None:
        if self._dispatcher.queue.is_closed:
            return "shutting down"
        states = self._dispatcher.states()
        if not states:
            return f"no replica answers{f': {self._away}' if self._away else ''}"
        reasons = [state.health for state in states]
        return None if None in reasons else reasons[0]

    def close(self) -> None:
        """Take no more jobs, give those that run a little time, and end the replicas."""
        if self._has_ended.is_set():
            return
        self._has_ended.set()
        self._ask_soon.set()
        late = ShuttingDown("the server shut down before this request was begun", hint="another server")
        for ticket in self._dispatcher.queue.close():
            ticket.fail(late)
        self._thread.join(_POLL_S)
        self._replicas.close()

    def check_loaded(self) -> None:
        """Raise :class:`ModelUnavailable` for a model that could not be loaded on any replica."""
        for info in self._infos:
            if info.failure is not None:
                raise ModelUnavailable(f"no replica can load {info.part}", saw=info.failure)

    @property
    def is_busy(self) -> bool:
        """Whether a job runs that cannot be stopped; replicas are processes of their own, which can."""
        return False

    # --------------------------------------------------------------------------------------- one job

    async def _run(self, job: Job[Any], on_progress: ProgressCallback | None) -> Result:
        ticket = Ticket(job, on_progress)
        queued = self._dispatcher.put(ticket)
        seconds: float | None = None
        try:
            while True:
                name = await ticket.turn
                try:
                    result = await self._on_replica(queued, name)
                except ReplicaLost as error:
                    log.warning("replica %s did not end a %s job: %s", name, job.part, error)
                    self._dispatcher.lose(name, is_dead=error.is_dead)
                    self._ask_soon.set()
                    _check_another_turn(ticket, error)
                except ModelUnavailable as error:
                    ticket.refused_by |= {name}
                    self._dispatcher.note_failure(name, job.part)
                    if not {state.name for state in self._dispatcher.states()} - ticket.refused_by:
                        raise
                    log.warning("replica %s cannot load %s; another one tries: %s", name, job.part, error)
                else:
                    seconds = result.milliseconds.get("device", 0.0) / 1e3 / result.shared_by
                    self._learn(job, result, seconds)
                    return self._timed(ticket, result)
                if not self._dispatcher.put_back(queued):
                    raise ShuttingDown("the server shut down before this request was done", hint="another server")
        finally:
            self._dispatcher.leave(queued, seconds)

    async def _on_replica(self, queued: QueuedJob[Ticket], name: str) -> Result:
        """Give a job to a replica, and pass on what it says until the result.

        Raises:
            ReplicaLost: when the replica does not end it.
            HybridgeError: when it fails.
        """
        ticket, job = queued.item, queued.item.job
        film = job.film if isinstance(job, VaeJob) else None
        tells = ticket.has_listener or queued.is_guess or queued.cost_s > _REPORTED_S
        tells = tells or not self._dispatcher.is_loaded(job.part)
        sent = replace(job, film=None) if isinstance(job, VaeJob) else job
        replies = self._replicas.run(Order(sent, name, film is not None, tells))
        async with contextlib.aclosing(replies):
            async for reply in replies:
                outcome = self._take(queued, reply, film)
                if isinstance(outcome, HybridgeError):
                    raise outcome
                if outcome is not None:
                    return outcome
        raise ReplicaLost("it ended without a result", is_dead=False)

    def _take(self, queued: QueuedJob[Ticket], reply: Reply, film: Film | None) -> Result | HybridgeError | None:
        """Pass on a reply; return it if it is the last."""
        if isinstance(reply, Progress):
            self._dispatcher.progress(queued, reply)
            return None
        if isinstance(reply, Piece):
            if film is not None:
                queued.item.has_sent = True
                film.feed(reply.data)
            return None
        if film is not None and isinstance(reply, Result):
            film.feed(b"", is_last=True)
        return reply

    def _learn(self, job: Job[Any], result: Result, seconds: float) -> None:
        self._pace.learn(job, result, seconds)
        load_ms = result.milliseconds.get("load", 0.0)
        if load_ms > 0:
            self._dispatcher.load_s[job.part] = load_ms / 1e3
        self._dispatcher.queue.count(lambda ticket: self._pace.cost(ticket.job))

    def _timed(self, ticket: Ticket, result: Result) -> Result:
        """The result with the time in this queue, and the time on the way to the replica and back."""
        there_s = sum(result.milliseconds.values()) / 1e3
        away_s = time.perf_counter() - ticket.granted_at
        waited_ms = result.milliseconds.get("queue", 0.0) + 1e3 * ticket.waited_s
        times = {"queue": waited_ms, "transfer": 1e3 * max(0.0, away_s - there_s)}
        return replace(result, milliseconds={**result.milliseconds, **times})

    # ---------------------------------------------------------------------------------- all replicas

    def _watch(self) -> None:
        lonely_since: float | None = None
        while not self._has_ended.is_set():
            number = len(self._dispatcher.states())
            self._ask_soon.wait(max(_POLL_S, number * _POLL_EACH_S) if number else _SEARCH_S)
            if self._ask_soon.is_set():
                self._ask_soon.clear()
                self._has_ended.wait(_SEARCH_S)  # the next answer is that of the replica's successor
            if self._has_ended.is_set():
                return
            self._poll()
            now = time.monotonic()
            lonely_since = None if self._dispatcher.states() else lonely_since or now
            if lonely_since is not None and now - lonely_since > self._patience_s:
                self._dispatcher.fail_waiting(
                    ReplicaUnavailable(
                        f"no replica has answered for {self._patience_s:.0f} seconds",
                        saw=self._away,
                        hint="again in a while; the server's log says more",
                    )
                )

    def _poll(self) -> None:
        try:
            states = self._replicas.describe()
        except ReplicaLost as error:
            if self._away is None:
                log.warning("the replicas cannot be asked: %s", error)
            self._away = str(error)
            self._dispatcher.update(())
            return
        except Exception:  # the thread is needed for as long as the server runs
            log.exception("the replicas cannot be asked")
            return
        self._away = None
        self._infos = merged(states, self._infos)
        self._dispatcher.update(states)


def merged(states: Sequence[ReplicaState], before: Sequence[ModelInfo]) -> Sequence[ModelInfo]:
    """Return what is told about the models of all replicas: the furthest state of each, and each replica's own.

    Args:
        states: What the replicas say.
        before: What was told before, for models that no replica speaks of.
    """
    order = ("loaded", "loading", "leaving", "cold")
    found: dict[str, list[tuple[str, ModelInfo]]] = {
        info.part: [] for info in (*before, *(info for state in states for info in state.infos))
    }
    for state in states:
        for info in state.infos:
            found[info.part].append((state.name, info))
    told = [replace(former, state="cold", replicas={}) for former in before if not found[former.part]]
    for infos in found.values():
        if infos:
            best = min((info for _, info in infos), key=lambda info: order.index(info.state))
            failure = best.failure if best.state == "cold" else None
            each = {name: info.failure or info.state for name, info in infos}
            told.append(replace(best, failure=failure, replicas=each))
    positions = {part: position for position, part in enumerate(found)}
    return sorted(told, key=lambda info: positions[info.part])


def _check_another_turn(ticket: Ticket, lost: ReplicaLost) -> None:
    """Raise unless a job whose replica was lost may have another turn.

    Raises:
        OutOfMemory: for a job that replicas die of.
        ReplicaUnavailable: for one that cannot be repeated, or was often enough.
    """
    if ticket.kills >= _MOST_KILLS:
        raise OutOfMemory(
            f"{ticket.kills} replicas died while they ran this job",
            saw=str(lost),
            hint="a smaller picture or batch; the replicas may have too little memory (--memory)",
        )
    if not ticket.job.is_repeatable:
        raise ReplicaUnavailable(
            "a replica was lost, and a job that draws at random without a seed is not run twice",
            saw=str(lost),
            hint="the same request again, or with a seed",
        )
    if ticket.has_sent:
        raise ReplicaUnavailable(
            "a replica was lost in the middle of a video", saw=str(lost), hint="the same request again"
        )
    if ticket.attempts >= _MOST_ATTEMPTS:
        raise ReplicaUnavailable(
            f"{ticket.attempts} replicas were lost before this job was done",
            saw=str(lost),
            hint="again in a while; the server's log says more",
        )


def _summed(counts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for name, number in one.items():
            total[name] = total.get(name, 0) + number
    return total
