"""Several backends behind one fair queue, as one backend: each has models, memory and a device of its own.

*Order.*  Jobs wait in one :class:`~.queue.FairQueue`, whose accounts count seconds of all devices together.  A
member is given a job when it can start it soon: one that runs and one that waits, so that the device is never idle;
more only if they may share a run with one that waits there, or are short enough for the gaps of one that runs.

*Place.*  A job goes where its model is loaded.  Another member loads the model, too, if it has nothing to do and
the jobs for the model would wait longer than loading takes.

*Failures.*  A job whose run fails is tried once more on another member.  If that succeeds, the failure was the
first member's: one that fails repeatedly in this way gets no jobs for a while.  A job that fails twice is answered
with its error, so no job can take down one member after the other.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from ...errors import CannotLower, EngineFailure, HybridgeError, OutOfMemory, ShuttingDown, Stopped
from .backend import BackendLoad, ModelInfo
from .job import Job, Progress, ProgressCallback, Result, ResultT
from .pool_member import Given, Member, Pending, Place
from .queue import FairQueue, QueuedJob, QueueLimits

log = logging.getLogger("hybridge.pool")

#: Limits of the queues of members, which the pool's own queue stands before.
UNLIMITED = QueueLimits(sys.maxsize, math.inf, sys.maxsize)

#: Seconds that loading a model takes, before it was measured.
_LOAD_S = 5.0

#: Failures in a row after which a member gets no jobs, and the seconds for which it gets none.
_MOST_FAILURES, _REST_S = 3, 30.0

#: Seconds between two looks at whether the member that has a job still works.
_LOOK_S = 1.0


class BackendPool:
    """The pool.  :meth:`run` belongs to one event loop; any thread may call the other methods.

    Args:
        members: The backends by name; they serve the same models, and their own queues refuse nothing.
        limits: Limits of the queue.
    """

    def __init__(self, members: Mapping[str, Member], limits: QueueLimits | None = None) -> None:
        self._places = [Place(name, backend) for name, backend in members.items()]
        self._queue: FairQueue[Pending] = FairQueue(limits, self._is_ready, lambda: len(self._places))
        self._load_s: dict[str, float] = {}  # of each model, measured
        self._listeners = 0
        self._tasks: set[asyncio.Task[None]] = set()

    # ---------------------------------------------------------------------------------- what a backend says

    def info(self) -> Sequence[ModelInfo]:
        """Return the models, each as on the member where it is most ready, with its state on each."""
        found = [place.backend.info() for place in self._places]
        infos = []
        for several in zip(*found, strict=True):
            best = min(several, key=lambda info: _READINESS.index(info.state))
            each = {name: info.failure or info.state for name, info in zip(self._names, several, strict=True)}
            infos.append(replace(best, replicas=each))
        return infos

    def cost(self, job: Job[Any]) -> float:
        return self._nearest(job.part).backend.cost(job)

    def load(self) -> BackendLoad:
        loads = {place.name: place.backend.load() for place in self._places}
        waiting = self._queue.waiting()
        bounds = [load.memory_bytes for load in loads.values()]
        return BackendLoad(
            waiting=len(waiting) + sum(load.waiting for load in loads.values()),
            waiting_cost=sum(one.cost_s for one in waiting) + sum(load.waiting_cost for load in loads.values()),
            running=sum(load.running for load in loads.values()),
            weights_bytes=sum(load.weights_bytes for load in loads.values()),
            memory_bytes=None if None in bounds else sum(bound or 0 for bound in bounds),
            loads=_summed([load.loads for load in loads.values()]),
            evictions=_summed([load.evictions for load in loads.values()]),
            replicas={
                place.name: replace(loads[place.name], failure=self._illness(place)) for place in self._places
            },
        )

    def fingerprint(self, part: str) -> Mapping[str, Any]:
        return self._nearest(part).backend.fingerprint(part)

    def preload(self, name: str) -> None:
        """Load a model on every member, and wait until it is loaded.

        Raises:
            HybridgeError: when it cannot be loaded.
        """
        for place in self._places:
            cast("Any", place.backend).preload(name)

    def health(self) -> str | None:
        """Return None while one member works."""
        if self._queue.is_closed:
            return "shutting down"
        reasons = [place.backend.health() for place in self._places]
        if None in reasons:
            return None
        return "; ".join(f"{name}: {reason}" for name, reason in zip(self._names, reasons, strict=True))

    def close(self) -> None:
        """Take no more jobs, fail those that wait, and close the members together."""
        for pending in self._queue.close():
            _set_error(pending, ShuttingDown("the server shut down before this request was begun"))
        threads = [threading.Thread(target=place.backend.close, daemon=True) for place in self._places]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @property
    def is_busy(self) -> bool:
        """Whether a member still runs a job or loads a model."""
        return any(getattr(place.backend, "is_busy", False) for place in self._places)

    # -------------------------------------------------------------------------------------------- jobs

    async def run(self, job: Job[ResultT], on_progress: ProgressCallback | None = None) -> ResultT:
        return cast("ResultT", await self._run(job, on_progress))

    async def _run(self, job: Job[Any], on_progress: ProgressCallback | None) -> Result:
        for place in self._places:
            if (kept := place.backend.kept_result(job)) is not None:
                return kept
        expected = self._nearest(job.part).backend.expected_s(job)
        pending = Pending(job, expected[0], on_progress, asyncio.get_running_loop().create_future())
        queued = self._queue.put_job(pending, job, expected)
        self._listeners += on_progress is not None
        try:
            self._pump()
            return await pending.future
        finally:
            self._listeners -= on_progress is not None
            pending.future.cancel()  # whoever has it gives it up; nothing happens where it is done
            if self._queue.leave(queued):
                self._notify_positions()

    def _pump(self) -> None:
        """Give members what they can start soon, in the order of the queue."""
        chosen: dict[int, Place] = {}
        if all(place.backend.health() is not None for place in self._places):
            self._fail_all()

        def has_place(pending: Pending) -> bool:
            place = self._place_for(pending)
            if place is not None:
                chosen[id(pending)] = place
            return place is not None

        while (queued := self._queue.take_now(has_place)) is not None:
            place = chosen[id(queued.item)]
            given = Given(queued.item, queued.cost_s, queued.cost_s)
            place.given.append(given)
            task = asyncio.get_running_loop().create_task(self._serve(queued, place, given))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._notify_positions()

    def _fail_all(self) -> None:
        """Fail what waits, because no member works any more."""
        for queued in self._queue.waiting():
            if self._queue.leave(queued):
                _set_error(queued.item, EngineFailure("no device works any more", saw=self.health()))

    def _place_for(self, pending: Pending) -> Place | None:
        """Return the member that gets a job now; None if it has to wait."""
        job, cost_s = pending.job, pending.cost_s
        working = [place for place in self._places if place.backend.health() is None]
        untried = [place for place in working if place not in pending.failed_on] or working
        now = time.monotonic()
        awake = [place for place in untried if now >= place.rests_until] or untried
        having = [place for place in awake if place.has(job.part)]
        free = [place for place in having or awake if place.has_room(job, cost_s)]
        if not free and having and self._is_worth_loading(job.part, having):
            free = [place for place in awake if place not in having and not place.given]
        return min(free, key=lambda place: place.left_s, default=None)

    def _is_worth_loading(self, part: str, having: Sequence[Place]) -> bool:
        """Whether the jobs for a model would wait longer where it is loaded than loading it elsewhere takes."""
        waiting_s = sum(one.cost_s for one in self._queue.waiting() if one.item.job.part == part)
        wait_s = (waiting_s + sum(place.left_s for place in having)) / len(having)
        return wait_s > self._load_s.get(part, _LOAD_S)

    async def _serve(self, queued: QueuedJob[Pending], place: Place, given: Given) -> None:
        """Let a member run a job; resolve it, or put it back for another member."""
        pending, seconds = queued.item, queued.cost_s
        given_at = time.perf_counter()
        is_put_back = False
        try:
            result = await self._result(pending, place, given)
            seconds = result.milliseconds.get("device", 0.0) / 1e3 / result.shared_by
            self._learn(pending, place, result)
            waited_ms = 1e3 * (given_at - pending.since) + result.milliseconds.get("queue", 0.0)
            if not pending.future.done():
                pending.future.set_result(replace(result, milliseconds={**result.milliseconds, "queue": waited_ms}))
        except HybridgeError as error:
            if self._may_try_again(pending, place, error):
                log.warning(
                    "a %s job failed on %s, and is tried elsewhere: %s", pending.job.part, place.name, error
                )
                pending.failed_on.append(place)
                is_put_back = self._queue.put_back(queued)
            if not is_put_back:
                seconds = given.cost_s - given.left_s  # what was done of it
                _set_error(pending, error)
        except asyncio.CancelledError:
            pending.future.cancel()
            raise
        except Exception as error:  # a bug must not leave a client waiting
            log.exception("a %s job was lost", pending.job.part)
            _set_error(pending, EngineFailure("an unexpected failure", saw=type(error).__name__))
        finally:
            place.given.remove(given)
            if not is_put_back:
                self._queue.end(queued, seconds)
        self._pump()

    async def _result(self, pending: Pending, place: Place, given: Given) -> Result:
        """Return the result of a job from a member.

        Raises:
            HybridgeError: the job's failure, or that of the member.
        """

        def told(progress: Progress) -> None:
            given.is_running = progress.state == "running"
            given.left_s = given.cost_s * (1 - progress.done)
            if pending.on_progress is not None:
                pending.on_progress(progress)

        running = asyncio.ensure_future(place.backend.run(pending.job, told))
        try:
            while True:
                await asyncio.wait({running, pending.future}, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                if running.done():
                    return cast("Result", running.result())
                if pending.future.done():
                    raise Stopped("the client of this job has left")
                reason = place.backend.health()
                if reason is not None and not self._queue.is_closed:
                    raise EngineFailure(f"the device {place.name} does not work any more", saw=reason)
        finally:
            if not running.done():
                running.cancel()
                await asyncio.wait({running})

    def _may_try_again(self, pending: Pending, place: Place, error: HybridgeError) -> bool:
        is_failure = isinstance(error, EngineFailure) and not isinstance(error, (OutOfMemory, CannotLower, Stopped))
        others = [one for one in self._places if one is not place and one.backend.health() is None]
        may = pending.job.is_repeatable and not pending.job.is_sent_while_it_runs
        return is_failure and may and not pending.failed_on and bool(others)

    def _learn(self, pending: Pending, place: Place, result: Result) -> None:
        """Learn how long loading takes, and which member's fault an earlier failure was."""
        if load_ms := result.milliseconds.get("load", 0.0):
            self._load_s[pending.job.part] = load_ms / 1e3
        place.failures = 0
        for guilty in pending.failed_on:
            guilty.failures += 1
            if guilty.failures >= _MOST_FAILURES:
                guilty.rests_until = time.monotonic() + _REST_S
                log.error("%s fails at what others can do, and gets no jobs for %g s", guilty.name, _REST_S)

    def _notify_positions(self) -> None:
        if not self._listeners:
            return
        ahead_s = sum(place.left_s for place in self._places)
        for position, queued in enumerate(self._queue.waiting()):
            ahead_s += queued.cost_s
            if queued.item.on_progress is not None:
                queued.item.on_progress(Progress("waiting", position + 1, ahead_s / len(self._places)))

    # ------------------------------------------------------------------------------------------ inside

    @property
    def _names(self) -> list[str]:
        return [place.name for place in self._places]

    def _is_ready(self, part: str) -> bool:
        return any(place.backend.is_ready(part) for place in self._places)

    def _nearest(self, part: str) -> Place:
        """Return a member that works and has the model loaded, if there is one, else the likeliest."""
        return min(
            self._places, key=lambda place: (place.backend.health() is not None, not place.backend.is_ready(part))
        )

    def _illness(self, place: Place) -> str | None:
        rests = time.monotonic() < place.rests_until
        return place.backend.health() or ("it failed repeatedly" if rests else None)


#: The states of a model, the readiest first.
_READINESS = ("loaded", "loading", "leaving", "cold")


def _summed(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


def _set_error(pending: Pending, error: HybridgeError) -> None:
    """Fail a job; callable from any thread."""

    def fail() -> None:
        if not pending.future.done():
            pending.future.set_exception(error)

    try:
        pending.future.get_loop().call_soon_threadsafe(fail)
    except RuntimeError:  # the event loop has ended
        log.info("the client of a %s job has left", pending.job.part)
