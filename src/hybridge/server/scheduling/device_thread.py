"""The thread that owns the device: what it runs next, what in the gaps, what together, and who hears of it.

What running means is given to it (see :data:`Perform`); this file is about order alone.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import DeadlinePassed, EngineFailure, HybridgeError, OutOfMemory, ShuttingDown, Stopped, TooLarge
from .cost_model import Pace
from .job import Hear, Job, Progress, Result
from .model_cache import Shelf
from .queue import LineLimits, Place, WaitingLine

log = logging.getLogger("hybridge.device")

#: Runs jobs on a model: (model, jobs, progress(done, of), should_stop()) → a result for each.
Perform = Callable[[Any, Sequence[Job], Callable[[int, int], None], Callable[[], bool]], Sequence[Result]]

#: A job's progress is told in steps of this size; strips are many.
_TOLD_STEP = 0.01


class Ticket:
    """A job in the line, and where its result goes: a future that belongs to the event loop.

    Args:
        job: What to do.
        flops: Its arithmetic.
        like: Jobs of equal ones may share a run; None for a job that runs alone.
        hear: Told of its progress.
        is_guess: ``flops`` come from no plan.
    """

    def __init__(
        self, job: Job, flops: float, like: object | None, hear: Hear | None, *, is_guess: bool = False
    ) -> None:
        self.job, self.flops, self.like, self.is_guess = job, flops, like, is_guess
        self.is_heard = hear is not None
        self.is_wanted = True
        self.needs_all_memory = False
        self.since = time.perf_counter()
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self._told = Progress("waiting", position=-1)
        self.future: asyncio.Future[Result] = self._loop.create_future()

    @property
    def kind(self) -> str:
        """What sort of work it is, for the pace."""
        return f"{self.job.spec.name} {self.job.task}"

    def plan(self, flops: float) -> None:
        """From any thread: its arithmetic is known by now."""
        self.flops, self.is_guess = flops, False

    def resolve(self, outcome: Result | HybridgeError) -> None:
        """From any thread."""
        self._on_loop(self._set, outcome)

    def tell(self, progress: Progress) -> None:
        """From any thread; what is hardly news is not told."""
        last = self._told
        is_news = (progress.state, progress.position) != (last.state, last.position)
        if self._hear is not None and (is_news or progress.done - last.done >= _TOLD_STEP):
            self._told = progress
            self._on_loop(self._hear, progress)

    def expire(self) -> None:
        """On the event loop: the time that its sender gave it is over."""
        self._set(
            DeadlinePassed(
                "the job was not done in time",
                saw=f"{self.job.timeout_s:.3g} s since it was read",
                hint="a longer Request-Timeout, or Prefer: respond-async",
            )
        )

    def _on_loop(self, function: Callable[[Any], None], value: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, value)
        except RuntimeError:  # the loop is gone, and with it whoever waited
            log.info("nobody waits any more for a %s job", self.job.spec.name)

    def _set(self, outcome: Result | HybridgeError) -> None:
        if self.future.done():
            return
        if isinstance(outcome, HybridgeError):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


@dataclass(slots=True)
class _Clock:
    """The time of a run, without that of the jobs in its gaps."""

    begun: float
    paused_s: float = 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.begun - self.paused_s


class Device:
    """Takes jobs from the line, one after the other, and some in the gaps of others.

    Args:
        shelf: The models.
        perform: Runs jobs on one of them.
        limits: Of the line.
        batch_limit: Jobs that may share a run on a given model.
    """

    def __init__(
        self, shelf: Shelf[Any], perform: Perform, limits: LineLimits, batch_limit: Callable[[Any], int]
    ) -> None:
        self.line: WaitingLine[Ticket] = WaitingLine(limits, shelf.is_ready)
        self.pace = Pace()
        self._shelf, self._perform, self._batch_limit = shelf, perform, batch_limit
        self._listeners = 0
        self._thread = threading.Thread(target=self._serve, name="hybridge-device", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """False only if something is broken, or it was closed."""
        return self._thread.is_alive()

    async def run(self, ticket: Ticket) -> Result:
        """Lines up, waits for the result, and leaves the line or stops the run when cancelled."""
        job = ticket.job
        cost_s, is_guess = self._cost_of(ticket)
        place = self.line.put(
            ticket,
            client=job.client,
            cost_s=cost_s,
            nbytes=job.tensor.nbytes,
            is_patient=job.is_patient,
            group=job.spec.name,
            is_guess=is_guess,
        )
        try:
            self._shelf.want(job.spec.name)
        except HybridgeError:
            self.line.leave(place)
            raise
        loop = asyncio.get_running_loop()
        timer = None if job.timeout_s is None else loop.call_later(job.timeout_s, ticket.expire)
        self._listeners += ticket.is_heard
        try:
            self.tell_positions()
            return await ticket.future
        finally:
            if timer is not None:
                timer.cancel()
            ticket.is_wanted = False
            self._listeners -= ticket.is_heard
            if self.line.leave(place):
                self.tell_positions()
            self._shelf.unwant(job.spec.name)

    def plan(self, ticket: Ticket, flops: float) -> None:
        """Takes in a job's arithmetic, which was guessed when it lined up; from any thread."""
        ticket.plan(flops)
        self.line.plan(self._cost_of)

    def _cost_of(self, ticket: Ticket) -> tuple[float, bool]:
        """Seconds, and whether they are a guess."""
        is_guess = ticket.is_guess or not self.pace.knows(ticket.kind)
        return self.pace.seconds(ticket.kind, ticket.flops), is_guess

    def tell_positions(self) -> None:
        """Tells everybody who wants to hear it how many are before them; from any thread."""
        if not self._listeners:
            return
        ahead_s = sum(place.left_s for place in self.line.serving())
        for position, place in enumerate(self.line.waiting()):
            ahead_s += place.cost_s
            state = self._shelf.standing(place.item.job.spec.name).state
            place.item.tell(Progress("loading" if state == "loading" else "waiting", position, ahead_s))

    def fail(self, model: str, error: HybridgeError) -> None:
        """Tells everybody who waits for a model that it cannot be had."""
        for place in self.line.waiting():
            if place.item.job.spec.name == model and self.line.leave(place):
                place.item.resolve(copy.copy(error))  # each is raised by itself, and gets a traceback of its own

    def close(self, patience_s: float | None = None) -> None:
        """Finishes the running job, tells the waiting ones, and returns when the device is free.

        Args:
            patience_s: Seconds after which it returns anyway; :attr:`is_alive` tells.  None to wait for ever.
        """
        for ticket in self.line.close():
            ticket.resolve(_too_late())
        self._thread.join(patience_s)

    def _serve(self) -> None:
        while (place := self.line.take(lambda ticket: self._shelf.is_ready(ticket.job.spec.name))) is not None:
            self._run([place], is_nested=False)

    def _run(self, places: list[Place[Ticket]], *, is_nested: bool) -> None:
        """Runs a place, and those that may share its run; answers all of them, or puts them back."""
        first = places[0].item
        with self._shelf.claim(first.job.spec.name) as model:
            if model is None:
                self._return(places[0])
                return
            if first.like is not None and not is_nested and (most := self._batch_limit(model) - 1) > 0:
                places = places + self.line.join(lambda other: other.like == first.like, most)
            load_s = self._shelf.load_s(first.job.spec.name)
            begun = time.perf_counter()
            clock = _Clock(begun)
            self.tell_positions()
            outcomes = self._outcomes(model, places, clock, is_nested=is_nested)
        for place, outcome in zip(places, outcomes, strict=True):
            if is_nested and _is_short_of_memory(outcome):
                # Whatever it interrupted holds memory too; on its own it may fit.
                place.item.needs_all_memory = True
                self._return(place)
                continue
            if isinstance(outcome, Result):
                self._learn(place.item, outcome, clock.seconds / len(places))
                queued_s = max(0.0, begun - place.item.since - load_s)
                outcome.milliseconds.update(queue=1e3 * queued_s, load=1e3 * load_s, device=1e3 * clock.seconds)
            self.line.end(place, clock.seconds / len(places))
            place.item.resolve(outcome)

    def _learn(self, ticket: Ticket, result: Result, seconds: float) -> None:
        if ticket.is_guess and result.ran is not None and result.ran.flops is not None:
            ticket.plan(result.ran.flops / result.shared_by)
        is_first = not self.pace.knows(ticket.kind)
        self.pace.learn(ticket.kind, ticket.flops, seconds)
        if is_first:
            self.line.count(self._cost_of)

    def _outcomes(
        self, model: Any, places: list[Place[Ticket]], clock: _Clock, *, is_nested: bool
    ) -> Sequence[Result | HybridgeError]:
        outcome = self._attempt(model, places, clock)
        if not isinstance(outcome, HybridgeError):
            return outcome
        if len(places) == 1 or isinstance(outcome, Stopped):
            return [outcome] * len(places)
        # One of them may have spoilt it for the others (NaN), and memory for one may be there.
        alone: list[Result | HybridgeError] = []
        for place in places:
            tried = self._attempt(model, [place], clock)
            alone.append(tried if isinstance(tried, HybridgeError) else tried[0])
        return alone

    def _attempt(self, model: Any, places: list[Place[Ticket]], clock: _Clock) -> Sequence[Result] | HybridgeError:
        def progress(done: int, of: int) -> None:
            for place in places:
                self.line.advance(place, done / of)
                if place.item.is_heard:
                    place.item.tell(Progress("running", 0, place.left_s, done / of))
            clock.paused_s += self._fill_gap(places[0])

        def should_stop() -> bool:
            return not any(place.item.is_wanted for place in places)

        if should_stop():
            return Stopped("nobody waits for this job any more")
        for place in places:
            place.item.tell(Progress("running", 0, place.cost_s, 0.0))
        try:
            return self._perform(model, [place.item.job for place in places], progress, should_stop)
        except (Stopped, OutOfMemory) as error:
            return error.with_traceback(None)  # whose frames hold the tensors of the run, and tell nothing
        except HybridgeError as error:
            return error
        except Exception as error:  # one broken job must not end the thread that all others need
            log.exception("a %s job failed", places[0].item.job.spec.name)
            return EngineFailure("an unexpected failure in the engine", saw=type(error).__name__)

    def _return(self, place: Place[Ticket]) -> None:
        """Puts a place back that cannot be served now, unless nobody waits for it by now."""
        if not self.line.put_back(place):
            place.item.resolve(_too_late())
        elif not place.item.is_wanted:
            self.line.leave(place)

    def _fill_gap(self, outer: Place[Ticket]) -> float:
        """Runs what may run between two strips of ``outer``; returns how long that took."""
        if not self.line.is_short_waiting(outer):
            return 0.0
        begun = time.perf_counter()
        before = self.line.arrivals

        def is_ready(ticket: Ticket) -> bool:
            return not ticket.needs_all_memory and self._shelf.is_ready(ticket.job.spec.name)

        ran = False
        while (place := self.line.interrupt(outer, before=before, is_ready=is_ready)) is not None:
            self._run([place], is_nested=True)
            ran = True
        return time.perf_counter() - begun if ran else 0.0


def _is_short_of_memory(outcome: Result | HybridgeError) -> bool:
    return isinstance(outcome, OutOfMemory) or (isinstance(outcome, TooLarge) and outcome.least_bytes is not None)


def _too_late() -> ShuttingDown:
    return ShuttingDown("the server shut down before this request was begun", hint="another server")
