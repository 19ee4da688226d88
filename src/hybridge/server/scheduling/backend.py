"""The interface between the HTTP side of the server and whatever runs the models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ...models import ModelSpec, TextSpec
from .job import Job, ProgressCallback, ResultT, text_part


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that is served, and the choices that were made for it, each with its reason.

    Attributes:
        spec: The model.
        device: Where it runs.
        device_reason: Why it runs there.
        dtype: Its precision.
        dtype_reason: Why it has this precision.
        weights_bytes: Bytes of its weights; None while it is not loaded.
        state: ``cold`` models are loaded when they are needed.
        failure: Why the last attempt to load it failed, if it did; a request tries again after a pause.
        threads: Number of threads on a CPU, on which the last bits of a picture depend; None on other devices.
        config: The module's config as JSON values, from which clients make a stand-in module.
        statistics: The buffers with statistics of latents that are among its weights, for the same; empty if it has
            none, or none that can be read before its weights are downloaded.
        replicas: Its state on each replica or device, or why it could not be loaded there; empty for a single one.
        loras: Names of the LoRAs that requests for text embeddings may name.
        host_bytes: Bytes of its weights that wait in the host's memory for their device.
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
    statistics: Mapping[str, Sequence[float]] = field(default_factory=dict, hash=False, repr=False)
    replicas: Mapping[str, str] = field(default_factory=dict, hash=False)
    loras: Sequence[str] = ()
    host_bytes: int = 0

    @property
    def part(self) -> str:
        """Its name in the model cache: a VAE has the model's name, text encoders have a name of their own."""
        return text_part(self.spec.name) if isinstance(self.spec, TextSpec) else self.spec.name


@dataclass(frozen=True, slots=True)
class BackendLoad:
    """How busy a backend is at the moment, and what it has done so far.

    Attributes:
        waiting: Jobs in the queue.
        waiting_cost: Seconds that the device is expected to need for them.
        running: Jobs on the device; of several, jobs that were given to them.
        weights_bytes: Of the models that are loaded.
        memory_bytes: What weights and runs may take together; None if nothing bounds it.
        host_bytes: Of the weights that wait in the host's memory.
        loads: How often each model was loaded from its files.
        restores: How often each model came back from the host's memory.
        evictions: How often each model was evicted to make room for another.
        replicas: The load of each replica or device; empty for a single one.
        failure: Why it gets no jobs, if it is one of several.
    """

    waiting: int
    waiting_cost: float
    running: int
    weights_bytes: int
    memory_bytes: int | None = None
    host_bytes: int = 0
    loads: Mapping[str, int] = field(default_factory=dict)
    restores: Mapping[str, int] = field(default_factory=dict)
    evictions: Mapping[str, int] = field(default_factory=dict)
    replicas: Mapping[str, BackendLoad] = field(default_factory=dict)
    failure: str | None = None


class Backend(Protocol):
    """Six calls, none of which mentions a device or a framework."""

    def info(self) -> Sequence[ModelInfo]:
        """Return the models, in the order in which they were named at startup."""
        ...

    async def run(self, job: Job[ResultT], on_progress: ProgressCallback | None = None) -> ResultT:
        """Run a job.  Cancelling takes it off the queue, or stops it if it runs.

        Args:
            job: The job.
            on_progress: Called with its progress, by backends that know it.

        Raises:
            Overloaded: when the queue is full, unless the job is patient.
            HybridgeError: when the job fails.
        """
        ...

    def load(self) -> BackendLoad:
        """Return how busy the backend is; called often, so it must not wait for the device."""
        ...

    def fingerprint(self, part: str) -> Mapping[str, Any]:
        """What tells the weights of a model from others; reads their files, which may take seconds.

        Args:
            part: As in :attr:`ModelInfo.part`.

        Returns:
            Of text encoders ``fingerprint``, or ``no_fingerprint`` with the reason; of a VAE its ``revision`` and
            its ``weights``, as in a receipt, each None if it is not known.
        """
        ...

    def health(self) -> str | None:
        """Return None while jobs are accepted, else the reason why not."""
        ...

    def close(self) -> None:
        """Accept no more jobs, finish the running one, and return when the device is free."""
        ...
