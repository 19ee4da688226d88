"""One fair queue before several members: which job runs next, and on which member.

*Order.*  Jobs wait in one :class:`~.queue.FairQueue`, whose accounts count seconds of all members together.  A
member is given a job when it can start it soon: one that runs and one that waits, so that the device is never idle;
more only if they may share a run with one that waits there, or are short enough for the gaps of one that runs.

*Place.*  A job goes where its model is loaded.  Another member loads the model, too, if it has nothing to do and
the jobs for the model would wait longer than loading takes.

*Failures.*  A job whose run fails is tried once more on another member.  If that succeeds, the failure was the
first member's: one that fails repeatedly in this way gets no jobs for a while.  A model that one member cannot load
is tried on all others.  A job whose member was lost is given to another, unless it must not run twice; one that was
running on two members when they ended is refused, so no job can take down one member after the other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...errors import (
    CannotLower,
    EngineFailure,
    HybridgeError,
    ModelUnavailable,
    OutOfMemory,
    ReplicaLost,
    ReplicaUnavailable,
    ShuttingDown,
    Stopped,
)
from .job import Job, Progress, ProgressCallback, Result
from .member import Member, Place, Ticket
from .queue import FairQueue, QueuedJob, QueueLimits

log = logging.getLogger("hybridge.pool")

#: Seconds that loading a model takes, before it was measured.
_LOAD_S = 5.0

#: Failures in a row after which a member gets no jobs, and the seconds for which it gets none.
_MOST_FAILURES, _REST_S = 3, 30.0

#: Seconds for which a member gets no jobs that could not be reached.
_AWAY_S = 1.0

#: How often a job is given to a member at most, and how many may end while they run it before it is refused.
_MOST_ATTEMPTS, _MOST_KILLS = 3, 2

#: Jobs that take longer report their progress, because shorter ones may run in their gaps.
_REPORTED_S = 0.3


class Dispatcher:
    """The queue and the members.  :meth:`run` belongs to an event loop; any thread may call the other methods.

    Args:
        expected_s: Returns the expected seconds of a job, and whether they are a guess.
        limits: Limits of the queue.
        patience_s: Seconds that jobs wait while no member works.
    """

    def __init__(
        self,
        expected_s: Callable[[Job[Any]], tuple[float, bool]],
        limits: QueueLimits | None = None,
        patience_s: float = 0.0,
    ) -> None:
        self.queue: FairQueue[Ticket] = FairQueue(limits, self._is_ready, lambda: len(self.places) or 1)
        self.places: Sequence[Place] = ()
        self._expected_s, self._patience_s = expected_s, patience_s
        self._lock = threading.RLock()
        self._load_s: dict[str, float] = {}  # of each model, measured
        self._measured: set[str] = set()  # cost keys
        self._lonely_since: float | None = None
        self._listeners = 0

    def set_members(self, members: Mapping[str, Member]) -> None:
        """Set which members there are; those that were there before keep their jobs."""
        with self._lock:
            known = {place.name: place for place in self.places}
            self.places = [known.get(name) or Place(name, member) for name, member in members.items()]
        self._dispatch()

    def illnesses(self) -> Mapping[str, str] | None:
        """Return None while a member works, else why each does not."""
        found = {place.name: place.illness for place in self.places}
        ill = {name: reason for name, reason in found.items() if reason is not None}
        return ill if len(ill) == len(found) else None

    def close(self) -> None:
        """Take no more jobs, and fail those that wait."""
        for ticket in self.queue.close():
            ticket.resolve(_too_late())

    async def run(self, job: Job[Any], on_progress: ProgressCallback | None = None) -> Result:
        """Queue a job, and let a member run it; see :meth:`Backend.run`."""
        expected = self._expected_s(job)
        ticket = Ticket(job, on_progress, expected[0])
        queued = self.queue.put_job(ticket, job, expected)
        self._listeners += ticket.has_listener
        seconds: float | None = None
        try:
            self._dispatch()
            while True:
                place = await ticket.future
                result = await self._try(queued, place)
                if result is not None:
                    seconds = result.milliseconds.get("device", 0.0) / 1e3 / result.shared_by
                    self._learn(ticket, place, result)
                    waited_ms = 1e3 * ticket.waited_s + result.milliseconds.get("queue", 0.0)
                    return replace(result, milliseconds={**result.milliseconds, "queue": waited_ms})
                self._put_back(queued)
        finally:
            self._listeners -= ticket.has_listener
            self._leave(queued, seconds)

    # ----------------------------------------------------------------------------------- one job's turn

    async def _try(self, queued: QueuedJob[Ticket], place: Place) -> Result | None:
        """Return the result of a job from a member; None if it may have another turn.

        Raises:
            HybridgeError: when it fails for good.
        """
        ticket = queued.item
        part, member = ticket.job.part, place.member
        tells = ticket.has_listener or queued.is_guess or queued.cost_s > _REPORTED_S or not member.is_ready(part)
        try:
            return await member.run(ticket.job, (lambda told: self._note(queued, told)) if tells else None)
        except ReplicaLost as error:
            log.warning("%s did not end a %s job: %s", place.name, part, error.what)
            self._lose(place, is_dead=error.is_dead)
            _check_another_turn(ticket, error)
        except (EngineFailure, ModelUnavailable) as error:
            ticket.tried += (place,)
            if not self._may_try_elsewhere(ticket, error):
                raise
            if isinstance(error, EngineFailure):
                ticket.failed_on += (place,)
            log.warning("a %s job failed on %s, and is tried elsewhere: %s", part, place.name, error)
        return None

    def _may_try_elsewhere(self, ticket: Ticket, error: HybridgeError) -> bool:
        if all(place in ticket.tried for place in self.places if place.illness is None):
            return False
        if isinstance(error, ModelUnavailable):
            return True
        is_its_own = isinstance(error, (OutOfMemory, CannotLower, Stopped))
        may = ticket.job.is_repeatable and not ticket.job.is_partly_sent
        return may and not is_its_own and not ticket.failed_on

    def _lose(self, place: Place, *, is_dead: bool) -> None:
        """Give no more jobs to a member that has ended, or cannot be reached at the moment.

        Of one that has ended, the jobs that it was running are noted as what may have killed it.
        """
        with self._lock:
            place.away_until = time.monotonic() + _AWAY_S
            if is_dead and not place.is_dead:
                place.is_dead = True
                ran = [queued for queued in place.given if queued.item.state == "running"]
                for queued in ran or place.given[:1]:
                    queued.item.kills += 1

    def _note(self, queued: QueuedJob[Ticket], progress: Progress) -> None:
        """Note what a member says about a job, and tell its listener."""
        has_changed = queued.item.state != progress.state
        queued.item.state = progress.state
        if progress.state == "running":
            self.queue.advance(queued, progress.done)
        queued.item.notify(progress)
        if has_changed:
            self._dispatch()

    def _learn(self, ticket: Ticket, place: Place, result: Result) -> None:
        """Learn how long loading takes, and which member's fault an earlier failure was."""
        if load_ms := result.milliseconds.get("load", 0.0):
            self._load_s[ticket.job.part] = load_ms / 1e3
        place.failures = 0
        for guilty in ticket.failed_on:
            guilty.failures += 1
            if guilty.failures >= _MOST_FAILURES:
                guilty.rests_until = time.monotonic() + _REST_S
                log.error("%s fails at what others can do, and gets no jobs for %g s", guilty.name, _REST_S)
        if ticket.job.cost_key not in self._measured and not self._expected_s(ticket.job)[1]:
            self._measured.add(ticket.job.cost_key)
            self.queue.count(lambda other: self._expected_s(other.job))

    def _put_back(self, queued: QueuedJob[Ticket]) -> None:
        """Let a job wait for another turn.

        Raises:
            ShuttingDown: when the queue is closed.
        """
        self._take_away(queued)
        queued.item.wait_again()
        if not self.queue.put_back(queued):
            raise _too_late()
        self._dispatch()

    def _leave(self, queued: QueuedJob[Ticket], seconds: float | None) -> None:
        """End a job.

        Args:
            queued: The job.
            seconds: Time that its client is charged with; None for the time since it was given to its member.
        """
        if not self.queue.leave(queued):
            self._take_away(queued)
            if queued in self.queue.serving():
                spent_s = min(queued.cost_s, time.perf_counter() - queued.item.given_at)
                self.queue.end(queued, spent_s if seconds is None else seconds)
        self._dispatch()

    def _take_away(self, queued: QueuedJob[Ticket]) -> None:
        with self._lock:
            for place in self.places:
                if queued in place.given:
                    place.given.remove(queued)

    # ------------------------------------------------------------------------------------ order and place

    def _dispatch(self) -> None:
        """Give members what they can start soon, in the order of the queue."""
        with self._lock:
            while self._has_members() and len(self.queue) and self._give_one():
                pass
        self._notify_positions()

    def _has_members(self) -> bool:
        """Whether a member works; fails what waits if none has for too long."""
        ill = self.illnesses()
        if ill is None:
            self._lonely_since = None
            return True
        now = time.monotonic()
        self._lonely_since = now if self._lonely_since is None else self._lonely_since
        if now - self._lonely_since >= self._patience_s:
            for queued in self.queue.waiting():
                queued.item.resolve(
                    ReplicaUnavailable(
                        "no device or replica works"
                        + (f", for {self._patience_s:g} s" if self._patience_s else ""),
                        saw="; ".join(f"{name}: {reason}" for name, reason in ill.items()) or None,
                        hint="again in a while; the server's log says more",
                    )
                )
        return False

    def _give_one(self) -> bool:
        """Give the next job that can start soon to a member; False if there is none."""
        found: dict[tuple[str, tuple[Place, ...]], tuple[Place | None, Sequence[Place]]] = {}

        def place_for(ticket: Ticket) -> Place | None:
            key = (ticket.job.part, ticket.tried)
            if key not in found:
                found[key] = self._places_for(*key)
            seat, others = found[key]
            return seat or next((place for place in others if place.has_gap(ticket)), None)

        queued = self.queue.take_now(lambda ticket: place_for(ticket) is not None)
        if queued is None:
            return False
        place = place_for(queued.item)
        assert place is not None  # noqa: S101 - or the job was not ready
        place.given.append(queued)
        queued.item.give(place)
        return True

    def _places_for(self, part: str, tried: Sequence[Place]) -> tuple[Place | None, Sequence[Place]]:
        """Return where a job for a model is the next to start, and where there may be gaps for it."""
        usable = [place for place in self.places if place.illness is None]
        usable = [place for place in usable if place not in tried] or usable
        usable = [place for place in usable if not place.is_resting] or usable
        usable = [place for place in usable if not place.member.has_failed(part)] or usable
        having = [place for place in usable if place.has(part)]
        seats = [place for place in having or usable if place.has_seat(part)]
        if not seats and having and self._is_worth_loading(part, having):
            seats = [place for place in usable if place not in having and not place.given]
        seat = min(seats, key=lambda place: (place.left_s, len(place.given)), default=None)
        return seat, [place for place in having if place.may_have_gaps(part)]

    def _is_worth_loading(self, part: str, having: Sequence[Place]) -> bool:
        """Whether the jobs for a model would wait longer where it is loaded than loading it elsewhere takes."""
        wait_s = (self.queue.waiting_s(part) + sum(place.left_s for place in having)) / len(having)
        return wait_s > self._load_s.get(part, _LOAD_S)

    def _is_ready(self, part: str) -> bool:
        return any(place.member.is_ready(part) for place in self.places)

    def _notify_positions(self) -> None:
        """Report to every waiting job its position, if anybody listens."""
        if not self._listeners:
            return
        ahead_s = sum(queued.left_s for queued in self.queue.serving())
        for position, queued in enumerate(self.queue.waiting()):
            ahead_s += queued.cost_s
            queued.item.notify(Progress("waiting", position, ahead_s / (len(self.places) or 1)))


def _check_another_turn(ticket: Ticket, lost: ReplicaLost) -> None:
    """Raise unless a job whose member was lost may have another turn.

    Raises:
        OutOfMemory: for a job that members die of.
        ReplicaUnavailable: for one that cannot be repeated, or was often enough.
    """
    again = "the same request again"
    if ticket.kills >= _MOST_KILLS:
        raise OutOfMemory(
            f"{ticket.kills} replicas died while they ran this job",
            saw=lost.what,
            hint="a smaller picture or batch; the replicas may have too little memory (--memory)",
        )
    if not ticket.job.is_repeatable:
        what = "a replica was lost, and a job that draws at random without a seed is not run twice"
        raise ReplicaUnavailable(what, saw=lost.what, hint=f"{again}, or with a seed")
    if ticket.job.is_partly_sent:
        raise ReplicaUnavailable("a replica was lost in the middle of a video", saw=lost.what, hint=again)
    if ticket.attempts >= _MOST_ATTEMPTS:
        what = f"{ticket.attempts} replicas were lost before this job was done"
        raise ReplicaUnavailable(what, saw=lost.what, hint=f"{again}; the server's log says more")


def _too_late() -> ShuttingDown:
    return ShuttingDown("the server shut down before this request was done", hint="another server")
