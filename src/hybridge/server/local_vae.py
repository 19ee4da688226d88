"""VAEs on the engines of this machine: their jobs' plans, runs and results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..engine import Engine, EngineOptions, frames_of, map_torch_errors, threads_of, to_pixels, to_unit
from ..engine.identity import Identity
from ..engine.loading import config_before_loading, statistics_before_loading
from ..engine.options import choose_device, choose_dtype
from ..errors import CannotLower, EngineFailure, HybridgeError, OutOfMemory, RequestError, TooLarge
from ..models import ModelSpec, Normalisation, latent_space
from ..models.doctor.causes import Finding
from ..models.doctor.numbers import examine_output, examine_pixels, vary
from ..models.doctor.requests import examine_elements, refuse_errors
from ..protocol import DecodeRequest, Scaling, VaeTask, WireTensor
from ..protocol.receipt import Receipt
from ..protocol.torch import from_torch, to_torch
from .local_models import LocalModels
from .scheduling.backend import ModelInfo
from .scheduling.cost_cache import CostCache
from .scheduling.film import Film
from .scheduling.job import RunInfo
from .scheduling.limits import PictureSize
from .scheduling.model_slot import Source
from .scheduling.vae_job import VaeJob, VaeResult

#: FLOPs for each pixel of Stable Diffusion's decoder: the guess for models that are not loaded or have no plan.
FLOPS_PER_PIXEL = 9.5e6

#: Characters of what torch says of a size that layers do not take, and those that are compared.
_MOST_SHOWN, _ALIKE = 200, 60

#: Pictures of different requests in one run, on devices where that is faster.
_BATCH = 8


class PlanKey(NamedTuple):
    """What determines the FLOPs of a job."""

    model: str
    task: VaeTask
    size: PictureSize
    inpaints: bool = False


def plan_key(job: VaeJob) -> PlanKey:
    """Return what the plan of a job depends on."""
    return PlanKey(job.spec.name, job.task, job.size, job.inpaints)


@dataclass(frozen=True, slots=True)
class Run:
    """Jobs on an engine: all of the same model, task, size and parameters."""

    engine: Engine
    jobs: Sequence[VaeJob]
    progress: Callable[[int, int], None]
    should_stop: Callable[[], bool]

    def plan(self, budget_bytes: int | None) -> RunInfo:
        """Return how the jobs would run within a budget.

        Raises:
            TooLarge: when no plan fits.
        """
        size = self.jobs[0].size
        size = size._replace(batch=size.batch * len(self.jobs))
        try:
            first = self.jobs[0]
            what = {"frames_leave": first.film is not None, "inpaints": first.inpaints}
            plan = self.engine.plan(first.task, *size, budget_bytes=budget_bytes, **what)
        except CannotLower as reason:
            return RunInfo("whole", why=str(reason))
        exactness = self.engine.exactness_told()
        return RunInfo(plan.mode, plan.peak_bytes, float(plan.flops), plan.reason, exactness)

    def tensors(
        self, budget_bytes: int | None, receipt: Callable[[bool], Receipt]
    ) -> list[tuple[WireTensor | None, tuple[Finding, ...]]]:
        """What each of the jobs asks for, None where a film took it, and what its sender should hear of."""
        tensors = [job.tensor for job in self.jobs]
        before = [_examined(job, self.engine.spec) for job in self.jobs]
        if self.jobs[0].film is not None:
            self.jobs[0].film.begin(receipt)
            self._decode_film(self.jobs[0].film, budget_bytes)
            return [(None, before[0])]
        source = to_torch(_concatenate(tensors))
        made = self._decode if self.jobs[0].task == "decode" else self._encode
        found = made(source, budget_bytes)
        parts = [found] if len(tensors) == 1 else found.split([tensor.shape[0] for tensor in tensors])
        return [
            (from_torch(_shown(job, part)), (*notes, *_examined_answer(job, part)))
            for job, notes, part in zip(self.jobs, before, parts, strict=True)
        ]

    def _decode_film(self, film: Film, budget_bytes: int | None) -> None:
        latents = to_torch(self.jobs[0].tensor)
        self._decode(latents, budget_bytes, on_frames=lambda frames: film.put(frames.numpy()))
        film.end()

    def _decode(
        self, latents: Any, budget_bytes: int | None, on_frames: Callable[[Any], None] | None = None
    ) -> Any:
        job = self.jobs[0]
        request = job.request
        assert isinstance(request, DecodeRequest)  # noqa: S101 - what the task says
        return self.engine.decode(
            latents,
            sent=_normalisation(request.scaling, self.engine.spec),
            height=request.height,
            width=request.width,
            budget_bytes=budget_bytes,
            progress=self.progress,
            should_stop=self.should_stop,
            on_frames=on_frames,
            timestep=request.decode_timestep,
            noise_scale=request.decode_noise_scale,
            seed=request.seed,
            chunk=request.decode_chunk_size,
            image=None if request.image is None else to_torch(request.image),
            mask=None if request.mask is None else to_torch(request.mask),
        )

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
        wanted = _normalisation(request.scaling, self.engine.spec)
        return self.engine.encode(image, wanted=wanted, sample=request.sample, seed=request.seed, **how)


class VaeModels(LocalModels[Engine, VaeJob]):
    """The VAEs of a backend.

    Args:
        engines: Loaded ones, by model name.
        cold: Models that are loaded when they are first needed.
        options: How those are loaded.
        batch_limit: Jobs that may share a run; None decides for each device.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        cold: Sequence[ModelSpec],
        options: EngineOptions,
        batch_limit: int | None,
    ) -> None:
        self._engines, self._cold, self._options = engines, cold, options
        self._infos = {name: _info_of(engine) for name, engine in engines.items()}
        self._infos |= {spec.name: _info_before_loading(spec, options) for spec in cold}
        self._flops: CostCache[PlanKey] = CostCache(self._planned)
        self._batch_limit = batch_limit

    @property
    def parts(self) -> Sequence[str]:
        return list(self._infos)

    @property
    def loaded(self) -> Mapping[str, Engine]:
        return self._engines

    def sources(self) -> dict[str, Source[Engine]]:
        return {spec.name: _source(spec, self._options) for spec in self._cold}

    def info(self, part: str) -> ModelInfo:
        engine, state = self.engine_of(part), self._cache.state_of(part)
        info = self._infos[part] if engine is None else _info_of(engine)
        return replace(info, state=state.state, failure=state.failure)

    def fingerprint(self, part: str) -> Mapping[str, Any]:
        engine = self.engine_of(part)
        spec = self._infos[part].spec
        assert isinstance(spec, ModelSpec)  # noqa: S101 - what this kind has
        identity = Identity.of_model(spec) if engine is None else engine.identity
        if identity is None:
            return {}
        return {"revision": identity.revision, "weights": identity.weights_hash(wait=True)}

    def flops(self, job: VaeJob) -> float | None:
        return self._flops.now(plan_key(job))

    def known_flops(self, job: VaeJob) -> float | None:
        return self._flops.known(plan_key(job))

    def guessed_flops(self, job: VaeJob) -> float:
        return job.size.pixels * FLOPS_PER_PIXEL

    def find_flops(self, job: VaeJob, callback: Callable[[float], None]) -> None:
        self._flops.find(plan_key(job), callback)

    def may_share(self, engine: Engine) -> int:
        """Return how many jobs may share a run.

        On a CPU only one: the engine runs the items of a batch one after another, so the first would wait for the
        last without any gain.  Only one in bitwise mode, too: a GPU's libraries choose their kernels by the shape.
        """
        if self._batch_limit is not None:
            return self._batch_limit
        return 1 if engine.device.value.type == "cpu" or engine.modes == ("whole",) else _BATCH

    def close(self) -> None:
        self._flops.close()

    def _planned(self, key: PlanKey) -> float | None:
        """Return the FLOPs of a plan; None while the model is not loaded."""
        engine = self.engine_of(key.model)
        if engine is None:
            return None
        try:
            return float(engine.plan(key.task, *key.size, inpaints=key.inpaints).flops)
        except HybridgeError:  # there is no plan, or the run will raise the error
            return key.size.pixels * FLOPS_PER_PIXEL

    def perform(
        self,
        engine: Engine,
        jobs: Sequence[VaeJob],
        progress: Callable[[int, int], None],
        should_stop: Callable[[], bool],
    ) -> Sequence[VaeResult]:
        """Run jobs within the memory that is left, and once more with a smaller plan if memory runs out."""
        run = Run(engine, jobs, progress, should_stop)
        budget_bytes, ran = self._fit(run)
        try:
            return self._within(run, budget_bytes, ran)
        except OutOfMemory as failure:
            refusal = OutOfMemory(failure.what, hint=failure.hint)
        # Outside of the except block, because the failure's traceback holds the tensors of the failed run.
        if len(jobs) > 1 or ran.peak_bytes is None:
            raise refusal
        self._cache.release_idle()
        first = jobs[0]
        smaller_bytes = engine.smaller_budget(
            first.task, *first.size, peak_bytes=ran.peak_bytes, inpaints=first.inpaints
        )
        if smaller_bytes is None:
            raise refusal
        smaller = run.plan(smaller_bytes)
        reason = f"the device had no room for {ran.peak_bytes} bytes in mode {ran.mode}; {smaller.why}"
        return self._within(run, smaller_bytes, replace(smaller, why=reason))

    def _fit(self, run: Run) -> tuple[int | None, RunInfo]:
        """Return the budget of a run and how it would run; evict idle models if it does not fit otherwise."""
        budget_bytes = _budget(self._cache.room_bytes())
        try:
            return budget_bytes, run.plan(budget_bytes)
        except TooLarge as refusal:
            if refusal.least_bytes is None or len(run.jobs) > 1:  # a batch can be split: no model is evicted for it
                raise
            budget_bytes = _budget(self._cache.make_room(refusal.least_bytes))
        return budget_bytes, run.plan(budget_bytes)

    def _within(self, run: Run, budget_bytes: int | None, ran: RunInfo) -> Sequence[VaeResult]:
        engine, receipt = run.engine, _receipt_of(run.engine, ran)
        with (
            self._cache.running(0) as grow,
            map_torch_errors(f"a {engine.spec.name} job", engine.device.value),
        ):
            # Since the run was planned, a model that loads may have taken the room.
            grow(ran.peak_bytes or 0)
            try:
                made = run.tensors(budget_bytes, receipt)
            except (EngineFailure, ValueError) as failure:  # torch checks some shapes with the latter
                said = str(failure.saw if isinstance(failure, EngineFailure) else failure)
                # There is no plan because the layers' shapes alone said the same, in nearly the same words.
                if ran.peak_bytes is None and said and said[:_ALIKE] in ran.why:
                    raise _impossible(run.jobs[0], said) from None
                raise
            return [
                VaeResult(tensor, ran=ran, shared_by=len(run.jobs), findings=findings, receipt=receipt)
                for tensor, findings in made
            ]


