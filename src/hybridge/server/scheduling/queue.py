"""The queue between the HTTP side and the device: fair between clients, bounded, ordered by cost.

*Order.*  Every client has an account, in seconds of the device.  When a job is taken, its cost is added to its
client's account; the next job is that of the client with the lowest account, and a client's jobs keep their order.
A new client starts at the account of the job that runs, so nobody gains by staying away.  This is start-time fair
queueing (Goyal, Vin and Cheng, 1996).

*Gaps.*  A job that runs in strips pauses between two of them, and other jobs may run in that gap.
:meth:`FairQueue.interrupt` has the rules.

*Limits* are in :mod:`.queue_limits`.
"""

from __future__ import annotations

import heapq
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ...errors import ShuttingDown
from .job import Job
from .queue_limits import QueuedJob, QueueLimits, check_room

__all__ = ["FairQueue", "QueueLimits", "QueuedJob"]

Item = TypeVar("Item")

#: A job that runs in a gap costs at most this share of what the paused job still has to do.  So nested jobs
#: together cost at most a third of the outermost job's work, and take about a third of its memory.
_GAP_SHARE = 1 / 4

#: Number of accounts; beyond it, those of clients without jobs are dropped.
_MOST_ACCOUNTS = 256


@dataclass(slots=True)
class _Account(Generic[Item]):
    seconds: float
    waiting: deque[QueuedJob[Item]] = field(default_factory=deque)


