"""The backend on this machine: the engine behind the waiting line.

The only file of this room that knows the engine or torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..engine import Engine, EngineOptions, map_torch_errors, threads_of, to_pixels, to_unit
from ..engine.loading import config_before_loading
from ..engine.options import choose_device, choose_dtype
from ..errors import CannotLower, EngineFailure, HybridgeError, OutOfMemory, TooLarge
from ..models import ModelSpec, Normalisation, latent_space
from ..protocol import DecodeRequest, Scaling, Task, WireTensor
from ..protocol.torch import from_torch, to_torch
from .scheduling.backend import BackendLoad, ModelInfo
from .scheduling.batching import batch_key, concatenate, size_of
from .scheduling.cost_cache import CostCache
from .scheduling.device_thread import DeviceThread, PendingJob
from .scheduling.job import Job, ProgressCallback, Result, RunInfo
from .scheduling.model_cache import ModelCache, Source
from .scheduling.queue import QueueLimits

#: What Stable Diffusion's decoder needs for a pixel.  The cost of models that are not loaded yet, or not plannable.
_FLOPS_PER_PIXEL = 9.5e6

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
        limits: Of the waiting line, instead of ``queue_limit``.
        memory_bytes: What weights and running plans may take together; None for no bound.
        batch_limit: Jobs that may share a run; None decides for each device.
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
    ) -> None:
        options = options or EngineOptions()
        self._infos = {name: _info_of(engine) for name, engine in engines.items()}
        self._infos |= {spec.name: _info_before_loading(spec, options) for spec in cold}
        self._flops: CostCache[_Size] = CostCache(self._planned)
        self._batch_limit = batch_limit
        self._patience_s = _PATIENCE_S
        self._models: ModelCache[Engine] = ModelCache(
            engines,
            {spec.name: _source(spec, options) for spec in cold},
            memory_bytes=memory_bytes,
            on_change=lambda: self._device.queue.notify(),
            on_failure=lambda name, error: self._device.fail(name, error),
        )
        self._device = DeviceThread(
            self._models, self._perform, limits or QueueLimits(jobs=queue_limit), self._may_share
        )

    def info(self) -> Sequence[ModelInfo]:
        return [self._info(name) for name in self._infos]

    def cost(self, job: Job) -> float:
        flops = self._flops.now(_size(job))
        return self._device.cost_model.seconds(
            f"{job.spec.name} {job.task}", _guessed(job) if flops is None else flops
        )

    async def run(self, job: Job, on_progress: ProgressCallback | None = None) -> Result:
        size = _size(job)
        flops = self._flops.known(size)
        if flops is not None:
            return await self._device.run(PendingJob(job, flops, batch_key(job), on_progress))
        pending = PendingJob(job, _guessed(job), batch_key(job), on_progress, is_guess=True)
        if self._models.is_ready(job.spec.name):
            # Planning takes long.  Meanwhile the job has its place in the line, with a guess.
            self._flops.find(size, lambda flops: self._device.plan(pending, flops))
        return await self._device.run(pending)

    def load(self) -> BackendLoad:
        waiting = self._device.queue.waiting()
        standings = {name: self._models.state_of(name) for name in self._infos}
        return BackendLoad(
            waiting=len(waiting),
            waiting_cost=sum(queued.cost_s for queued in waiting),
            running=len(self._device.queue.serving()),
            weights_bytes=self._models.weights_bytes,
            loads={name: state_of.loads for name, state_of in standings.items()},
            evictions={name: state_of.evictions for name, state_of in standings.items()},
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
        before, engine, state_of = self._infos[name], self._models.peek(name), self._models.state_of(name)
        info = before if engine is None else _info_of(engine)
        return ModelInfo(
            before.spec,
            info.device,
            info.device_reason,
            info.dtype,
            info.dtype_reason,
            None if engine is None else engine.weights_bytes,
            state_of.state,
            state_of.failure,
            info.threads,
            info.config,
        )

    def _may_share(self, engine: Engine) -> int:
        """How many jobs may share a run.

        On a CPU none: the engine runs the items of a batch one after another, so the first would wait for the last
        and nobody would gain.  Not where bits count either: a GPU's libraries choose their kernels by the shape.
        """
        if self._batch_limit is not None:
            return self._batch_limit
        return 1 if engine.device.value.type == "cpu" or engine.modes == ("whole",) else _BATCH

    def _planned(self, size: _Size) -> float | None:
        """The FLOPs of a size's plan; None while there is nothing to plan with."""
        engine = self._models.peek(size.model)
        if engine is None:
            return None
        try:
            return float(engine.plan(size.task, size.batch, size.height, size.width).flops)
        except HybridgeError:  # not plannable, or the engine will say what is wrong with it
            return size.pixels * _FLOPS_PER_PIXEL

    def _perform(
        self,
        engine: Engine,
        jobs: Sequence[Job],
        progress: Callable[[int, int], None],
        should_stop: Callable[[], bool],
    ) -> Sequence[Result]:
        """Runs jobs that may share a run, within the memory that is left, and once more in less if that fails."""
        run = _Run(engine, jobs, progress, should_stop)
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

    def _fit(self, run: _Run) -> tuple[int | None, RunInfo]:
        """The budget for a run, and what comes of it; lets idle models leave if it takes that."""
        budget_bytes = _budget(self._models.room_bytes())
        try:
            return budget_bytes, run.plan(budget_bytes)
        except TooLarge as refusal:
            if refusal.least_bytes is None or len(run.jobs) > 1:  # no model leaves for a batch that can be split
                raise
            budget_bytes = _budget(self._models.make_room(refusal.least_bytes))
        return budget_bytes, run.plan(budget_bytes)

    def _within(self, run: _Run, budget_bytes: int | None, ran: RunInfo) -> Sequence[Result]:
        engine = run.engine
        with (
            self._models.running(ran.peak_bytes or 0),
            map_torch_errors(f"a {engine.spec.name} job", engine.device.value),
        ):
            return [Result(tensor, ran=ran, shared_by=len(run.jobs)) for tensor in run.tensors(budget_bytes)]


