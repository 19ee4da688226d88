"""Several members behind one queue, as one backend; :mod:`.dispatcher` says which job runs where."""

from __future__ import annotations

import math
import sys
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

from .backend import BackendLoad, ModelInfo
from .dispatcher import Dispatcher
from .job import Job, ProgressCallback, Result, ResultT
from .member import Member
from .queue import QueueLimits

#: Limits of the queues of members, which the pool's own queue stands before.
UNLIMITED = QueueLimits(sys.maxsize, math.inf, sys.maxsize)


class Pool(ABC):
    """A pool of any members.

    Args:
        members: The members by name.
        limits: Limits of the queue.
        patience_s: Seconds that jobs wait while no member works.
    """

    def __init__(
        self, members: Mapping[str, Member], limits: QueueLimits | None = None, patience_s: float = 0.0
    ) -> None:
        self.dispatcher = Dispatcher(self.expected_s, limits, patience_s)
        self.dispatcher.set_members(members)
        self._infos: Sequence[ModelInfo] = ()

    @abstractmethod
    def expected_s(self, job: Job[Any]) -> tuple[float, bool]:
        """Return the expected seconds of a job on a device, and whether they are a guess.

        Raises:
            RequestError: when the job cannot be done.
        """

    async def run(self, job: Job[ResultT], on_progress: ProgressCallback | None = None) -> ResultT:
        return cast("ResultT", await self.dispatcher.run(job, on_progress))

    def info(self) -> Sequence[ModelInfo]:
        """Return the models, each as on the member where it is most ready, with its state on each."""
        self._infos = merged({place.name: place.member.info() for place in self.dispatcher.places}, self._infos)
        return self._infos

    def load(self) -> BackendLoad:
        queue = self.dispatcher.queue
        waiting = queue.waiting()
        each = {
            place.name: replace(
                place.member.load(),
                failure=place.illness or ("it failed repeatedly" if place.is_resting else None),
            )
            for place in self.dispatcher.places
        }
        bounds = [load.memory_bytes for load in each.values()]
        return BackendLoad(
            waiting=len(waiting),
            waiting_cost=sum(queued.cost_s for queued in waiting),
            running=len(queue.serving()),
            weights_bytes=sum(load.weights_bytes for load in each.values()),
            memory_bytes=None if None in bounds or not bounds else sum(bound or 0 for bound in bounds),
            host_bytes=sum(load.host_bytes for load in each.values()),
            loads=_summed(load.loads for load in each.values()),
            restores=_summed(load.restores for load in each.values()),
            evictions=_summed(load.evictions for load in each.values()),
            replicas=each,
        )

    def health(self) -> str | None:
        """Return None while one member works."""
        if self.dispatcher.queue.is_closed:
            return "shutting down"
        ill = self.dispatcher.illnesses()
        return None if ill is None else "; ".join(f"{name}: {reason}" for name, reason in ill.items())


class LocalMember(Member, Protocol):
    """A backend in this process, whose own queue refuses nothing."""

    def expected_s(self, job: Job[Any]) -> tuple[float, bool]:
        """Return the expected seconds of a job; see :meth:`Pool.expected_s`."""
        ...

    def kept_result(self, job: Job[Any]) -> Result | None:
        """Return the result of a job if it is kept from before."""
        ...

    def fingerprint(self, part: str) -> Mapping[str, Any]:
        """See :meth:`Backend.fingerprint`."""
        ...

    def preload(self, name: str) -> None:
        """Load a model, and wait until it is loaded."""
        ...

    def close(self) -> None:
        """See :meth:`Backend.close`."""
        ...

    @property
    def is_busy(self) -> bool:
        """Whether it still runs a job or loads a model."""
        ...


class DevicePool(Pool):
    """The devices of this machine: each has models, memory and a queue of its own, and all serve the same models.

    Args:
        members: The backends by name.
        limits: Limits of the queue.
    """

    def __init__(self, members: Mapping[str, LocalMember], limits: QueueLimits | None = None) -> None:
        self._members = members
        super().__init__(members, limits)

    def expected_s(self, job: Job[Any]) -> tuple[float, bool]:
        return self._nearest(job.part).expected_s(job)

    async def run(self, job: Job[ResultT], on_progress: ProgressCallback | None = None) -> ResultT:
        for member in self._members.values():
            if (kept := member.kept_result(job)) is not None:
                return cast("ResultT", kept)
        return await super().run(job, on_progress)

    def fingerprint(self, part: str) -> Mapping[str, Any]:
        return self._nearest(part).fingerprint(part)

    def preload(self, name: str) -> None:
        """Load a model on every device, and wait until it is loaded.

        Raises:
            HybridgeError: when it cannot be loaded.
        """
        for member in self._members.values():
            member.preload(name)

    def close(self) -> None:
        """Take no more jobs, fail those that wait, and close the devices together."""
        self.dispatcher.close()
        threads = [threading.Thread(target=member.close, daemon=True) for member in self._members.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @property
    def is_busy(self) -> bool:
        """Whether a device still runs a job or loads a model."""
        return any(member.is_busy for member in self._members.values())

    def _nearest(self, part: str) -> LocalMember:
        """Return a device that works and has the model loaded, if there is one, else the likeliest."""
        return min(
            self._members.values(), key=lambda member: (member.health() is not None, not member.is_ready(part))
        )


#: The states of a model, the readiest first.
_READINESS = ("loaded", "loading", "leaving", "cold")


def merged(told: Mapping[str, Sequence[ModelInfo]], before: Sequence[ModelInfo] = ()) -> Sequence[ModelInfo]:
    """Return each model as on the member where it is most ready, with its state on each.

    Args:
        told: What each member says.
        before: What was returned before, for models that no member speaks of.
    """
    found: dict[str, dict[str, ModelInfo]] = {info.part: {} for info in before}
    for name, infos in told.items():
        for info in infos:
            found.setdefault(info.part, {})[name] = info
    former = {info.part: info for info in before}
    return [
        replace(
            min(each.values(), key=lambda info: (_READINESS.index(info.state), info.failure is None)),
            replicas={name: info.failure or info.state for name, info in each.items()},
        )
        if each
        else replace(former[part], state="cold", replicas={})
        for part, each in found.items()
    ]


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)
