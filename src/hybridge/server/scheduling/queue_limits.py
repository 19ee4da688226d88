"""Bounds on the queue: the number of jobs, their work, and their bytes.

The last quarter of each is kept for clients that have nothing in the queue, so that one busy client cannot make the
server refuse all others.  Jobs that cannot be begun yet, because their model is being loaded, count against nobody
but those who wait for the same model; of the bytes they get half.  Work counts once it was measured: a guess
refuses nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ...errors import Overloaded

Item = TypeVar("Item")

#: Of a bound, the part that only clients with nothing in the queue may take.
_NEWCOMERS_SHARE = 1 / 4

#: Of the bound on bytes, the part that jobs which cannot be begun yet may take together.
_UNREADY_SHARE = 1 / 2

#: Seconds that a guess adds at most to what a refused client is told to wait.
_MOST_GUESSED_S = 10.0


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much may wait; a job that comes to an empty line is always taken.

    Attributes:
        jobs: Their number.
        work_s: Seconds that the device would need for all of them.
        nbytes: Of their tensors.
    """

    jobs: int = 64
    work_s: float = 300.0
    nbytes: int = 1024 * 2**20


@dataclass(slots=True, eq=False)
class QueuedJob(Generic[Item]):
    """An item in the queue or on the device.

    Attributes:
        item: Whose place it is.
        client: Who sent it.
        cost_s: Seconds that the device is expected to need.
        nbytes: Of its tensors.
        is_patient: It was accepted elsewhere, and counts against no bound here.
        group: The model that it waits for.
        is_guess: Nothing was measured that ``cost_s`` could be told from.
        counted_s: What counts against the bound on work where ``cost_s`` is a guess: what was measured since.
        number: Counts arrivals.
        start: Its client's account when it was taken.
        done: The share of its work that is done.
    """

    item: Item
    client: str
    cost_s: float
    nbytes: int
    is_patient: bool
    number: int
    group: str = ""
    is_guess: bool = False
    counted_s: float | None = None
    start: float = 0.0
    done: float = 0.0

    @property
    def left_s(self) -> float:
        """Seconds that it is expected to need still."""
        return self.cost_s * (1 - self.done)

    @property
    def work_s(self) -> float:
        """What counts against the bound on work: nothing for a guess."""
        if self.is_guess:
            return self.counted_s or 0.0
        return self.cost_s

    @property
    def told_s(self) -> float:
        """Seconds that it still adds to what a refused client is told to wait."""
        left_s = self.work_s * (1 - self.done)
        return left_s or min(self.left_s, _MOST_GUESSED_S)

    @property
    def reached(self) -> float:
        """Its client's account, counting only what is done."""
        return self.start + self.cost_s * self.done


def check_room(
    newcomer: QueuedJob[Any],
    waiting: Sequence[QueuedJob[Any]],
    serving: Sequence[QueuedJob[Any]],
    limits: QueueLimits,
    is_ready: Callable[[str], bool],
) -> None:
    """Raises :class:`Overloaded` where a job would pass a bound; a job that comes to an empty line never does.

    Args:
        newcomer: It is not in the queue yet.
        waiting: Who is.
        serving: What the device is at work on.
        limits: The bounds.
        is_ready: Whether jobs of a group may be begun.
    """
    held = [queued for queued in waiting if not queued.is_patient]
    if not held:
        return

    def full(what: str, setting: str, rivals: Sequence[QueuedJob[Any]]) -> Overloaded:
        # Half of the queue: whoever is refused now comes back together with the others who were, and all need room.
        ahead = [*rivals, *(queued for queued in waiting if queued.is_patient)]
        return Overloaded(
            what,
            retry_after_s=sum(queued.told_s for queued in serving) + sum(queued.told_s for queued in ahead) / 2,
            hint=f"again after the seconds in Retry-After, or a server with a higher {setting}",
        )

    share = 1 - _NEWCOMERS_SHARE if any(queued.client == newcomer.client for queued in held) else 1.0
    unready = [queued for queued in held if not is_ready(queued.group)]
    if sum(queued.nbytes for queued in held) + newcomer.nbytes > limits.nbytes * share:
        raise full("the requests that wait already take too much memory", "--queue-mib", held)
    unready_bytes = newcomer.nbytes + sum(queued.nbytes for queued in unready)
    if unready and not is_ready(newcomer.group) and unready_bytes > limits.nbytes * _UNREADY_SHARE:
        what = "the requests that wait for models to be loaded already take too much memory"
        raise full(what, "--queue-mib", held)
    rivals = [queued for queued in held if queued.group == newcomer.group or is_ready(queued.group)]
    if len(rivals) >= limits.jobs - int(limits.jobs * (1 - share)):
        raise full(f"{len(rivals)} requests are waiting already", "--queue-limit", rivals)
    work_s = sum(queued.work_s for queued in rivals)
    if rivals and work_s + newcomer.work_s > limits.work_s * share:
        what = f"requests for {work_s:.0f} seconds of work are waiting already"
        raise full(what, "--queue-work-s", rivals)
