"""What the server's front needs from whatever runs the models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ...models import ModelSpec, TextSpec
from .job import Job, ProgressCallback, Result, ResultT, text_part


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that is served, and the choices that were made for it, each with its reason.

    Attributes:
        spec: What it is.
        device: Where it runs.
        device_reason: Why there.
        dtype: In which precision.
        dtype_reason: Why in this one.
        weights_bytes: What it takes; None while it is not loaded.
        state: ``cold`` models are loaded when they are asked for.
        failure: Why the last attempt to load it failed, if it did; a request tries again after a pause.
        threads: That compute on a CPU: the last bits of a picture depend on how many there are.  None elsewhere.
        config: What its module is made with, in JSON's types; clients put a module of their own in its place.
    """

    spec: ModelSpec | TextSpec
    device: str
    device_reason: str
    dtype: str
    dtype_reason: str
    weights_bytes: int | None
    state: Literal["cold", "loading", "loaded", "leaving"] = "loaded"
    failure: str | None = None
    threads: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)

    @property
    def part(self) -> str:
        """What is loaded for it: a model's VAE has the model's name, its text encoders one of their own."""
        return text_part(self.spec.name) if isinstance(self.spec, TextSpec) else self.spec.name


@dataclass(frozen=True, slots=True)
class BackendLoad:
    """How busy a backend is at the moment, and what it has done so far.

    Attributes:
        waiting: Jobs in the queue.
        waiting_cost: Their cost, in the unit of :meth:`Backend.cost`.
        running: Jobs on the device.
        weights_bytes: Of the models that are loaded.
        loads: How often each model was loaded.
        evictions: How often each model left to make room for another.
    """

    waiting: int
    waiting_cost: float
    running: int
    weights_bytes: int
    loads: Mapping[str, int] = field(default_factory=dict)
    evictions: Mapping[str, int] = field(default_factory=dict)


class Backend(Protocol):
    """Seven calls, none of which mentions a device or a framework."""

    def info(self) -> Sequence[ModelInfo]:
        """The models, in the order in which they were asked for."""
        ...

    def cost(self, job: Job[Result]) -> float:
        """How much work a job is: seconds of the device, as far as is known."""
        ...

    async def run(self, job: Job[ResultT], on_progress: ProgressCallback | None = None) -> ResultT:
        """Does the job; cancelling it gives up its place, and stops it if it runs.

        Args:
            job: Its ``client`` and ``is_patient`` are honoured.
            on_progress: Told of its progress, by backends that know of any.

        Raises:
            HybridgeError: Overloaded before it was accepted, unless it is patient; others when it failed.
        """
        ...

    def load(self) -> BackendLoad:
        """How busy it is; asked often, so it must not wait for the device."""
        ...

    def fingerprint(self, part: str) -> Mapping[str, Any]:
        """What tells the weights of a model from others; reads their files, which may take seconds.

        Args:
            part: As in :attr:`ModelInfo.part`.

        Returns:
            ``fingerprint``, or ``no_fingerprint`` with the reason; neither if this kind of model has none.
        """
        ...

    def health(self) -> str | None:
        """None while jobs are taken, else the reason why not."""
        ...

    def close(self) -> None:
        """Takes no more jobs, finishes the running one, and returns when the device is free."""
        ...
