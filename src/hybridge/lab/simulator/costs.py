"""Kinds of jobs from a record of ``hybridge bench serve``: what they took on the device, and what beside it."""

from __future__ import annotations

import statistics
from pathlib import Path

from ...errors import RequestError
from ..harness import record as records
from ..harness.typed import Misshapen, parse
from ..serve_bench.load_generator import Sample
from ..serve_bench.record import Result, ServeRecord
from .workload import JobClass, bytes_of

#: The server that a record's seconds are taken from.
RIVAL = "hybridge"

#: Samples of a kind that are kept: enough for the 99th percentile.
_MOST_SAMPLES = 2000


def read_record(path: Path) -> ServeRecord:
    """Read a record.

    Raises:
        RequestError: for what is no record of ``hybridge bench serve``.
    """
    try:
        return parse(ServeRecord, records.read(path, "serve"))
    except (RequestError, Misshapen) as error:
        expected = "what `hybridge bench serve` wrote"
        raise RequestError(f"{path} is no record of a server", saw=str(error)[:200], expected=expected) from None


def served(record: ServeRecord) -> Result:
    """Return what the server made of the record's first load."""
    return record.result(record.arguments.loads[0].title, RIVAL)


def kinds_of(record: ServeRecord, front_s: float) -> list[JobClass]:
    """Return the kinds of the record's first load that the server answered.

    Args:
        record: Of a server with one device.
        front_s: Seconds of the front's processor for each job.

    Raises:
        RequestError: when no answer says what the device took.
    """
    result = served(record)
    kinds = []
    for kind in record.arguments.loads[0].kinds:
        told = [sample for sample in result.answered(kind.title) if "device" in sample.stages_ms]
        if not told:
            raise RequestError(
                "the record has no time on the device",
                saw=f"{kind.title}: {result.missing or 'no answers with Server-Timing'}",
                expected=f"answers of {RIVAL}",
            )
        device_s = tuple(sample.stages_ms["device"] / 1e3 for sample in told[:_MOST_SAMPLES])
        aside_s = max(0.0, statistics.median(map(_aside_s, told)) - front_s)
        kinds.append(JobClass(kind.title, device_s, kind.weight, front_s, aside_s, bytes_of(kind.size)))
    return kinds


def _aside_s(sample: Sample) -> float:
    """Seconds of a request that it neither waited nor ran."""
    within_s = sum(sample.stages_ms.get(stage, 0.0) for stage in ("device", "queue", "load")) / 1e3
    return max(0.0, (sample.wall_s or 0.0) - within_s)
