"""The thread that owns the device: decides which job runs next, which in the gaps of another, and which together.

How a job runs is passed in (see :data:`Perform`); this file is about order alone.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import EngineFailure, HybridgeError, OutOfMemory, ReplicaLost, ShuttingDown, Stopped, TooLarge
from .cost_model import CostModel
from .job import Job, Progress, ProgressCallback, Result
from .model_cache import ModelCache
from .pending import Pending
from .queue import FairQueue, QueuedJob, QueueLimits

log = logging.getLogger("hybridge.device")

#: Runs jobs on a model: (model, jobs, progress(done, of), should_stop()) → a result for each.
Perform = Callable[[Any, Sequence[Job[Any]], Callable[[int, int], None], Callable[[], bool]], Sequence[Result]]

#: How many jobs that are like this one may share a run: (job, model) → number.
BatchLimit = Callable[[Job[Any], Any], int]


class PendingJob(Pending[Result]):
    """A job in the queue.

    Args:
        job: What to do.
        flops: Its FLOPs.
        on_progress: Called with its progress, on the event loop.
        is_guess: Whether ``flops`` is a guess, not from a plan.
    """

    def __init__(
        self,
        job: Job[Any],
        flops: float,
        on_progress: ProgressCallback | None,
        *,
        is_guess: bool = False,
    ) -> None:
        super().__init__(job, on_progress)
        self.flops, self.is_guess = flops, is_guess
        self.batch_key = job.batch_key
        self.is_wanted = True
        self.needs_all_memory = False

    def plan(self, flops: float) -> None:
        """Set its FLOPs, which are known by now; callable from any thread."""
        self.flops, self.is_guess = flops, False


@dataclass(slots=True)
class _Clock:
    """The time of a run without that of jobs that ran in its gaps."""

    begun: float
    paused_s: float = 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.begun - self.paused_s


class DeviceThread:
    """Runs jobs from the queue one after another, and short ones in the gaps of long ones.

    Args:
        models: The model cache.
        perform: Runs jobs on a model.
        limits: Limits of the queue.
        batch_limit: Says how many jobs may share a run.

    Attributes:
        has_failed: Whether the thread ended by a bug; no job can run any more.
    """

    def __init__(
        self, models: ModelCache[Any], perform: Perform, limits: QueueLimits, batch_limit: BatchLimit
    ) -> None:
        self.queue: FairQueue[PendingJob] = FairQueue(limits, models.is_ready)
        self.cost_model = CostModel()
        self._models, self._perform, self._batch_limit = models, perform, batch_limit
        self._listeners = 0
        self.has_failed = False
        self._thread = threading.Thread(target=self._serve, name="hybridge-device", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs: False after a bug or :meth:`close`."""
        return self._thread.is_alive()

    async def run(self, pending: PendingJob) -> Result:
        """Queue a job and wait for its result; when cancelled, take it off the queue or stop its run."""
        if self.has_failed:
            raise ReplicaLost(_HAS_ENDED, is_dead=True)
        job = pending.job
        queued = self.queue.put_job(pending, job, self._cost_of(pending))
        try:
            self._models.request(job.part)
        except HybridgeError:
            self.queue.leave(queued)
            raise
        self._listeners += pending.has_listener
        try:
            self.notify_positions()
            return await pending.future
        finally:
            pending.is_wanted = False
            self._listeners -= pending.has_listener
            if self.queue.leave(queued):
                self.notify_positions()
            self._models.release(job.part)

    def plan(self, pending: PendingJob, flops: float) -> None:
        """Replace the guessed FLOPs of a queued job; callable from any thread."""
        pending.plan(flops)
        self.queue.plan(self._cost_of)

    def _cost_of(self, pending: PendingJob) -> tuple[float, bool]:
        """Return the expected seconds, and whether they are a guess."""
        is_guess = pending.is_guess or not self.cost_model.knows(pending.job.cost_key)
        return self.cost_model.seconds(pending.job.cost_key, pending.flops), is_guess

    def notify_positions(self) -> None:
        """Report to every waiting job its position in the queue; callable from any thread."""
        if not self._listeners:
            return
        ahead_s = sum(queued.left_s for queued in self.queue.serving())
        for position, queued in enumerate(self.queue.waiting()):
            ahead_s += queued.cost_s
            state = self._models.state_of(queued.item.job.part).state
            queued.item.notify(Progress("loading" if state == "loading" else "waiting", position, ahead_s))

    def fail(self, model: str, error: HybridgeError) -> None:
        """Fail every job that waits for a model which cannot be loaded."""
        for queued in self.queue.waiting():
            if queued.item.job.part == model and self.queue.leave(queued):
                queued.item.resolve(copy.copy(error))  # each is raised separately, with a traceback of its own

    def close(self, patience_s: float | None = None) -> None:
        """Finish the running job, fail the waiting ones, and return when the device is free.

        Args:
            patience_s: Seconds after which it returns even if a job runs (see :attr:`is_alive`); None for no limit.
        """
        for pending in self.queue.close():
            pending.resolve(_too_late())
        self._thread.join(patience_s)

    def _serve(self) -> None:
        try:
            while (queued := self.queue.take(lambda pending: self._models.is_ready(pending.job.part))) is not None:
                self._run([queued], is_nested=False)
        except BaseException:  # or every client would wait for ever
            log.exception(_HAS_ENDED)
            self.has_failed = True
            left = [*(queued.item for queued in self.queue.serving()), *self.queue.close()]
            for pending in left:
                pending.resolve(ReplicaLost(_HAS_ENDED, is_dead=True))

    def _run(self, queued_jobs: list[QueuedJob[PendingJob]], *, is_nested: bool) -> None:
        """Run a queued job and those that may share its run; resolve all of them, or put them back."""
        first = queued_jobs[0].item
        with self._models.claim(first.job.part) as model:
            if model is None:
                self._return(queued_jobs[0])
                return
            most = 0 if first.batch_key is None or is_nested else self._batch_limit(first.job, model) - 1
            if most > 0:
                queued_jobs = queued_jobs + self.queue.join(lambda other: other.batch_key == first.batch_key, most)
            load_s = self._models.load_s(first.job.part)
            begun = time.perf_counter()
            clock = _Clock(begun)
            self.notify_positions()
            outcomes = self._outcomes(model, queued_jobs, clock, is_nested=is_nested)
        for queued, outcome in zip(queued_jobs, outcomes, strict=True):
            if is_nested and _is_short_of_memory(outcome):
                # The job that it interrupted holds memory, too; alone it may fit.
                queued.item.needs_all_memory = True
                self._return(queued)
                continue
            if isinstance(outcome, Result):
                if outcome.cache != "hit":
                    self._learn(queued.item, outcome, clock.seconds / len(queued_jobs))
                queued_s = max(0.0, begun - queued.item.since - load_s)
                stages = {"queue": 1e3 * queued_s, "load": 1e3 * load_s, "device": 1e3 * clock.seconds}
                outcome = replace(outcome, milliseconds={**outcome.milliseconds, **stages})
            self.queue.end(queued, clock.seconds / len(queued_jobs))
            queued.item.resolve(outcome)

    def _learn(self, pending: PendingJob, result: Result, seconds: float) -> None:
        if pending.is_guess and result.ran is not None and result.ran.flops is not None:
            pending.plan(result.ran.flops / result.shared_by)
        is_first = not self.cost_model.knows(pending.job.cost_key)
        self.cost_model.learn(pending.job.cost_key, pending.flops, seconds)
        if is_first:
            self.queue.count(self._cost_of)

    def _outcomes(
        self, model: Any, queued_jobs: list[QueuedJob[PendingJob]], clock: _Clock, *, is_nested: bool
    ) -> Sequence[Result | HybridgeError]:
        outcome = self._run_once(model, queued_jobs, clock)
        if not isinstance(outcome, HybridgeError):
            return outcome
        if len(queued_jobs) == 1 or isinstance(outcome, Stopped):
            return [outcome] * len(queued_jobs)
        # One job may have made all fail (NaN), and there may be memory for one alone.
        alone: list[Result | HybridgeError] = []
        for queued in queued_jobs:
            tried = self._run_once(model, [queued], clock)
            alone.append(tried if isinstance(tried, HybridgeError) else tried[0])
        return alone

    def _run_once(
        self, model: Any, queued_jobs: list[QueuedJob[PendingJob]], clock: _Clock
    ) -> Sequence[Result] | HybridgeError:
        def progress(done: int, of: int) -> None:
            for queued in queued_jobs:
                self.queue.advance(queued, done / of)
                if queued.item.has_listener:
                    queued.item.notify(Progress("running", 0, queued.left_s, done / of))
            clock.paused_s += self._fill_gap(queued_jobs[0])

        def should_stop() -> bool:
            return not any(queued.item.is_wanted for queued in queued_jobs)

        if should_stop():
            return Stopped("the client of this job has left")
        for queued in queued_jobs:
            queued.item.notify(Progress("running", 0, queued.cost_s, 0.0))
        try:
            return self._perform(model, [queued.item.job for queued in queued_jobs], progress, should_stop)
        except (Stopped, OutOfMemory) as error:
            return error.with_traceback(None)  # its frames hold the tensors of the run
        except HybridgeError as error:
            return error
        except Exception as error:  # one broken job must not end the thread that all others need
            log.exception("a %s job failed", queued_jobs[0].item.job.part)
            return EngineFailure("an unexpected failure in the engine", saw=type(error).__name__)

    def _return(self, queued: QueuedJob[PendingJob]) -> None:
        """Put back a job that cannot run now, unless its client has left."""
        if not self.queue.put_back(queued):
            queued.item.resolve(_too_late())
        elif not queued.item.is_wanted:
            self.queue.leave(queued)

    def _fill_gap(self, outer: QueuedJob[PendingJob]) -> float:
        """Run short jobs between two strips of ``outer``, and return how many seconds that took."""
        if not self.queue.is_short_waiting(outer):
            return 0.0
        begun = time.perf_counter()
        before = self.queue.arrivals

        running = {one.item.job.part for one in self.queue.serving()}

        def is_ready(pending: PendingJob) -> bool:
            job = pending.job
            is_free = job.may_interrupt_its_kind or job.part not in running
            return is_free and not pending.needs_all_memory and self._models.is_ready(job.part)

        ran = False
        while (queued := self.queue.interrupt(outer, before=before, is_ready=is_ready)) is not None:
            self._run([queued], is_nested=True)
            ran = True
        return time.perf_counter() - begun if ran else 0.0


_HAS_ENDED = "the device thread has ended"


def _is_short_of_memory(outcome: Result | HybridgeError) -> bool:
    return isinstance(outcome, OutOfMemory) or (isinstance(outcome, TooLarge) and outcome.least_bytes is not None)


def _too_late() -> ShuttingDown:
    return ShuttingDown("the server shut down before this request was begun", hint="another server")
