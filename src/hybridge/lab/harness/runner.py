"""The loop of every benchmark: what the record lacks is measured, one after the other, and written at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import EngineFailure
from . import record as records
from .record import Record

#: Called before every measurement with (measurements done, measurements in all, what comes now).
Progress = Callable[[int, int, str], None]


def no_progress(_done: int, _total: int, _what: str) -> None:
    """For those who do not want to hear."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One measurement.

    Attributes:
        key: What tells its entry in the record from others.
        measure: Gives the rest of the entry.
        entries: The list of the record that it goes into.
        is_known: Whether it is there without a measurement, so that nobody has to hear of it.
    """

    title: str
    key: dict[str, Any]
    measure: Callable[[], dict[str, Any]]
    entries: str = "measurements"
    is_known: bool = False


def take_turns(record: Record, path: Path, turns: Iterable[Turn], progress: Progress) -> None:
    """Measures what the record has no entry of; it is written after each.

    Raises:
        HybridgeError: when the disk takes no more; what was measured is kept.
    """
    left = [turn for turn in turns if not any(turn.key.items() <= entry.items() for entry in record[turn.entries])]
    total, number = sum(not turn.is_known for turn in left), 0
    for turn in left:
        if not turn.is_known:
            progress(number, total, turn.title)
            number += 1
        record[turn.entries].append({**turn.key, **turn.measure()})
        records.write(record, path)
    progress(total, total, "done")


def run_benchmark(
    benchmark: str,
    arguments: Mapping[str, Any],
    path: Path,
    *,
    resume: bool,
    progress: Progress,
    environment: Callable[[], Mapping[str, Any]],
    turns: Callable[[Record], Iterable[Turn]],
    **about: Any,
) -> Record:
    """A new record, or the one that is there gone on with.

    Args:
        benchmark: Its name in records.
        arguments: As the record keeps them.
        resume: Whether to go on with the record that is there.
        progress: Hears what comes next.
        environment: Asks for the machine and the libraries.
        turns: From the record to all measurements.
        **about: What else a new record begins with.

    Raises:
        RequestError: when there is a record and ``resume`` is not set; and when it is set and the record is of
            another environment or other arguments.
        HybridgeError: when the disk takes no more; what was measured is kept.
    """
    before = records.find(path, benchmark, resume=resume)
    if before is not None:  # looking at the environment takes seconds
        records.check_alike("arguments", before, arguments)
    seen = environment()
    record = before or records.begin(benchmark, seen, arguments, **about)
    records.check_alike("environment", record, seen)
    take_turns(record, path, turns(record), progress)
    return record


def described(answer: dict[str, Any]) -> dict[str, Any]:
    """What a worker said of its machine; raises :class:`EngineFailure` where it could not."""
    if "environment" not in answer:
        raise EngineFailure("nothing can be measured", saw=answer.get("missing"))
    return answer
