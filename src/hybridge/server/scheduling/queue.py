"""The queue between the HTTP side and the device: fair, bounded, and aware of what work costs.

*Order.*  Every client has an account, in seconds of the device.  Being served adds a job's cost to its client's
account, and the next job is that of the lowest account; within a client, first come, first served.  Whoever comes
anew starts at the account that is being served, so nobody saves up by staying away.  This is start-time fair
queueing (Goyal, Vin and Cheng, 1996).

*Gaps.*  A job that runs in strips pauses between two of them, and others may run in that gap.  Four rules say
which, see :meth:`FairQueue.interrupt`.

*Bounds* are those of :mod:`.queue_limits`.
"""

from __future__ import annotations

import heapq
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ...errors import ShuttingDown
from .queue_limits import QueuedJob, QueueLimits, check_room

__all__ = ["FairQueue", "QueueLimits", "QueuedJob"]

Item = TypeVar("Item")

#: What runs in the gaps of a job costs at most this much of what the job still has to do.  Then gaps nest only as
#: deep as costs shrink, and all that nest take a third of the outermost job's work, and so about of its memory.
_GAP_SHARE = 1 / 4

#: Accounts of clients that are gone are thrown away beyond this number.
_MOST_ACCOUNTS = 256


@dataclass(slots=True)
class _Account(Generic[Item]):
    seconds: float
    waiting: deque[QueuedJob[Item]] = field(default_factory=deque)