def _impossible(job: VaeJob, said: str) -> RequestError:
    """Return the error for a size that the model's layers do not take."""
    size = f"{job.size.width}×{job.size.height}" + (f", {job.size.frames} frames" if job.size.frames > 1 else "")
    return RequestError(
        f"the layers of {job.spec.name} do not {job.task} this size",
        saw=f"{size}: {said[:_MOST_SHOWN]}",
        hint="a larger picture, or more frames",
    )


def _concatenate(tensors: Sequence[WireTensor]) -> WireTensor:
    """Concatenate tensors of one dtype and shape (N, …) along their first axis."""
    first = tensors[0]
    if len(tensors) == 1:
        return first
    shape = (sum(tensor.shape[0] for tensor in tensors), *first.shape[1:])
    return WireTensor(first.dtype, shape, b"".join(tensor.data for tensor in tensors), first.channels_last)


def _shown(job: VaeJob, made: Any) -> Any:
    """What the engine made, as the job asks for it."""
    if not isinstance(job.request, DecodeRequest) or job.request.output == "signed":
        return made
    made = frames_of(made)
    return to_unit(made) if job.request.output == "unit" else to_pixels(made)


def _examined(job: VaeJob, spec: ModelSpec) -> tuple[Finding, ...]:
    """What the sender should hear of, now that the numbers can be looked at; the device thread has time for that.

    Raises:
        RequestError: for latents that would give nothing.
    """
    request = job.request
    if not isinstance(request, DecodeRequest):
        is_guessed = request.value_range == "auto" and job.tensor.dtype in ("float32", "float16")  # without a copy
        return (*job.findings, *(examine_pixels(job.tensor.to_numpy()) if is_guessed else ()))
    sent = _normalisation(request.scaling, spec)
    found = (*job.findings, *examine_elements(request.latents, spec, sent, request.height, request.width))
    refuse_errors(found, spec)
    return found


def _examined_answer(job: VaeJob, made: Any) -> Iterator[Finding]:
    request = job.request
    if isinstance(request, DecodeRequest):
        yield from examine_output(made, lambda: vary(request.latents.to_numpy()))


def _receipt_of(engine: Engine, ran: RunInfo) -> Callable[[bool], Receipt]:
    """Return what makes the receipt; it must not hold the engine, which may leave before the answer is sent."""
    facts, identity = {**engine.facts, "mode": ran.mode}, engine.identity
    return lambda wait: Receipt.of(facts | {"weights": identity and identity.weights_hash(wait=wait)})


def _normalisation(scaling: Scaling, spec: ModelSpec) -> Normalisation | None:
    """Convert the protocol's scaling to the engine's normalisation; None is VAE space."""
    return latent_space.normalisation_of(spec, scaling.by, scaling.scaling_factor, scaling.shift_factor)


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
        statistics=engine.statistics,
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
        statistics=statistics_before_loading(spec, dtype.value),
    )


def _source(spec: ModelSpec, options: EngineOptions) -> Source[Engine]:
    return Source(lambda: Engine.expected_bytes(spec, options), lambda: Engine.load(spec, options))
