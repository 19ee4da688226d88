"""Which records a page is made of: read, checked, and put together only where they were measured alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import RequestError
from ..harness.record import SCHEMA, Record, check_alike
from ..harness.typed import Misshapen, parse
from ..serve_bench.record import ServeRecord
from ..studies.record import Study, study_of
from ..vae_bench.record import VaeRecord

#: What a page can show, by the name that a record carries, and what reads it.
BENCHMARKS: dict[str, Callable[[Record], Any]] = {
    "study": study_of,
    "vae": partial(parse, VaeRecord),
    "serve": partial(parse, ServeRecord),
}

#: Arguments in which the records of one study may differ: what was tried, and how patiently.
_MAY_DIFFER = ("configurations", "runs", "limit_s", "server")


@dataclass(frozen=True, slots=True)
class Source:
    """One record, as it was written, and the folder that its pictures lie in."""

    path: Path
    record: Record

    @property
    def folder(self) -> Path:
        return self.path.parent


@dataclass(frozen=True, slots=True)
class StudySource(Source):
    """The record of a study, read."""

    study: Study


@dataclass(frozen=True, slots=True)
class Sources:
    """All records of a page, of one environment, in the order given.

    Attributes:
        studies: Of ``hybridge lab run``; alike in everything but what was tried.
        vaes: Of ``hybridge bench vae``.
        serves: Of ``hybridge bench serve``.
    """

    studies: tuple[StudySource, ...]
    vaes: tuple[Source, ...]
    serves: tuple[Source, ...]

    @property
    def all(self) -> tuple[Source, ...]:
        return (*self.studies, *self.vaes, *self.serves)

    @property
    def environment(self) -> dict[str, Any]:
        return dict(self.all[0].record["environment"])


def gather(paths: Sequence[Path]) -> Sources:
    """Reads the records of a page.

    Raises:
        RequestError: for what is no record, or none that a page can show; and for records that were not measured
            alike.
    """
    if not paths:
        raise RequestError("no record given", expected="files that `hybridge lab run` or `hybridge bench` wrote")
    by_name: dict[str, list[Any]] = {name: [] for name in BENCHMARKS}
    for path in paths:
        source = _read(path)
        by_name[source.record["benchmark"]].append(source)
    found = Sources(*(tuple(by_name[name]) for name in BENCHMARKS))
    _check_alike(found)
    return found


def _read(path: Path) -> Source:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not JSON", saw=error) from None
    about = {key: record.get(key) for key in ("schema", "benchmark")} if isinstance(record, dict) else "no object"
    if not isinstance(about, dict) or about["schema"] != SCHEMA or about["benchmark"] not in BENCHMARKS:
        raise RequestError(
            f"{path} is not a record that a page can show",
            saw=about,
            expected=f"schema {SCHEMA} of {', '.join(BENCHMARKS)}",
        )
    try:
        read = BENCHMARKS[record["benchmark"]](record)
    except Misshapen as wrong:
        raise RequestError(f"{path} is damaged", saw=str(wrong), hint="the file as the command wrote it") from None
    return StudySource(path, record, read) if isinstance(read, Study) else Source(path, record)


def _check_alike(found: Sources) -> None:
    for same_kind in (found.studies, found.vaes, found.serves):
        for other in same_kind[1:]:
            _compare("environment", same_kind[0], other)
    for other in found.studies[1:]:
        _compare("arguments", found.studies[0], other, without=_MAY_DIFFER)
    # Benchmarks of different kinds look at different libraries; what both looked at must be the same.
    first = found.all[0]
    for other in found.all[1:]:
        unlike = first.record["environment"].keys() ^ other.record["environment"].keys()
        _compare("environment", first, other, without=tuple(unlike))


def _compare(part: str, first: Source, other: Source, *, without: tuple[str, ...] = ()) -> None:
    before, now = (
        {key: value for key, value in source.record[part].items() if key not in without}
        for source in (first, other)
    )
    check_alike(part, {part: before}, now, hint=f"a page for {first.path}, and another for {other.path}")
