"""The backend on this machine: models and jobs of every kind behind one queue and one device thread.

Only the files called ``local_…`` know the engine, each of them one kind of model; this file knows none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ..engine import Engine, EngineOptions
from ..models import ModelSpec, TextSpec
from .local_models import LocalModels
from .local_text import TextModels
from .local_vae import VaeModels
from .prompt_disk_cache import PromptDiskCache
from .scheduling.backend import BackendLoad, ModelInfo
from .scheduling.device_thread import DeviceThread, PendingJob
from .scheduling.job import Job, ProgressCallback, Result, ResultT
from .scheduling.model_cache import ModelCache
from .scheduling.queue import QueueLimits

#: Seconds that shutdown waits for a run or a load that cannot be stopped.
_PATIENCE_S = 10.0


class LocalBackend:
    """Runs jobs on the engines of this machine.

    Args:
        engines: Loaded engines, by model name; the device thread owns them from now on, and they are not evicted.
        queue_limit: Jobs that may wait; ``limits`` says more.
        cold: VAEs that are loaded when they are first needed.
        options: How models are loaded.
        limits: Limits of the queue, instead of ``queue_limit``.
        memory_bytes: Limit of weights and running plans together; None for no limit.
        batch_limit: Jobs that may share a run; None decides for each device.
        texts: Text encoders, which are loaded when they are first needed.
        prompt_cache_bytes: Size of the cache of embeddings.
        prompt_disk_cache: Cache of embeddings on disk; the backend closes it.
        lora_folder: Folder of the LoRAs that requests for embeddings may name.
        offload_bytes: Host memory for text encoders that left an accelerator to make room.
        others: Models of further kinds.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        *,
        queue_limit: int = 64,
        cold: Sequence[ModelSpec] = (),
        options: EngineOptions | None = None,
        limits: QueueLimits | None = None,
        memory_bytes: int | None = None,
        batch_limit: int | None = None,
        texts: Sequence[TextSpec] = (),
        prompt_cache_bytes: int = 0,
        prompt_disk_cache: PromptDiskCache | None = None,
        lora_folder: Path | None = None,
        offload_bytes: int = 0,
        others: Sequence[LocalModels[Any, Any]] = (),
    ) -> None:
        options = options or EngineOptions()
        self._kinds: Sequence[LocalModels[Any, Any]] = (
            VaeModels(engines, cold, options, batch_limit),
            TextModels(texts, options, prompt_cache_bytes, batch_limit, prompt_disk_cache, lora_folder),
            *others,
        )
        self._kind_of = {part: kind for kind in self._kinds for part in kind.parts}
        self._patience_s = _PATIENCE_S
        self._memory_bytes = memory_bytes
        self._models: ModelCache[Any] = ModelCache(
            {part: engine for kind in self._kinds for part, engine in kind.loaded.items()},
            {part: source for kind in self._kinds for part, source in kind.sources().items()},
            memory_bytes=memory_bytes,
            on_change=lambda: self._device.queue.notify(),
            on_failure=lambda name, error: self._device.fail(name, error),
            host_bytes=offload_bytes,
        )
        for kind in self._kinds:
            kind.attach(self._models)
        limits = limits or QueueLimits(jobs=queue_limit)
        self._device = DeviceThread(self._models, self._perform, limits, self._may_share)

    def info(self) -> Sequence[ModelInfo]:
        return [kind.info(part) for part, kind in self._kind_of.items()]

    def cost(self, job: Job[Any]) -> float:
        kind = self._kind_of[job.part]
        flops = kind.flops(job)
        return self._device.cost_model.seconds(job.cost_key, kind.guessed_flops(job) if flops is None else flops)

    def is_ready(self, part: str) -> bool:
        """Return whether a model is loaded, so that a job for it can start."""
        return self._models.is_ready(part)

    def has_failed(self, part: str) -> bool:
        """Return whether loading a model has just failed, so that a job would get that error."""
        return self._models.has_failed(part)

    def may_share(self, part: str) -> int:
        """Return how many jobs of equal batch keys may share a run."""
        engine = self._models.peek(part)
        return 1 if engine is None else self._kind_of[part].may_share(engine)

    def expected_s(self, job: Job[Any]) -> tuple[float, bool]:
        """Return the expected seconds of a job on the device, and whether they are a guess.

        Raises:
            RequestError: when the job cannot be done.
        """
        kind, cost_model = self._kind_of[job.part], self._device.cost_model
        flops = kind.known_flops(job) if self._models.is_ready(job.part) else None
        is_guess = flops is None or not cost_model.knows(job.cost_key)
        return cost_model.seconds(job.cost_key, kind.guessed_flops(job) if flops is None else flops), is_guess

    def kept_result(self, job: Job[Any]) -> Result | None:
        """Return the result of a job if it is kept from before."""
        return self._kind_of[job.part].kept_result(job)

    async def run(self, job: Job[ResultT], on_progress: ProgressCallback | None = None) -> ResultT:
        return cast("ResultT", await self._run(job, on_progress))

    async def _run(self, job: Job[Any], on_progress: ProgressCallback | None) -> Result:
        kind = self._kind_of[job.part]
        kept = self.kept_result(job)
        if kept is not None:
            return kept
        flops = kind.known_flops(job)
        if flops is not None:
            return await self._device.run(PendingJob(job, flops, on_progress))
        pending = PendingJob(job, kind.guessed_flops(job), on_progress, is_guess=True)
        if self._models.is_ready(job.part):
            # Planning takes long.  Meanwhile the job is in the queue, with a guessed cost.
            kind.find_flops(job, lambda flops: self._device.plan(pending, flops))
        return await self._device.run(pending)

    def load(self) -> BackendLoad:
        waiting = self._device.queue.waiting()
        states = {part: self._models.state_of(part) for part in self._kind_of}
        return BackendLoad(
            waiting=len(waiting),
            waiting_cost=sum(queued.cost_s for queued in waiting),
            running=len(self._device.queue.serving()),
            weights_bytes=self._models.weights_bytes,
            memory_bytes=self._memory_bytes,
            host_bytes=self._models.host_bytes,
            loads={name: state.loads for name, state in states.items()},
            restores={name: state.restores for name, state in states.items()},
            evictions={name: state.evictions for name, state in states.items()},
        )

    def fingerprint(self, part: str) -> Mapping[str, Any]:
        return self._kind_of[part].fingerprint(part)

    def preload(self, name: str) -> None:
        """Load a model now instead of when it is first needed, and wait until it is loaded.

        Raises:
            HybridgeError: when it cannot be loaded.
        """
        self._models.preload(name)

    def health(self) -> str | None:
        if self._device.has_failed:
            return "the device thread has ended"
        return "shutting down" if self._device.queue.is_closed else None

    def close(self) -> None:
        """Take no more jobs; wait for the running job and a running load, for a limited time."""
        patience_s, self._patience_s = self._patience_s, 0.0
        for kind in self._kinds:
            kind.close()
        self._models.close(0.0)  # the device may wait for a load
        self._device.close(patience_s)
        self._models.close(min(patience_s, 1.0))  # no job waits for a load any more

    @property
    def is_busy(self) -> bool:
        """Whether a thread still runs a job or loads a model; after :meth:`close`, one that cannot be stopped."""
        return self._device.is_alive or self._models.is_loading

    def _may_share(self, job: Job[Any], engine: Any) -> int:
        return self._kind_of[job.part].may_share(engine)

    def _perform(
        self,
        engine: Any,
        jobs: Sequence[Job[Any]],
        progress: Callable[[int, int], None],
        should_stop: Callable[[], bool],
    ) -> Sequence[Result]:
        return self._kind_of[jobs[0].part].perform(engine, jobs, progress, should_stop)
