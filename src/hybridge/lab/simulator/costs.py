"""Kinds of jobs from a record of ``hybridge bench serve``: what they took on the device, and what beside it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from ...errors import RequestError
from ..harness.typed import Misshapen
from ..serve_bench.load_generator import OK, Sample, deal
from ..serve_bench.record import ServeRecord, serve_record_of
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
        return serve_record_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, Misshapen) as error:
        raise RequestError(
            "no record of a server", saw=f"{path}: {str(error)[:200]}", expected="what `hybridge bench serve` wrote"
        ) from None


def kinds_of(record: ServeRecord, front_s: float) -> list[JobClass]:
    """Return the kinds of the record's first load that the server answered.

    Args:
        record: Of a server with one device.
        front_s: Seconds of the front's processor for each job.

    Raises:
        RequestError: when no answer says what the device took.
    """
    load = record.arguments.loads[0]
    result = record.result(load.title, RIVAL)
    kinds = []
    for kind in load.kinds:
        told = [sample for sample in result.answered(kind.title) if "device" in sample.stages_ms]
        if not told:
            raise RequestError(
                "the record has no time on the device",
                saw=f"{kind.title}: {result.missing or 'no answers with Server-Timing'}",
                expected=f"answers of {RIVAL}",
            )
        device_s = tuple(sample.stages_ms["device"] / 1e3 for sample in told[:_MOST_SAMPLES])
        aside_s = statistics.median(map(_aside_s, told))
        kinds.append(
            JobClass(kind.title, device_s, kind.weight, front_s, max(0.0, aside_s - front_s), bytes_of(kind.size))
        )
    return kinds


def clients_of(record: ServeRecord, kinds: Sequence[JobClass]) -> list[JobClass]:
    """Return the kind that each client of the record's closed loop asked for."""
    load = record.arguments.loads[0]
    dealt = deal([kind.weight for kind in load.kinds], record.arguments.clients_of(load))
    return [kind for kind, number in zip(kinds, dealt, strict=True) for _ in range(number)]


def answered(record: ServeRecord) -> list[Sample]:
    """Return the answers of the record's first load."""
    return [one for one in record.result(record.arguments.loads[0].title, RIVAL).answered() if one.outcome == OK]


def _aside_s(sample: Sample) -> float:
    """Seconds of a request that it neither waited nor ran."""
    stages = sample.stages_ms
    within_s = (stages.get("device", 0.0) + stages.get("queue", 0.0) + stages.get("load", 0.0)) / 1e3
    return max(0.0, (sample.wall_s or 0.0) - within_s)
