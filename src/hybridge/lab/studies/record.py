"""What a study's record holds, for all who read one: the table, the report and the estimator's correction."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..harness.typed import parse
from ..techniques.facts import Outcome, TechniqueResult
from .arguments import Arguments


@dataclass(frozen=True, slots=True)
class Peak:
    """Most bytes while a picture was made, by how they were looked at; None where they were not.

    Attributes:
        exact_bytes: Of tensors on top of the weights, every operator counted.
        allocated_bytes: That CUDA's allocator had handed out, weights included.
        reserved_bytes: That it had taken from the device.
        resident_bytes: By which the process grew since before the pipeline was loaded.
    """

    exact_bytes: int | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    resident_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """From the baseline's picture of one prompt; see :func:`.pictures.difference`."""

    psnr_db: float | None = None
    ssim: float | None = None
    largest: float | None = None
    mean: float | None = None
    lpips: float | None = None
    clip_score: float | None = None
    caption: float | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """A configuration: what became of it, and where it made pictures, what they took.

    Attributes:
        seconds: Of each warm call, by prompt.
        denoiser_calls: Batch size of each forward of one call.
        weights_bytes: Of all parts, every storage once.
        difference: By prompt; None without a baseline of the same size.
        pictures: Paths beside the record, by prompt.
        why_not_exact: Why tensors were not counted, or None.
    """

    configuration: str
    outcome: Outcome
    techniques: tuple[TechniqueResult, ...]
    reason: str | None = None
    load_s: float | None = None
    preparation_s: float | None = None
    first_picture_s: float | None = None
    seconds: dict[str, tuple[float, ...]] = field(default_factory=dict)
    steps: int | None = None
    denoiser_calls: tuple[int, ...] = ()
    weights_bytes: int | None = None
    why_not_exact: str | None = None
    peak: Peak = Peak()
    difference: dict[str, Difference] | None = None
    pictures: dict[str, str] = field(default_factory=dict)

    @property
    def samples(self) -> list[float]:
        """Seconds of every warm call."""
        return [second for runs in self.seconds.values() for second in runs]

    @property
    def median_s(self) -> float | None:
        """Of a call, over all prompts and runs; None where nothing was timed."""
        return statistics.median(self.samples) if self.samples else None


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What was measured; ``parameters`` are numbers of weights by part."""

    name: str
    class_name: str = field(metadata={"key": "class"})
    weights: str
    parameters: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Study:
    """A whole record."""

    date: str
    environment: dict[str, Any]
    arguments: Arguments
    pipeline: Pipeline
    measurements: tuple[Measurement, ...]
    not_scored: dict[str, str] = field(default_factory=dict)


def study_of(record: Mapping[str, Any]) -> Study:
    """A record of ``hybridge lab run``, read.

    Raises:
        Misshapen: with the place where it is not what a study writes.
    """
    study: Study = parse(Study, record)
    return study
