"""Tables and a page from a record of ``hybridge bench serve``."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ..harness.record import Record
from ..harness.stats import percentile
from ..harness.tables import NONE, Table, shown
from ..harness.templates import render
from ..harness.typed import parse
from .cases import Load
from .load_generator import Sample
from .record import Result, ServeRecord
from .servers import SERVERS

#: Of what tables show.
_SHARES = (0.5, 0.95, 0.99)

#: Stages that are not the server's doing: what is left of the time without them is overhead.
_WORK = ("device", "encode")


def tables(record: Record) -> list[Table]:
    """For every load: servers beside each other, and where their time went.

    Raises:
        Misshapen: for a record that is not what the benchmark writes.
    """
    read = parse(ServeRecord, record)
    return [table for load in read.arguments.loads for table in (_servers(read, load), _stages(read, load))]


def markdown(record: Record) -> str:
    """A page: what was sent to whom on which machine, and the tables."""
    return render(str(__package__), "page.md.jinja", record=parse(ServeRecord, record), tables=tables(record))


def overheads_ms(samples: Sequence[Sample]) -> list[float]:
    """Of every sample with a device stage: wall time less device and encode."""
    return [
        1e3 * (sample.wall_s or 0.0) - sum(sample.stages_ms.get(stage, 0.0) for stage in _WORK)
        for sample in samples
        if "device" in sample.stages_ms
    ]


def _servers(record: ServeRecord, load: Load) -> Table:
    numbers = ("answers", "pictures/s", "× engine", "p50, ms", "p95, ms", "p99, ms", "overhead p50, ms")
    rows: list[tuple[str, ...]] = []
    # All kinds together, and then each, where there are several.
    kinds = [kind.title for kind in load.kinds]
    every = [None, *kinds] if len(kinds) > 1 else [None]
    for name in _asked(record):
        one, engine = record.result(load.title, name), record.result(load.title, "engine")
        for kind in every if one.rounds else [None]:
            about = (SERVERS[name].title, kind or ("all" if len(kinds) > 1 else load.title))
            if not one.rounds:
                why = f"missing: {one.missing}" if one.missing else "not measured yet"
                rows.append((*about, *[NONE] * len(numbers), why))
                continue
            speed, alone, good = one.per_second(kind), engine.per_second(kind), one.answered(kind)
            overheads = overheads_ms(good)
            cells = (
                str(len(good)),
                shown(speed or None, ".2f"),
                shown(speed / alone if speed and alone else None, ".3f"),
                *_percentiles([1e3 * (sample.wall_s or 0.0) for sample in good]),
                _ms(statistics.median(overheads)) if overheads else NONE,
            )
            rows.append((*about, *cells, "; ".join(_remarks(one, kind))))
    return Table(load.title, ("server", "pictures", *numbers, "errors"), tuple(rows))


def _stages(record: ServeRecord, load: Load) -> Table:
    rows: list[tuple[str, ...]] = []
    for name in _asked(record):
        for kind in load.kinds:
            good = record.result(load.title, name).answered(kind.title)
            for stage in dict.fromkeys(stage for sample in good for stage in sample.stages_ms):
                spent = [sample.stages_ms[stage] for sample in good if stage in sample.stages_ms]
                rows.append((SERVERS[name].title, kind.title, stage, *_percentiles(spent)))
    columns = ("server", "pictures", "stage", "p50, ms", "p95, ms", "p99, ms")
    return Table(f"{load.title}: stages, by the server's word", columns, tuple(rows))


def _asked(record: ServeRecord) -> list[str]:
    return [name for name in SERVERS if name in record.arguments.rivals]


def _remarks(one: Result, kind: str | None) -> list[str]:
    remarks = [f"{outcome} × {count}" for outcome, count in one.errors(kind).most_common()]
    return [*remarks, f"missing later: {one.missing}"] if one.missing else remarks


def _percentiles(samples: Sequence[float]) -> tuple[str, ...]:
    return tuple(_ms(percentile(samples, share)) if samples else NONE for share in _SHARES)


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 1000 else f"{milliseconds:.1f}"
