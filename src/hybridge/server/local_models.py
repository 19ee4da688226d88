"""What each kind of model does on this machine; the local backend knows all kinds by this class alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

from .scheduling.backend import ModelInfo
from .scheduling.job import Job, Result
from .scheduling.model_cache import ModelCache
from .scheduling.model_slot import LoadedModel, Source

EngineT = TypeVar("EngineT", bound=LoadedModel)
JobT = TypeVar("JobT", bound=Job[Any])


class LocalModels(ABC, Generic[EngineT, JobT]):
    """The models of one kind, each under its name in the model cache, which is called its part."""

    _cache: ModelCache[Any]

    def attach(self, cache: ModelCache[Any]) -> None:
        """Take the cache that loads these models; called once, before a job comes."""
        self._cache = cache

    def engine_of(self, part: str) -> EngineT | None:
        """The loaded model of a name; None while it is not loaded."""
        return cast("EngineT | None", self._cache.peek(part))

    @property
    @abstractmethod
    def parts(self) -> Sequence[str]:
        """The names of these models, in the order in which they were asked for."""

    @property
    def loaded(self) -> Mapping[str, EngineT]:
        """Models that the caller loaded; they stay."""
        return {}

    @abstractmethod
    def sources(self) -> Mapping[str, Source[EngineT]]:
        """Where the other models are loaded from."""

    @abstractmethod
    def info(self, part: str) -> ModelInfo:
        """What the server tells about a model."""

    def fingerprint(self, part: str) -> Mapping[str, Any]:
        """What tells a model's weights from others; see :meth:`Backend.fingerprint`."""
        return {}

    def kept_result(self, job: JobT) -> Result | None:
        """The result of a job, if it is kept from before."""
        return None

    @abstractmethod
    def flops(self, job: JobT) -> float | None:
        """The arithmetic of a job, computed here if need be; None while there is nothing to compute it from.

        Raises:
            RequestError: when the job cannot be done.
        """

    def known_flops(self, job: JobT) -> float | None:
        """The arithmetic of a job; None if that takes time to compute.

        Raises:
            RequestError: when the job cannot be done.
        """
        return self.flops(job)

    @abstractmethod
    def guessed_flops(self, job: JobT) -> float:
        """The arithmetic of a job whose model is not loaded."""

    def find_flops(self, job: JobT, callback: Callable[[float], None]) -> None:
        """Compute in another thread what :meth:`known_flops` does not know, and call back from there."""

    def may_share(self, engine: EngineT) -> int:
        """How many jobs of equal batch keys may share a run."""
        return 1

    @abstractmethod
    def perform(
        self,
        engine: EngineT,
        jobs: Sequence[JobT],
        progress: Callable[[int, int], None],
        should_stop: Callable[[], bool],
    ) -> Sequence[Result]:
        """Run jobs on the device thread, and return a result for each.

        Args:
            engine: The loaded model.
            jobs: One, or several of equal batch keys.
            progress: Called between two steps with the number of steps done and of all; short jobs run meanwhile.
            should_stop: Returns True once the clients of these jobs have left.

        Raises:
            HybridgeError: when they fail.
        """

    def close(self) -> None:
        """End the threads of this kind."""
