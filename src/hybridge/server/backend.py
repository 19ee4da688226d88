"""What the server's front needs from whatever runs the models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..models import ModelSpec
from .jobs import Job, Result


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that is served, and the choices that were made for it, each with its reason."""

    spec: ModelSpec
    device: str
    device_reason: str
    dtype: str
    dtype_reason: str
    weights_bytes: int


class Backend(Protocol):
    """Five calls, none of which mentions a device or a framework."""

    def info(self) -> Sequence[ModelInfo]:
        """The models, in the order in which they were asked for."""
        ...

    def cost(self, job: Job) -> float:
        """How much work a job is, in a unit that is the same for all jobs."""
        ...

    async def run(self, job: Job) -> Result:
        """Does the job.

        Raises:
            HybridgeError: Overloaded before it was accepted; others when it failed.
        """
        ...

    def health(self) -> str | None:
        """None while jobs are taken, else the reason why not."""
        ...

    def close(self) -> None:
        """Takes no more jobs, finishes the running one, and returns when the device is free."""
        ...