class _Size(NamedTuple):
    """What the arithmetic of a job follows from."""

    model: str
    task: Task
    batch: int
    height: int
    width: int
    pixels: int


def _size(job: Job) -> _Size:
    return _Size(job.spec.name, job.task, *size_of(job), job.pixels)


def _guessed(job: Job) -> float:
    return job.pixels * _FLOPS_PER_PIXEL


@dataclass(frozen=True, slots=True)
class _Run:
    """Jobs on an engine: all of the same model, task, size and parameters."""

    engine: Engine
    jobs: Sequence[Job]
    progress: Callable[[int, int], None]
    should_stop: Callable[[], bool]

    def plan(self, budget_bytes: int | None) -> RunInfo:
        """What a budget leads to.

        Raises:
            TooLarge: when it leads nowhere.
        """
        batch, height, width = size_of(self.jobs[0])
        try:
            plan = self.engine.plan(
                self.jobs[0].task, batch * len(self.jobs), height, width, budget_bytes=budget_bytes
            )
        except CannotLower as reason:
            return RunInfo("whole", why=str(reason))
        return RunInfo(plan.mode, plan.peak_bytes, float(plan.flops), plan.reason)

    def smaller_than(self, peak_bytes: int) -> int | None:
        """A budget of half of what failed, or the least that works; None if that is no less."""
        half_bytes = peak_bytes // 2
        try:
            self.plan(half_bytes)
        except TooLarge as refusal:
            least_bytes = refusal.least_bytes
            return least_bytes if least_bytes is not None and least_bytes < peak_bytes else None
        return half_bytes

    def tensors(self, budget_bytes: int | None) -> list[WireTensor]:
        """What each of the jobs asks for."""
        tensors = [job.tensor for job in self.jobs]
        source = to_torch(concatenate(tensors))
        made = self._decode if self.jobs[0].task == "decode" else self._encode
        found = made(source, budget_bytes)
        if len(tensors) == 1:
            return [from_torch(found)]
        return [from_torch(part) for part in found.split([tensor.shape[0] for tensor in tensors])]

    def _decode(self, latents: Any, budget_bytes: int | None) -> Any:
        job = self.jobs[0]
        request = job.request
        assert isinstance(request, DecodeRequest)  # noqa: S101 - what the task says
        sample = self.engine.decode(
            latents,
            sent=_normalisation(request.scaling, job.spec),
            height=request.height,
            width=request.width,
            budget_bytes=budget_bytes,
            progress=self.progress,
            should_stop=self.should_stop,
        )
        if request.output == "signed":
            return sample
        return to_unit(sample) if request.output == "unit" else to_pixels(sample)

    def _encode(self, image: Any, budget_bytes: int | None) -> Any:
        job = self.jobs[0]
        request = job.request
        if isinstance(request, DecodeRequest) or not isinstance(request.image, WireTensor):
            raise EngineFailure("a picture file reached the device unread")
        how: dict[str, Any] = {
            "value_range": request.value_range,
            "budget_bytes": budget_bytes,
            "progress": self.progress,
            "should_stop": self.should_stop,
        }
        if request.moments:
            return self.engine.moments(image, **how)
        wanted = _normalisation(request.scaling, job.spec)
        return self.engine.encode(image, wanted=wanted, sample=request.sample, seed=request.seed, **how)


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


def _normalisation(scaling: Scaling, spec: ModelSpec) -> Normalisation | None:
    """The wire's word for it → the engine's: None is VAE space."""
    return latent_space.normalisation_of(spec, scaling.by, scaling.scaling_factor, scaling.shift_factor)
