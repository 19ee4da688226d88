"""What all kinds of job have in common: a job, its progress and its result.

:mod:`.vae_job` and :mod:`.prompt_job` are the kinds.  The queue, the device thread and the endpoints know this file
alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from ...models import ModelSpec, TextSpec
from ...models.doctor.causes import Finding
from ...protocol import HttpResponse, Task

#: What the response takes at most beside its content, and what a refusal takes at most.
LEAST_RESULT_BYTES = 64 * 1024

#: What a kind of job is answered with.
ResultT = TypeVar("ResultT", bound="Result")


@dataclass(frozen=True, slots=True)
class Job(ABC, Generic[ResultT]):
    """Work that was accepted.

    Attributes:
        spec: The model that it is for.
        findings: What the sender should hear of.
        inferred: How the model was found, where the sender named none.
        client: The client that sent it; the queue is fair between clients.
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
    """What a model's text encoders are called beside its VAE, which has the model's own name."""
    return f"{name}:text"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is.

    Attributes:
        state: ``loading`` is waiting for the model.
        position: How many are served before it, as it looks now.
        eta_s: Seconds until it is done, as it looks now.
        done: The share of its work that is done.
    """

    state: Literal["waiting", "loading", "running"]
    position: int = 0
    eta_s: float | None = None
    done: float = 0.0


#: Hears of a job's progress, on the event loop.
ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class RunInfo:
    """How a job was run.

    Attributes:
        mode: The engine's word for it.
        peak_bytes: Most that the run took on top of the weights, where that is known.
        flops: Its arithmetic, where that is known.
        why: Why this mode.
    """

    mode: str
    peak_bytes: int | None = None
    flops: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What a backend gives back for a job; each kind of job adds its content.

    Attributes:
        milliseconds: Time of each stage.
        ran: How it was run, if it was.
        shared_by: The number of jobs in the run that made it.
        findings: All that the sender should hear of, those of the job included.
    """

    milliseconds: dict[str, float] = field(default_factory=dict, kw_only=True)
    ran: RunInfo | None = field(default=None, kw_only=True)
    shared_by: int = field(default=1, kw_only=True)
    findings: tuple[Finding, ...] = field(default=(), kw_only=True)

    @property
    def cache(self) -> Literal["hit", "miss"] | None:
        """Whether it was kept from before; None where results are not kept."""
        return None
