"""What a record of ``hybridge bench serve`` holds, for all who read one."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ..harness.record import machine
from .cases import ServeArguments
from .load_generator import OK, Sample


@dataclass(frozen=True, slots=True)
class Measurement:
    """A server under a load in one round: what became of every request, or why nothing was measured."""

    load: str
    round: int
    rival: str
    samples: tuple[Sample, ...] | None = None
    missing: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What is known of one server under one load: raw samples, round by round, or why there are none."""

    rounds: list[tuple[Sample, ...]]
    missing: str | None

    def of(self, kind: str | None) -> list[list[Sample]]:
        """Samples by round; of one kind of pictures, if one is given."""
        return [[sample for sample in samples if kind in (None, sample.kind)] for samples in self.rounds]

    def answered(self, kind: str | None = None) -> list[Sample]:
        """All samples that became a picture."""
        return [sample for samples in self.of(kind) for sample in samples if sample.outcome == OK]

    def errors(self, kind: str | None = None) -> Counter[str]:
        """How often what went wrong."""
        return Counter(s.outcome for samples in self.of(kind) for s in samples if s.outcome != OK)

    def per_second(self, kind: str | None = None) -> float | None:
        """Pictures in a second, the median over rounds; from the first request to the last answer of a round."""
        speeds = []
        for samples in self.rounds:
            good = [sample for sample in samples if sample.outcome == OK]
            if good:
                counted = sum(kind in (None, sample.kind) for sample in good)
                first = min(sample.at_s for sample in good)
                speeds.append(counted / (max(sample.at_s + (sample.wall_s or 0.0) for sample in good) - first))
        return statistics.median(speeds) if speeds else None


@dataclass(frozen=True, slots=True)
class ServeRecord:
    """A whole record."""

    date: str
    environment: dict[str, Any]
    arguments: ServeArguments
    measurements: tuple[Measurement, ...]

    @property
    def machine(self) -> str:
        """The name of what computed."""
        return machine(self.environment)

    def result(self, load: str, rival: str) -> Result:
        """One server's measurements under a load, put together."""
        found = [one for one in self.measurements if (one.load, one.rival) == (load, rival)]
        missing = next((one.missing for one in found if one.missing), None)
        return Result([one.samples for one in found if one.samples is not None], missing)
