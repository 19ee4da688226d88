"""The backend on this machine: one thread that owns the device, with an engine for each model.

The only file of this room that knows the engine or torch.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..engine import Engine, failures_named, to_pixels, to_unit
from ..errors import EngineFailure, HybridgeError, ShuttingDown
from ..models import ModelSpec, Normalisation
from ..protocol import DecodeRequest, Scaling, WireTensor
from ..protocol.torch import from_torch, to_torch
from .backend import BackendLoad, ModelInfo
from .jobs import Job, Result
from .queue import WaitingLine

log = logging.getLogger("hybridge.device")


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """A job in the line, and where its result goes: a future that belongs to the event loop."""

    job: Job
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Result]
    since: float

    def resolve(self, outcome: Result | HybridgeError) -> None:
        try:
            self.loop.call_soon_threadsafe(self._set, outcome)
        except RuntimeError:  # the loop is gone, and with it whoever waited
            log.info("nobody waits any more for a %s job", self.job.spec.name)

    def _set(self, outcome: Result | HybridgeError) -> None:
        if self.future.done():
            return
        if isinstance(outcome, HybridgeError):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


class LocalBackend:
    """Runs jobs one after the other.

    Args:
        engines: By model name; from now on they belong to the device thread.
        queue_limit: Jobs that may wait.
    """

    def __init__(self, engines: Mapping[str, Engine], *, queue_limit: int = 64) -> None:
        self._engines = dict(engines)
        self._line: WaitingLine[_Waiting] = WaitingLine(queue_limit)
        self._running = 0
        self._thread = threading.Thread(target=self._serve, name="hybridge-device", daemon=True)
        self._thread.start()

    def info(self) -> Sequence[ModelInfo]:
        return [
            ModelInfo(
                engine.spec,
                str(engine.device.value),
                engine.device.reason,
                str(engine.dtype.value).removeprefix("torch."),
                engine.dtype.reason,
                engine.weights_bytes,
                engine.config,
            )
            for engine in self._engines.values()
        ]

    def cost(self, job: Job) -> float:
        return float(job.pixels)

    async def run(self, job: Job) -> Result:
        loop = asyncio.get_running_loop()
        waiting = _Waiting(job, loop, loop.create_future(), time.perf_counter())
        self._line.put(waiting)
        try:
            return await waiting.future
        except asyncio.CancelledError:
            self._line.leave(waiting)
            raise

    def load(self) -> BackendLoad:
        waiting = self._line.waiting()
        return BackendLoad(
            waiting=len(waiting),
            waiting_cost=sum(self.cost(one.job) for one in waiting),
            running=self._running,
            weights_bytes=sum(engine.weights_bytes for engine in self._engines.values()),
            loads=dict.fromkeys(self._engines, 1),
        )

    def health(self) -> str | None:
        if self._line.is_closed:
            return "shutting down"
        return None if self._thread.is_alive() else "the device thread has ended"

    def close(self) -> None:
        for waiting in self._line.close():
            waiting.resolve(
                ShuttingDown("the server shut down before this request was begun", hint="another server")
            )
        self._thread.join()

    def _serve(self) -> None:
        while (waiting := self._line.take()) is not None:
            if waiting.future.cancelled():
                continue
            begun, self._running = time.perf_counter(), 1
            engine = self._engines[waiting.job.spec.name]
            try:
                with failures_named(f"a {engine.spec.name} job", engine.device.value):
                    outcome: Result | HybridgeError = Result(_perform(engine, waiting.job))
            except HybridgeError as error:
                outcome = error
            except Exception as error:  # one broken job must not end the thread that all others need
                log.exception("a %s job failed", waiting.job.spec.name)
                outcome = EngineFailure("an unexpected failure in the engine", saw=type(error).__name__)
            ended, self._running = time.perf_counter(), 0
            self._line.served(ended - begun)
            if isinstance(outcome, Result):
                outcome.milliseconds.update(queue=1e3 * (begun - waiting.since), device=1e3 * (ended - begun))
            waiting.resolve(outcome)


def _perform(engine: Engine, job: Job) -> WireTensor:
    request, normalisation = job.request, _normalisation(job.request.scaling, job.spec)
    if isinstance(request, DecodeRequest):
        sample = engine.decode(
            to_torch(request.latents), sent=normalisation, height=request.height, width=request.width
        )
        if request.output == "signed":
            return from_torch(sample)
        return from_torch(to_unit(sample) if request.output == "unit" else to_pixels(sample))
    if not isinstance(request.image, WireTensor):
        raise EngineFailure("a picture file reached the device unread")
    if request.moments:
        return from_torch(engine.moments(to_torch(request.image), value_range=request.value_range))
    latents = engine.encode(
        to_torch(request.image),
        wanted=normalisation,
        value_range=request.value_range,
        sample=request.sample,
        seed=request.seed,
    )
    return from_torch(latents)


def _normalisation(scaling: Scaling, spec: ModelSpec) -> Normalisation | None:
    """The wire's word for it → the engine's: None is VAE space."""
    if scaling.by == "none":
        return None
    own = spec.normalisation
    if scaling.by == "model":
        shift = own.shift_factor if scaling.shift_factor is None else scaling.shift_factor
        return Normalisation(own.scaling_factor, shift)
    return Normalisation(scaling.scaling_factor or 1.0, scaling.shift_factor or 0.0)