class FairQueue(Generic[Item]):
    """The queue.  Any thread may call it.

    Args:
        limits: A job above them is refused at once.
        is_ready: Whether items of a group can start; called when an item is put into the queue.
        devices: The number of devices that take items; called as well.  Both take no lock.
    """

    def __init__(
        self,
        limits: QueueLimits | None = None,
        is_ready: Callable[[str], bool] = lambda group: True,
        devices: Callable[[], int] = lambda: 1,
    ) -> None:
        self._limits = limits or QueueLimits()
        self._is_ready, self._devices = is_ready, devices
        self._accounts: dict[str, _Account[Item]] = {}
        self._serving: list[QueuedJob[Item]] = []
        self._now = 0.0  # the account of the job that runs
        self._arrivals = 0
        self._least_s = math.inf  # nobody who waits costs less
        self._changed = threading.Condition()
        self._is_closed = False

    def __len__(self) -> int:
        with self._changed:
            return sum(len(account.waiting) for account in self._accounts.values())

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._is_closed

    @property
    def arrivals(self) -> int:
        """Number of items that were ever put into the queue."""
        return self._arrivals

    def put_job(self, item: Item, job: Job[Any], expected: tuple[float, bool]) -> QueuedJob[Item]:
        """Put an item into the queue that stands for a job.

        Args:
            item: The item.
            job: The job, which says whose it is and how large.
            expected: Seconds that it will take, and whether they are a guess.

        Raises:
            Overloaded: as :meth:`put`.
            ShuttingDown: as :meth:`put`.
        """
        cost_s, is_guess = expected
        return self.put(
            item,
            client=job.client,
            cost_s=cost_s,
            nbytes=job.nbytes,
            is_patient=job.is_patient,
            group=job.part,
            is_guess=is_guess,
        )

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
        """Put an item into the queue.  The arguments are the attributes of :class:`QueuedJob`.

        Raises:
            Overloaded: when the queue is full; says when there will probably be room.
            ShuttingDown: when it is closed.
        """
        with self._changed:
            if self._is_closed:
                raise ShuttingDown("the server is shutting down", hint="another server, or again in a while")
            queued = QueuedJob(item, client, cost_s, nbytes, is_patient, self._arrivals + 1, group, is_guess)
            if not is_patient:
                waiting = [one for _, one in self._places()]
                check_room(queued, waiting, self._serving, self._limits, self._is_ready, self._devices())
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
        """Remove an item, at no cost to the client; False if it was taken already."""
        with self._changed:
            account = self._accounts.get(queued.client)
            if account is None or queued not in account.waiting:
                return False
            account.waiting.remove(queued)
            return True

    def plan(self, cost_of: Callable[[Item], tuple[float, bool]]) -> None:
        """Replace the guessed costs of waiting and running items.

        Args:
            cost_of: Returns seconds, and whether they are still a guess.
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
        """Count the work of waiting items against the limit, where it is no longer a guess.

        Order and gaps keep the costs that they used so far, because they compare costs, which must come from the
        same measurements on both sides.
        """
        with self._changed:
            for _, queued in self._places():
                if queued.is_guess:
                    cost_s, is_guess = cost_of(queued.item)
                    queued.counted_s = None if is_guess else cost_s

    def take(self, is_ready: Callable[[Item], bool] = lambda _: True) -> QueuedJob[Item] | None:
        """Wait for an item that is ready, and take it; None once the queue is closed.

        Args:
            is_ready: Whether an item can start now; call :meth:`notify` when that changes.
        """
        with self._changed:
            while not self._is_closed:
                queued = self._first(lambda _, queued: is_ready(queued.item))
                if queued is not None:
                    return self._serve(queued)
                self._changed.wait()
            return None

    def take_now(self, is_ready: Callable[[Item], bool] = lambda _: True) -> QueuedJob[Item] | None:
        """Take an item that is ready, as :meth:`take` does; None if there is none at the moment."""
        with self._changed:
            queued = None if self._is_closed else self._first(lambda _, queued: is_ready(queued.item))
            return None if queued is None else self._serve(queued)

    def is_short_waiting(self, outer: QueuedJob[Item]) -> bool:
        """Whether :meth:`interrupt` may find an item; quick, because it is called after every strip."""
        return self._least_s <= outer.left_s * _GAP_SHARE

    def interrupt(
        self, outer: QueuedJob[Item], *, before: int, is_ready: Callable[[Item], bool] = lambda _: True
    ) -> QueuedJob[Item] | None:
        """Take an item that may run in a gap of ``outer`` now; None if there is none.  The rules:

        1. Its cost is a small part of what ``outer`` still has to do.
        2. It was in the queue when the gap began, so that ``outer`` gets its next strip whatever comes meanwhile.
        3. The account of its client is lower than that of the client of ``outer``, counting only strips that
           are done, so that a client does not get more than its share by sending small jobs.
        4. Rule 3 does not apply to items of the same client.

        Args:
            outer: The job that pauses.
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
        """Take up to ``most`` more items that may share a run, in the order of the queue."""
        joined: list[QueuedJob[Item]] = []
        with self._changed:
            while len(joined) < most:
                queued = self._first(lambda _, queued: is_like(queued.item))
                if queued is None:
                    break
                joined.append(self._serve(queued))
        return joined

    def put_back(self, queued: QueuedJob[Item]) -> bool:
        """Put an item back where it was among its client's, without charge; False if the queue is closed."""
        with self._changed:
            self._serving.remove(queued)
            if self._is_closed:
                return False
            account = self._accounts.setdefault(queued.client, _Account(queued.start))
            account.seconds -= queued.cost_s
            queued.done = 0.0
            account.waiting.insert(sum(one.number < queued.number for one in account.waiting), queued)
            self._least_s = min(self._least_s, queued.cost_s)
            self._changed.notify()
            return True

    def advance(self, queued: QueuedJob[Item], done: float) -> None:
        """Set which share of an item's work is done."""
        with self._changed:
            queued.done = done
            self._now = queued.reached

    def end(self, queued: QueuedJob[Item], seconds: float) -> None:
        """Charge an item that is done with the time that it really took."""
        with self._changed:
            self._serving.remove(queued)
            if queued.client in self._accounts:
                self._accounts[queued.client].seconds += seconds - queued.cost_s
            if not self._serving and not len(self):
                self._accounts.clear()  # the queue is empty: reset all accounts
                self._now = 0.0

    def notify(self) -> None:
        """Make ``take`` check again which items are ready."""
        with self._changed:
            self._changed.notify_all()

    def waiting(self) -> list[QueuedJob[Item]]:
        """Return the waiting items, in the order in which they will run if no others come."""
        with self._changed:
            return list(self._order())

    def waiting_s(self, group: str) -> float:
        """Return the seconds of work of a group that wait."""
        with self._changed:
            return sum(queued.cost_s for _, queued in self._places() if queued.group == group)

    def serving(self) -> list[QueuedJob[Item]]:
        """Return the running items: the outermost first, then those in its gaps."""
        with self._changed:
            return list(self._serving)

    def close(self) -> list[Item]:
        """Refuse new items, make ``take`` return None, and return the items that were waiting."""
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
        """Return the allowed item with the lowest account; of equals, the one that came first."""
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
