"""Jobs about a VAE on an engine of this machine: their size, their plan, and their result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..engine import Engine, frames_of, to_pixels, to_unit
from ..errors import CannotLower, EngineFailure, TooLarge
from ..models import ModelSpec, Normalisation, latent_space
from ..protocol import DecodeRequest, Scaling, VaeTask, WireTensor
from ..protocol.torch import from_torch, to_torch
from .scheduling.batching import concatenate
from .scheduling.job import Job, RunInfo
from .scheduling.limits import PictureSize

#: What Stable Diffusion's decoder needs for a pixel.  The cost of models that are not loaded yet, or not plannable.
FLOPS_PER_PIXEL = 9.5e6


class PlanKey(NamedTuple):
    """What the arithmetic of a job follows from."""

    model: str
    task: VaeTask
    size: PictureSize


def plan_key(job: Job) -> PlanKey:
    """Return what the plan of a job depends on."""
    return PlanKey(job.spec.name, job.task, job.size)


def guessed_flops(job: Job) -> float:
    return job.size.pixels * FLOPS_PER_PIXEL


@dataclass(frozen=True, slots=True)
class Run:
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
        size = self.jobs[0].size
        size = size._replace(batch=size.batch * len(self.jobs))
        try:
            plan = self.engine.plan(self.jobs[0].task, *size, budget_bytes=budget_bytes)
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
            sent=_normalisation(request.scaling, self.engine.spec),
            height=request.height,
            width=request.width,
            budget_bytes=budget_bytes,
            progress=self.progress,
            should_stop=self.should_stop,
        )
        if request.output == "signed":
            return sample
        sample = frames_of(sample)
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
        wanted = _normalisation(request.scaling, self.engine.spec)
        return self.engine.encode(image, wanted=wanted, sample=request.sample, seed=request.seed, **how)


def _normalisation(scaling: Scaling, spec: ModelSpec) -> Normalisation | None:
    """The wire's word for it → the engine's: None is VAE space."""
    return latent_space.normalisation_of(spec, scaling.by, scaling.scaling_factor, scaling.shift_factor)
