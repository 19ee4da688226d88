"""What all kinds of job have in common: a job, its progress and its result.

:mod:`.vae_job` and :mod:`.prompt_job` are the kinds.  The queue, the device thread and the endpoints know this file
alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, Self, TypeVar

from ...models import ModelSpec, TextSpec
from ...models.doctor.causes import Finding
from ...protocol import HttpResponse, Task
from ...protocol.receipt import Receipt

#: Most bytes of a response beside its content, and of an error response.
LEAST_RESULT_BYTES = 64 * 1024

#: The result of a kind of job.
ResultT = TypeVar("ResultT", bound="Result")


@dataclass(frozen=True, slots=True)
class Job(ABC, Generic[ResultT]):
    """Work that was accepted.

    Attributes:
        spec: The model that it is for.
        findings: What the sender should hear of.
        inferred: How the model was found, where the sender named none.
        client: Who sent it; the queue is fair between clients.
        is_patient: It was accepted for later, and is not refused because the queue is full.
    """

    spec: ModelSpec | TextSpec
    findings: tuple[Finding, ...] = field(default=(), kw_only=True)
    inferred: str | None = field(default=None, kw_only=True)
    client: str = field(default="", kw_only=True)
    is_patient: bool = field(default=False, kw_only=True)

    @property
    @abstractmethod
    def task(self) -> Task:
        """What to do."""

    @property
    @abstractmethod
    def part(self) -> str:
        """The name in the model cache of what has to be loaded for it."""

    @property
    @abstractmethod
    def batch(self) -> int:
        """The number of its pictures, videos or prompts."""

    @property
    def amount(self) -> int:
        """Pixels or prompts: jobs of equal cost keys take about as long for each of them."""
        return self.batch

    @property
    def is_repeatable(self) -> bool:
        """Whether a second run gives the same result; others draw at random, without a seed."""
        return True

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that were sent, about."""

    @property
    @abstractmethod
    def result_bytes(self) -> int:
        """Bytes that its response takes at most, about; an async job reserves as many."""

    @property
    def may_interrupt_its_kind(self) -> bool:
        """Whether it may run while another job of the same part pauses."""
        return True

    @property
    def is_partly_sent(self) -> bool:
        """Whether a part of its result may have been sent already, so that it must not be made anew."""
        return False

    @property
    def cost_key(self) -> str:
        """Jobs of equal keys take the same time for each FLOP."""
        return f"{self.part} {self.task}"

    @property
    def batch_key(self) -> object | None:
        """Jobs of equal keys give the same results in one run as alone; None for a job that runs alone."""
        return None

    @abstractmethod
    def is_quick_to_write(self, result: ResultT) -> bool:
        """Whether :meth:`write` takes less time than the way to a thread and back."""

    @abstractmethod
    def write(self, result: ResultT) -> HttpResponse:
        """The response with its result."""


def text_part(name: str) -> str:
    """Return the name of a model's text encoders in the model cache; its VAE has the model's own name."""
    return f"{name}:text"


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a job.

    Attributes:
        state: ``loading`` while it waits for its model.
        position: Expected number of jobs that run before it.
        eta_s: Expected seconds until it is done.
        done: The share of its work that is done, 0 to 1.
    """

    state: Literal["waiting", "loading", "running"]
    position: int = 0
    eta_s: float | None = None
    done: float = 0.0


#: Called with a job's progress, on the event loop.
ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class RunInfo:
    """How a job was run.

    Attributes:
        mode: The mode of the engine's plan.
        peak_bytes: Planned peak on top of the weights, if known.
        flops: Its FLOPs, if known.
        why: Why this mode was chosen.
        exactness: For a class whose own call differs from computing all at once: which of both this is, and why
            they differ.
    """

    mode: str
    peak_bytes: int | None = None
    flops: float | None = None
    why: str = ""
    exactness: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What a backend gives back for a job; each kind of job adds its content.

    Attributes:
        milliseconds: Time of each stage.
        ran: How it was run; None if it was not.
        shared_by: The number of jobs in the run that made it.
        findings: All that the sender should hear of, those of the job included.
        receipt: Returns what made it; given True, it waits for the hash of the weights.
        written: The response, where whoever ran the job has written it as well.
    """

    milliseconds: dict[str, float] = field(default_factory=dict, kw_only=True)
    ran: RunInfo | None = field(default=None, kw_only=True)
    shared_by: int = field(default=1, kw_only=True)
    findings: tuple[Finding, ...] = field(default=(), kw_only=True)
    receipt: Callable[[bool], Receipt] | None = field(default=None, kw_only=True)
    written: HttpResponse | None = field(default=None, kw_only=True)

    def as_written(self, response: HttpResponse) -> Self:
        """Return the result with its response instead of its content."""
        return replace(self, written=response)

    @property
    def cache(self) -> Literal["hit", "miss"] | None:
        """Whether it was kept from before; None where results are not kept."""
        return None
