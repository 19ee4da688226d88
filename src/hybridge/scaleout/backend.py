"""The backend of a front: a pool of replicas, which come and go and are asked every second how they are."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from anyio import to_thread

from ..errors import HybridgeError, ModelUnavailable, ReplicaLost
from ..server.scheduling.backend import BackendLoad, ModelInfo
from ..server.scheduling.film import Film
from ..server.scheduling.job import Job, Progress, ProgressCallback, Result
from ..server.scheduling.pool import Pool
from ..server.scheduling.queue import QueueLimits
from ..server.scheduling.vae_job import VaeJob
from .messages import Order, Piece, ReplicaState
from .pace import Pace
from .replicas import Replicas

log = logging.getLogger("hybridge.scaleout")

#: Seconds between two questions to all replicas: while there are none, and else; and for each replica.
_SEARCH_S, _POLL_S, _POLL_EACH_S = 0.2, 1.0, 0.01

#: Seconds that jobs wait for any replica.
_PATIENCE_S = 60.0


class ReplicaMember:
    """A replica as the front knows it.

    Args:
        replicas: All replicas.
        state: What it said last.
        on_result: Called with each result of a job.
        on_loss: Called when the replica was lost.
    """

    def __init__(
        self,
        replicas: Replicas,
        state: ReplicaState,
        on_result: Callable[[Job[Any], Result], None],
        on_loss: Callable[[], None],
    ) -> None:
        self._replicas, self._on_result, self._on_loss = replicas, on_result, on_loss
        self.hear(state)

    def hear(self, state: ReplicaState) -> None:
        """Replace what it said before."""
        self._ready = {info.part for info in state.infos if info.state == "loaded"}
        self._failed = set(state.failed)
        self._state = state

    def info(self) -> Sequence[ModelInfo]:
        return self._state.infos

    def load(self) -> BackendLoad:
        return self._state.load

    def health(self) -> str | None:
        return self._state.health

    def is_ready(self, part: str) -> bool:
        return part in self._ready

    def has_failed(self, part: str) -> bool:
        return part in self._failed

    def may_share(self, part: str) -> int:
        return self._state.shares.get(part, 1)

    async def run(self, job: Job[Any], on_progress: ProgressCallback | None = None) -> Result:
        """Give a job to the replica; see :meth:`Member.run`."""
        begun = time.perf_counter()
        try:
            result = await self._result(job, on_progress)
        except ReplicaLost:
            self._on_loss()
            raise
        except ModelUnavailable:
            self._failed.add(job.part)
            raise
        self._ready.add(job.part)
        self._on_result(job, result)
        away_ms = 1e3 * (time.perf_counter() - begun)
        transfer_ms = max(0.0, away_ms - sum(result.milliseconds.values()))
        return replace(result, milliseconds={**result.milliseconds, "transfer": transfer_ms})

    async def _result(self, job: Job[Any], on_progress: ProgressCallback | None) -> Result:
        film: Film | None = None
        if isinstance(job, VaeJob) and job.film is not None:
            film, job = job.film, replace(job, film=None)
        order = Order(job, self._state.name, film is not None, on_progress is not None)
        async with contextlib.aclosing(self._replicas.run(order)) as replies:
            async for reply in replies:
                if isinstance(reply, Progress):
                    if on_progress is not None:
                        on_progress(reply)
                elif isinstance(reply, Piece):
                    if film is not None:
                        await to_thread.run_sync(film.feed, reply.data)  # it may write to disk
                elif isinstance(reply, HybridgeError):
                    raise reply
                else:
                    if film is not None:
                        film.feed(b"", is_last=True)
                    return reply
        raise ReplicaLost("it ended without a result", is_dead=False)


class ReplicaBackend(Pool):
    """Keeps the queue and gives its jobs to replicas.

    Args:
        replicas: The replicas; closed with the backend.
        limits: Limits of the queue.
        patience_s: Seconds that jobs wait while there is no replica.
    """

    def __init__(self, replicas: Replicas, limits: QueueLimits, *, patience_s: float = _PATIENCE_S) -> None:
        self._replicas = replicas
        self._pace = Pace()
        self._members: dict[str, ReplicaMember] = {}
        self._away: str | None = None
        self._has_ended = threading.Event()
        self._ask_soon = threading.Event()
        super().__init__({}, limits, patience_s)
        self._poll()
        self._thread = threading.Thread(target=self._watch, name="hybridge-replicas", daemon=True)
        self._thread.start()

    def expected_s(self, job: Job[Any]) -> tuple[float, bool]:
        return self._pace.cost(job)

    def fingerprint(self, part: str) -> Mapping[str, Any]:
        try:
            return self._replicas.fingerprint(part)
        except ReplicaLost as error:
            return {"no_fingerprint": f"no replica answers: {error.what}"}

    def health(self) -> str | None:
        reason = super().health()
        if reason is None or self.dispatcher.queue.is_closed:
            return reason
        return f"no replica answers: {self._away or reason or 'there is none'}"

    def close(self) -> None:
        """Take no more jobs, fail those that wait, and end the replicas."""
        if self._has_ended.is_set():
            return
        self._has_ended.set()
        self._ask_soon.set()
        self.dispatcher.close()
        self._thread.join(_POLL_S)
        self._replicas.close()

    def check_loaded(self) -> None:
        """Raise :class:`ModelUnavailable` for a model that could not be loaded on any replica."""
        for info in self.info():
            if info.failure is not None:
                raise ModelUnavailable(f"no replica can load {info.part}", saw=info.failure)

    @property
    def is_busy(self) -> bool:
        """Whether a job runs that cannot be stopped; replicas are processes of their own, which can."""
        return False

    def _watch(self) -> None:
        while not self._has_ended.is_set():
            number = len(self._members)
            self._ask_soon.wait(max(_POLL_S, number * _POLL_EACH_S) if number else _SEARCH_S)
            if self._ask_soon.is_set():
                self._ask_soon.clear()
                self._has_ended.wait(_SEARCH_S)  # the next answer is that of the replica's successor
            if not self._has_ended.is_set():
                self._poll()

    def _poll(self) -> None:
        try:
            states, self._away = self._replicas.describe(), None
        except ReplicaLost as error:
            if self._away is None:
                log.warning("the replicas cannot be asked: %s", error.what)
            states, self._away = (), error.what
        except Exception:  # the thread is needed for as long as the server runs
            log.exception("the replicas cannot be asked")
            return
        known, self._members = self._members, {}
        for state in states:
            member = known.get(state.name)
            if member is None:
                member = ReplicaMember(self._replicas, state, self._pace.learn, self._ask_soon.set)
            else:
                member.hear(state)
            self._members[state.name] = member
        self.dispatcher.set_members(self._members)
