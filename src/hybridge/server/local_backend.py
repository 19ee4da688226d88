"""The backend on this machine: the engine behind the queue.

Of this room, the files called ``local_…`` alone know the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast, overload

from ..engine import Engine, EngineOptions, map_torch_errors, threads_of
from ..engine.loading import config_before_loading
from ..engine.options import choose_device, choose_dtype
from ..engine.text import TextEngine
from ..errors import HybridgeError, OutOfMemory, TooLarge
from ..models import ModelSpec, TextSpec
from .local_run import FLOPS_PER_PIXEL, PlanKey, Run, guessed_flops, plan_key
from .local_text import TextModels
from .scheduling.backend import BackendLoad, ModelInfo
from .scheduling.batching import batch_key
from .scheduling.cost_cache import CostCache
from .scheduling.device_thread import DeviceThread, PendingJob
from .scheduling.job import AnyJob, AnyResult, Job, ProgressCallback, PromptJob, PromptResult, Result, RunInfo
from .scheduling.model_cache import ModelCache
from .scheduling.model_slot import Source
from .scheduling.queue import QueueLimits

#: Seconds for which the end waits for a run or a load that cannot be stopped.
_PATIENCE_S = 10.0

#: Pictures of different requests in one run, on devices where that is faster.
_BATCH = 8


class LocalBackend:
    """Runs jobs on the engines of this machine.

    Args:
        engines: Loaded ones, by model name; from now on they belong to the device thread, and stay.
        queue_limit: Jobs that may wait; ``limits`` says more.
        cold: Models that are loaded when they are first asked for.
        options: How those are loaded.
        limits: Of the queue, instead of ``queue_limit``.
        memory_bytes: What weights and running plans may take together; None for no bound.
        batch_limit: Jobs that may share a run; None decides for each device.
        texts: Text encoders, which are loaded when they are first asked for.
        prompt_cache_bytes: What embeddings may take that are kept for who asks for them again.
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
    ) -> None:
        options = options or EngineOptions()
        self._texts = TextModels(texts, options, prompt_cache_bytes)
        self._infos = {name: _info_of(engine) for name, engine in engines.items()}
        self._infos |= {spec.name: _info_before_loading(spec, options) for spec in cold}
        self._flops: CostCache[PlanKey] = CostCache(self._planned)
        self._batch_limit = batch_limit
        self._patience_s = _PATIENCE_S
        self._models: ModelCache[Any] = ModelCache(
            engines,
            {**{spec.name: _source(spec, options) for spec in cold}, **self._texts.sources()},
            memory_bytes=memory_bytes,
            on_change=lambda: self._device.queue.notify(),
            on_failure=lambda name, error: self._device.fail(name, error),
        )
        self._device = DeviceThread(
            self._models, self._perform, limits or QueueLimits(jobs=queue_limit), self._may_share
        )

    def info(self) -> Sequence[ModelInfo]:
        texts = [
            self._texts.info(part, self._text_engine(part), self._models.state_of(part))
            for part in self._texts.parts
        ]
        return [*(self._info(name) for name in self._infos), *texts]

    def cost(self, job: AnyJob) -> float:
        if isinstance(job, PromptJob):
            flops = self._texts.flops(job, self._text_engine(job.part))
            flops = self._texts.guess(job) if flops is None else flops
            return self._device.cost_model.seconds(f"{job.part} {job.task}", flops)
        flops = self._flops.now(plan_key(job))
        return self._device.cost_model.seconds(
            f"{job.spec.name} {job.task}", guessed_flops(job) if flops is None else flops
        )

    @overload
    async def run(self, job: Job, on_progress: ProgressCallback | None = None) -> Result: ...

    @overload
    async def run(self, job: PromptJob, on_progress: ProgressCallback | None = None) -> PromptResult: ...

    async def run(self, job: AnyJob, on_progress: ProgressCallback | None = None) -> AnyResult:
        if isinstance(job, PromptJob):
            return await self._run_prompt(job, on_progress)
        key = plan_key(job)
        flops = self._flops.known(key)
        if flops is not None:
            return await self._device.run(PendingJob(job, flops, batch_key(job), on_progress))
        pending = PendingJob(job, guessed_flops(job), batch_key(job), on_progress, is_guess=True)
        if self._models.is_ready(job.spec.name):
            # Planning takes long.  Meanwhile the job has its place in the queue, with a guessed cost.
            self._flops.find(key, lambda flops: self._device.plan(pending, flops))
        return await self._device.run(pending)

    async def _run_prompt(self, job: PromptJob, on_progress: ProgressCallback | None) -> AnyResult:
        engine = self._text_engine(job.part)
        made = self._texts.made_before(job, engine)
        if made is not None:
            return made
        flops = self._texts.flops(job, engine)
        if flops is None:
            return await self._device.run(PendingJob(job, self._texts.guess(job), None, on_progress, is_guess=True))
        return await self._device.run(PendingJob(job, flops, None, on_progress))

    def load(self) -> BackendLoad:
        waiting = self._device.queue.waiting()
        states = {name: self._models.state_of(name) for name in (*self._infos, *self._texts.parts)}
        return BackendLoad(
            waiting=len(waiting),
            waiting_cost=sum(queued.cost_s for queued in waiting),
            running=len(self._device.queue.serving()),
            weights_bytes=self._models.weights_bytes,
            loads={name: state.loads for name, state in states.items()},
            evictions={name: state.evictions for name, state in states.items()},
        )

    def preload(self, name: str) -> None:
        """Loads a model now instead of when it is asked for, and waits for that.

        Raises:
            HybridgeError: when it cannot be loaded.
        """
        self._models.preload(name)

    def health(self) -> str | None:
        if self._device.queue.is_closed:
            return "shutting down"
        return None if self._device.is_alive else "the device thread has ended"

    def close(self) -> None:
        """Takes no more jobs, and finishes the running one and the load that is going on, if they end soon."""
        patience_s, self._patience_s = self._patience_s, 0.0
        self._flops.close()
        self._models.close(0.0)  # the device may wait for a load
        self._device.close(patience_s)
        self._models.close(min(patience_s, 1.0))  # nobody waits for a load any more

    @property
    def is_busy(self) -> bool:
        """Whether a thread still runs or loads; after :meth:`close`, one that cannot be stopped."""
        return self._device.is_alive or self._models.is_loading

    def _info(self, name: str) -> ModelInfo:
        before, engine, state = self._infos[name], self._vae_engine(name), self._models.state_of(name)
        info = before if engine is None else _info_of(engine)
        return ModelInfo(
            info.spec,
            info.device,
            info.device_reason,
            info.dtype,
            info.dtype_reason,
            None if engine is None else engine.weights_bytes,
            state.state,
            state.failure,
            info.threads,
            info.config,
        )

    def _vae_engine(self, name: str) -> Engine | None:
        """The engine, if it is loaded; what the model cache has under a model's own name is a VAE."""
        return cast("Engine | None", self._models.peek(name))

    def _text_engine(self, part: str) -> TextEngine | None:
        return cast("TextEngine | None", self._models.peek(part))

    def _may_share(self, engine: Engine | TextEngine) -> int:
        """How many jobs may share a run.

        On a CPU none: the engine runs the items of a batch one after another, so the first would wait for the last
        and nobody would gain.  Not where bits count either: a GPU's libraries choose their kernels by the shape.
        """
        if isinstance(engine, TextEngine):
            return 1
        if self._batch_limit is not None:
            return self._batch_limit
        return 1 if engine.device.value.type == "cpu" or engine.modes == ("whole",) else _BATCH

    def _planned(self, key: PlanKey) -> float | None:
        """The FLOPs of a size's plan; None while there is nothing to plan with."""
        engine = self._vae_engine(key.model)
        if engine is None:
            return None
        try:
            return float(engine.plan(key.task, *key.size).flops)
        except HybridgeError:  # not plannable, or the engine will say what is wrong with it
            return key.size.pixels * FLOPS_PER_PIXEL

    def _perform(
        self,
        engine: Engine | TextEngine,
        jobs: Sequence[AnyJob],
        progress: Callable[[int, int], None],
        should_stop: Callable[[], bool],
    ) -> Sequence[AnyResult]:
        if isinstance(engine, TextEngine):
            return [
                self._texts.perform(engine, job, self._models, progress, should_stop)
                for job in jobs
                if isinstance(job, PromptJob)
            ]
        return self._perform_vae(engine, [job for job in jobs if isinstance(job, Job)], progress, should_stop)

    def _perform_vae(
        self,
        engine: Engine,
        jobs: Sequence[Job],
        progress: Callable[[int, int], None],
        should_stop: Callable[[], bool],
    ) -> Sequence[Result]:
        """Runs jobs that may share a run, within the memory that is left, and once more in less if that fails."""
        run = Run(engine, jobs, progress, should_stop)
        budget_bytes, ran = self._fit(run)
        try:
            return self._within(run, budget_bytes, ran)
        except OutOfMemory as failure:
            refusal = OutOfMemory(failure.what, hint=failure.hint)
        # Outside of the except block, because the failure's traceback holds the tensors of the failed run.
        if len(jobs) > 1 or ran.peak_bytes is None:
            raise refusal
        self._models.release_idle()
        smaller_bytes = run.smaller_than(ran.peak_bytes)
        if smaller_bytes is None:
            raise refusal
        smaller = run.plan(smaller_bytes)
        reason = f"the device had no room for {ran.peak_bytes} bytes in mode {ran.mode}; {smaller.why}"
        return self._within(run, smaller_bytes, RunInfo(smaller.mode, smaller.peak_bytes, smaller.flops, reason))

    def _fit(self, run: Run) -> tuple[int | None, RunInfo]:
        """The budget for a run, and what comes of it; lets idle models leave if it takes that."""
        budget_bytes = _budget(self._models.room_bytes())
        try:
            return budget_bytes, run.plan(budget_bytes)
        except TooLarge as refusal:
            if refusal.least_bytes is None or len(run.jobs) > 1:  # no model leaves for a batch that can be split
                raise
            budget_bytes = _budget(self._models.make_room(refusal.least_bytes))
        return budget_bytes, run.plan(budget_bytes)

    def _within(self, run: Run, budget_bytes: int | None, ran: RunInfo) -> Sequence[Result]:
        engine = run.engine
        with (
            self._models.running(ran.peak_bytes or 0),
            map_torch_errors(f"a {engine.spec.name} job", engine.device.value),
        ):
            return [Result(tensor, ran=ran, shared_by=len(run.jobs)) for tensor in run.tensors(budget_bytes)]


def _budget(room_bytes: int | None) -> int | None:
    return None if room_bytes is None else max(1, room_bytes)


def _info_of(engine: Engine) -> ModelInfo:
    return ModelInfo(
        engine.spec,
        str(engine.device.value),
        engine.device.reason,
        str(engine.dtype.value).removeprefix("torch."),
        engine.dtype.reason,
        engine.weights_bytes,
        threads=threads_of(engine.device.value),
        config=engine.config,
    )


def _info_before_loading(spec: ModelSpec, options: EngineOptions) -> ModelInfo:
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, spec, device.value)
    return ModelInfo(
        spec,
        str(device.value),
        device.reason,
        str(dtype.value).removeprefix("torch."),
        dtype.reason,
        None,
        "cold",
        threads=threads_of(device.value),
        config=config_before_loading(spec),
    )


def _source(spec: ModelSpec, options: EngineOptions) -> Source[Engine]:
    return Source(lambda: Engine.expected_bytes(spec, options), lambda: Engine.load(spec, options))
