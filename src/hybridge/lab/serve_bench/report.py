"""Tables from a record of ``hybridge bench serve``: on the screen, and as Markdown."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..harness.record import Record, machine
from ..harness.stats import percentile
from ..harness.tables import NONE, Table, page
from .cases import Kind, Load
from .load_generator import OK
from .servers import SERVERS

#: Of what tables show.
_SHARES = (0.5, 0.95, 0.99)

#: Stages that are not the server's doing: what is left of the time without them is overhead.
_WORK = ("device", "encode")

Samples = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Result:
    """What a record knows of one server under one load.

    Attributes:
        rounds: Raw samples, round by round.
        missing: Why there are none, or None.
    """

    rounds: list[Samples]
    missing: str | None

    def answered(self, kind: str | None = None) -> Samples:
        """All samples that became a picture; of one kind, if one is given."""
        return [
            sample
            for samples in self.rounds
            for sample in samples
            if sample["outcome"] == OK and kind in (None, sample["kind"])
        ]

    def per_second(self, kind: str | None = None) -> float | None:
        """Pictures in a second, the median over rounds; from the first request to the last answer of a round."""
        speeds = []
        for samples in self.rounds:
            good = [sample for sample in samples if sample["outcome"] == OK]
            counted = sum(kind in (None, sample["kind"]) for sample in good)
            if good:
                first = min(sample["at_s"] for sample in good)
                speeds.append(counted / (max(sample["at_s"] + sample["wall_s"] for sample in good) - first))
        return statistics.median(speeds) if speeds else None

    def errors(self, kind: str | None = None) -> Counter[str]:
        """How often what went wrong."""
        return Counter(
            sample["outcome"]
            for samples in self.rounds
            for sample in samples
            if sample["outcome"] != OK and kind in (None, sample["kind"])
        )


def result(record: Record, load: str, rival: str) -> Result:
    """One server's entries under a load, put together."""
    entries = [entry for entry in record["measurements"] if (entry["load"], entry["rival"]) == (load, rival)]
    missing = next((entry["missing"] for entry in entries if "missing" in entry), None)
    return Result([entry["samples"] for entry in entries if "samples" in entry], missing)


def overheads_ms(samples: Samples) -> list[float]:
    """Of every sample with a device stage: wall time less device and encode."""
    return [
        1e3 * sample["wall_s"] - sum(sample["stages_ms"].get(stage, 0.0) for stage in _WORK)
        for sample in samples
        if "device" in sample["stages_ms"]
    ]


def loads(record: Record) -> list[tuple[str, list[str]]]:
    """(load, its kinds of pictures), as they stand in the record."""
    asked = [Load(tuple(Kind(**kind) for kind in load["kinds"])) for load in record["arguments"]["loads"]]
    return [(load.title, [kind.title for kind in load.kinds]) for load in asked]


def tables(record: Record) -> list[Table]:
    """For every load: servers beside each other, and where their time went."""
    return [
        table
        for load, kinds in loads(record)
        for table in (_servers(record, load, kinds), _stages(record, load, kinds))
    ]


def markdown(record: Record) -> str:
    """A page: what was sent to whom on which machine, and the tables."""
    environment, asked = record["environment"], record["arguments"]
    how = f"open loop, {asked['rate']:g}/s" if asked["rate"] else "closed loop"
    long = " and ".join(f"{asked[name]:g} {name}" for name in ("seconds", "requests") if asked[name] is not None)
    lines = [
        f"# Servers on {machine(environment)}",
        "",
        f"{asked['url'] or 'Servers on this machine, started anew in each round'}; {how}, {long},"
        f" {asked['repeats']} rounds; {asked['picture_format']}, seed {asked['seed']};"
        f" {environment['threads']} of {environment['cores']} cores; torch {environment['torch']}, diffusers"
        f" {environment['diffusers']}, LitServe {environment['litserve'] or 'not installed'}, Ray"
        f" {environment['ray'] or 'not installed'}, hybridge {environment['hybridge']}; {record['date']}.",
        "",
        "Pictures per second are medians over rounds; percentiles are of all answers of all rounds, nearest rank."
        " Times are the client's; in an open loop they count from when a request was meant to be sent. Overhead is"
        " the time less the device's and the encoder's, so it includes the wait for others. The engine alone"
        " decodes one picture after another to pixels and writes no file; of a mix it draws kinds by weight.",
    ]
    return page(lines, tables(record))


def _servers(record: Record, load: str, kinds: Sequence[str]) -> Table:
    times = ("p50, ms", "p95, ms", "p99, ms", "overhead p50, ms")
    columns = ("server", "pictures", "answers", "pictures/s", "× engine", *times, "errors")
    rows: list[tuple[str, ...]] = []
    # All kinds together, and then each, where there are several.
    shown = [None, *kinds] if len(kinds) > 1 else [None]
    for name in _asked(record):
        one, engine = result(record, load, name), result(record, load, "engine")
        for kind in shown if one.rounds else [None]:
            about = (SERVERS[name].title, kind or ("all" if len(kinds) > 1 else load))
            if not one.rounds:
                why = f"missing: {one.missing}" if one.missing else "not measured yet"
                rows.append((*about, *[NONE] * (len(columns) - 3), why))
                continue
            speed, alone, good = one.per_second(kind), engine.per_second(kind), one.answered(kind)
            overhead = overheads_ms(good)
            rows.append(
                (
                    *about,
                    str(len(good)),
                    f"{speed:.2f}" if speed else NONE,
                    f"{speed / alone:.3f}" if speed and alone else NONE,
                    *_percentiles([1e3 * sample["wall_s"] for sample in good]),
                    _ms(statistics.median(overhead)) if overhead else NONE,
                    "; ".join(_remarks(one, kind)),
                )
            )
    return Table(load, columns, tuple(rows))


def _stages(record: Record, load: str, kinds: Sequence[str]) -> Table:
    rows: list[tuple[str, ...]] = []
    for name in _asked(record):
        for kind in kinds:
            good = result(record, load, name).answered(kind)
            stages = dict.fromkeys(stage for sample in good for stage in sample["stages_ms"])
            for stage in stages:
                spent = [sample["stages_ms"][stage] for sample in good if stage in sample["stages_ms"]]
                rows.append((SERVERS[name].title, kind, stage, *_percentiles(spent)))
    columns = ("server", "pictures", "stage", "p50, ms", "p95, ms", "p99, ms")
    return Table(f"{load}: stages, by the server's word", columns, tuple(rows))


def _asked(record: Record) -> list[str]:
    return [name for name in SERVERS if name in record["arguments"]["rivals"]]


def _remarks(one: Result, kind: str | None) -> list[str]:
    remarks = [f"{outcome} × {count}" for outcome, count in one.errors(kind).most_common()]
    return [*remarks, f"missing later: {one.missing}"] if one.missing else remarks


def _percentiles(samples: Sequence[float]) -> tuple[str, ...]:
    return tuple(_ms(percentile(samples, share)) if samples else NONE for share in _SHARES)


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 1000 else f"{milliseconds:.1f}"
