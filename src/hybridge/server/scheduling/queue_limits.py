"""Limits of the queue: the number of jobs, their work, and their bytes.

The last quarter of each is kept for clients that have nothing in the queue, so that one busy client cannot make the
server refuse all others.  Jobs whose model is being loaded count only against jobs for the same model, and get half
of the bytes.  Work counts only where it was measured: a guess refuses no job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ...errors import Overloaded

Item = TypeVar("Item")

#: The share of a limit that only clients with nothing in the queue may use.
_NEWCOMERS_SHARE = 1 / 4

#: The share of the limit on bytes for all jobs whose model is not loaded yet.
_UNREADY_SHARE = 1 / 2

#: Most seconds that a guessed cost adds to the Retry-After of a refused client.
_MOST_GUESSED_S = 10.0


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much may wait; an empty queue takes every job.

    Attributes:
        jobs: Number of jobs.
        work_s: Seconds that the device would need for all of them.
        nbytes: Bytes of their tensors.
    """

    jobs: int = 64
    work_s: float = 300.0
    nbytes: int = 1024 * 2**20


@dataclass(slots=True, eq=False)
class QueuedJob(Generic[Item]):
    """An item in the queue or on the device.

    Attributes:
        item: The item.
        client: Who sent it.
        cost_s: Seconds that the device is expected to need.
        nbytes: Bytes of its tensors.
        is_patient: Whether no limit applies, because it was accepted for later.
        group: The model that it waits for.
        is_guess: Whether ``cost_s`` is a guess, because nothing was measured.
        counted_s: Seconds that count against the limit on work where ``cost_s`` is a guess: measured since.
        number: Its position in the order of arrival.
        start: Its client's account when it was taken.
        done: The share of its work that is done, 0 to 1.
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
        """Seconds that it is expected to need from now on."""
        return self.cost_s * (1 - self.done)

    @property
    def work_s(self) -> float:
        """Seconds that count against the limit on work: 0 for a guess."""
        if self.is_guess:
            return self.counted_s or 0.0
        return self.cost_s

    @property
    def told_s(self) -> float:
        """Seconds that it adds to the Retry-After of a refused client."""
        left_s = self.work_s * (1 - self.done)
        return left_s or min(self.left_s, _MOST_GUESSED_S)

    @property
    def reached(self) -> float:
        """Its client's account, counting only the work that is done."""
        return self.start + self.cost_s * self.done


def check_room(
    newcomer: QueuedJob[Any],
    waiting: Sequence[QueuedJob[Any]],
    serving: Sequence[QueuedJob[Any]],
    limits: QueueLimits,
    is_ready: Callable[[str], bool],
    devices: int = 1,
) -> None:
    """Raise :class:`Overloaded` if a job would exceed a limit; an empty queue takes every job.

    Args:
        newcomer: The job, which is not in the queue yet.
        waiting: The jobs in the queue.
        serving: The jobs that run.
        limits: The limits.
        is_ready: Whether jobs of a group can start.
        devices: The number of devices that take jobs off the queue.
    """
    held = [queued for queued in waiting if not queued.is_patient]
    if not held:
        return

    def full(what: str, setting: str, rivals: Sequence[QueuedJob[Any]]) -> Overloaded:
        # The time for half of the queue: all clients that are refused now come back together, and need room.
        ahead = [*rivals, *(queued for queued in waiting if queued.is_patient)]
        return Overloaded(
            what,
            retry_after_s=(sum(one.told_s for one in serving) + sum(one.told_s for one in ahead) / 2) / devices,
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