class FairQueue(Generic[Item]):
    """``put`` and ``leave`` from any thread, the rest from the one that owns the device.

    Args:
        limits: One job more is refused at once rather than kept for minutes.
        is_ready: Whether items of a group may be begun; asked when an item is put into the queue.
    """

    def __init__(
        self, limits: QueueLimits | None = None, is_ready: Callable[[str], bool] = lambda group: True
    ) -> None:
        self._limits = limits or QueueLimits()
        self._is_ready = is_ready
        self._accounts: dict[str, _Account[Item]] = {}
        self._serving: list[QueuedJob[Item]] = []
        self._now = 0.0  # the account that is being served
        self._arrivals = 0
        self._least_s = math.inf  # nobody who waits costs less
        self._changed = threading.Condition()
        self._is_closed = False

    def __len__(self) -> int:
        return sum(len(account.waiting) for account in self._accounts.values())

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._is_closed

    @property
    def arrivals(self) -> int:
        """How many items ever came."""
        return self._arrivals

    def put(
        self,
        item: Item,
        *,
        client: str = "",
        cost_s: float = 0.0,
        nbytes: int = 0,
        is_patient: bool = False,
        group: str = "",
        is_guess: bool = False,
    ) -> QueuedJob[Item]:
        """Lines up.  The arguments are the attributes of :class:`QueuedJob`.

        Raises:
            Overloaded: when the queue is full; says when there is likely to be room.
            ShuttingDown: when it is closed.
        """
        with self._changed:
            if self._is_closed:
                raise ShuttingDown("the server is shutting down", hint="another server, or again in a while")
            queued = QueuedJob(item, client, cost_s, nbytes, is_patient, self._arrivals + 1, group, is_guess)
            if not is_patient:
                check_room(queued, [one for _, one in self._places()], self._serving, self._limits, self._is_ready)
            if client not in self._accounts:
                self._forget_the_gone()
            account = self._accounts.setdefault(client, _Account(self._now))
            if not account.waiting:
                account.seconds = max(account.seconds, self._now)
            self._arrivals += 1
            account.waiting.append(queued)
            self._least_s = min(self._least_s, cost_s)
            self._changed.notify()
            return queued

    def leave(self, queued: QueuedJob[Item]) -> bool:
        """Gives up a place, at no cost to the client; False if it was taken already."""
        with self._changed:
            account = self._accounts.get(queued.client)
            if account is None or queued not in account.waiting:
                return False
            account.waiting.remove(queued)
            return True

    def plan(self, cost_of: Callable[[Item], tuple[float, bool]]) -> None:
        """Puts better figures in place of guesses, for those who wait and for what the device is at work on.

        Args:
            cost_of: Gives seconds, and whether those are a guess still.
        """
        with self._changed:
            for queued in [*self._serving, *(queued for _, queued in self._places())]:
                if queued.is_guess:
                    before = queued.cost_s
                    queued.cost_s, queued.is_guess = cost_of(queued.item)
                    queued.counted_s = None if queued.is_guess else queued.cost_s
                    if queued in self._serving and queued.client in self._accounts:
                        self._accounts[queued.client].seconds += queued.cost_s - before
                    self._least_s = min(self._least_s, queued.cost_s)

    def count(self, cost_of: Callable[[Item], tuple[float, bool]]) -> None:
        """Lets the work of those who wait count against the bound, where it is no guess any more.

        Order and gaps go by what they have cost so far: those are comparisons, also with what was begun meanwhile,
        for which both sides have to be told from the same figures.
        """
        with self._changed:
            for _, queued in self._places():
                if queued.is_guess:
                    cost_s, is_guess = cost_of(queued.item)
                    queued.counted_s = None if is_guess else cost_s

    def take(self, is_ready: Callable[[Item], bool] = lambda _: True) -> QueuedJob[Item] | None:
        """The next place whose item is ready; waits for one.  None once the queue is closed.

        Args:
            is_ready: False for an item to pass over for now; :meth:`notify` when that changes.
        """
        with self._changed:
            while not self._is_closed:
                queued = self._first(lambda _, queued: is_ready(queued.item))
                if queued is not None:
                    return self._serve(queued)
                self._changed.wait()
            return None

    def is_short_waiting(self, outer: QueuedJob[Item]) -> bool:
        """Whether :meth:`interrupt` may find anybody; quick, for it is asked after every strip."""
        return self._least_s <= outer.left_s * _GAP_SHARE

    def interrupt(
        self, outer: QueuedJob[Item], *, before: int, is_ready: Callable[[Item], bool] = lambda _: True
    ) -> QueuedJob[Item] | None:
        """Who may run in a gap of ``outer`` now, or None.

        1. Its cost is a small part of what ``outer`` has left to do: a long wait is spared for a short one.
        2. It was there when the gap began, so that ``outer`` gets its next strip whoever comes meanwhile.
        3. It is of a client whose account is lower than that of ``outer``, counting only the strips that are done:
           a client cannot buy more than its share by sending small jobs.
        4. Or it is of the same client, who has nobody to be protected from.

        Args:
            outer: What pauses.
            before: :attr:`arrivals` when the gap began.
            is_ready: As for :meth:`take`.
        """

        most_s = outer.left_s * _GAP_SHARE

        def may_run(account: _Account[Item], queued: QueuedJob[Item]) -> bool:
            return (
                queued.cost_s <= most_s
                and queued.number <= before
                and (queued.client == outer.client or account.seconds < outer.reached)
                and is_ready(queued.item)
            )

        with self._changed:
            queued = self._first(may_run)
            if queued is not None:
                return self._serve(queued)
            self._least_s = min((queued.cost_s for _, queued in self._places()), default=math.inf)
            return None

    def join(self, is_like: Callable[[Item], bool], most: int) -> list[QueuedJob[Item]]:
        """Up to ``most`` more places whose items may share a run, in the order of the queue."""
        joined: list[QueuedJob[Item]] = []
        with self._changed:
            while len(joined) < most:
                queued = self._first(lambda _, queued: is_like(queued.item))
                if queued is None:
                    break
                joined.append(self._serve(queued))
        return joined

    def put_back(self, queued: QueuedJob[Item]) -> bool:
        """To the front of its client's jobs, uncharged, as if never taken; False if the queue is closed."""
        with self._changed:
            self._serving.remove(queued)
            if self._is_closed:
                return False
            account = self._accounts.setdefault(queued.client, _Account(queued.start))
            account.seconds -= queued.cost_s
            queued.done = 0.0
            account.waiting.appendleft(queued)
            self._least_s = min(self._least_s, queued.cost_s)
            self._changed.notify()
            return True

    def advance(self, queued: QueuedJob[Item], done: float) -> None:
        """Tells which share of a place's work is done."""
        with self._changed:
            queued.done = done
            self._now = queued.reached

    def end(self, queued: QueuedJob[Item], seconds: float) -> None:
        """Tells that the device is done with a place, and how long it really took."""
        with self._changed:
            self._serving.remove(queued)
            if queued.client in self._accounts:
                self._accounts[queued.client].seconds += seconds - queued.cost_s
            if not self._serving and not len(self):
                self._accounts.clear()  # nobody owes anybody anything
                self._now = 0.0

    def notify(self) -> None:
        """Makes ``take`` look again at what is ready."""
        with self._changed:
            self._changed.notify_all()

    def waiting(self) -> list[QueuedJob[Item]]:
        """The places at this moment, in the order in which they will be served if nobody else comes."""
        with self._changed:
            return list(self._order())

    def serving(self) -> list[QueuedJob[Item]]:
        """What the device is at work on: the outermost first, then what runs in its gaps."""
        with self._changed:
            return list(self._serving)

    def close(self) -> list[Item]:
        """Refuses whoever comes, makes ``take`` return None, and gives back what was still waiting."""
        with self._changed:
            self._is_closed = True
            left = [queued.item for queued in self._order()]
            self._accounts.clear()
            self._changed.notify_all()
        return left

    def _places(self) -> Iterator[tuple[_Account[Item], QueuedJob[Item]]]:
        for account in self._accounts.values():
            for queued in account.waiting:
                yield account, queued

    def _first(self, may: Callable[[_Account[Item], QueuedJob[Item]], bool]) -> QueuedJob[Item] | None:
        """Of the places that may, the one with the lowest account; of equals, the one that came first."""
        queued_jobs = [pair for pair in self._places() if may(*pair)]
        return min(queued_jobs, key=lambda pair: (pair[0].seconds, pair[1].number))[1] if queued_jobs else None

    def _serve(self, queued: QueuedJob[Item]) -> QueuedJob[Item]:
        account = self._accounts[queued.client]
        account.waiting.remove(queued)
        queued.start = self._now = account.seconds
        account.seconds += queued.cost_s
        self._serving.append(queued)
        return queued

    def _order(self) -> Iterator[QueuedJob[Item]]:
        heads = [
            (account.seconds, account.waiting[0].number, list(account.waiting))
            for account in self._accounts.values()
            if account.waiting
        ]
        heapq.heapify(heads)
        while heads:
            seconds, _, (queued, *rest) = heapq.heappop(heads)
            yield queued
            if rest:
                heapq.heappush(heads, (seconds + queued.cost_s, rest[0].number, rest))

    def _forget_the_gone(self) -> None:
        if len(self._accounts) >= _MOST_ACCOUNTS:
            busy = {queued.client for queued in self._serving}
            self._accounts = {
                client: account
                for client, account in self._accounts.items()
                if account.waiting or client in busy or account.seconds > self._now
            }
