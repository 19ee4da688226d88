"""Which records a page is made of: read, checked, and put together only where they were measured alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ...errors import RequestError
from ..harness import record as records
from ..harness.record import Record, check_alike
from ..harness.typed import Misshapen, parse
from ..serve_bench.record import ServeRecord
from ..studies.record import Study
from ..vae_bench.record import VaeRecord

#: What a page can show, by the name that a record carries.
BENCHMARKS: dict[str, type[Any]] = {"study": Study, "vae": VaeRecord, "serve": ServeRecord}

#: Arguments in which the records of one study may differ: what was tried, and how patiently.
_MAY_DIFFER = ("configurations", "runs", "limit_s", "server")

Read = TypeVar("Read")


@dataclass(frozen=True, slots=True)
class Source(Generic[Read]):
    """One record, as it was written and as it was read; its pictures lie in its folder."""

    path: Path
    record: Record
    read: Read


@dataclass(frozen=True, slots=True)
class Sources:
    """All records of a page, of one environment, in the order given.

    Those of ``hybridge lab run`` are alike in everything but what was tried.
    """

    studies: tuple[Source[Study], ...]
    vaes: tuple[Source[VaeRecord], ...]
    serves: tuple[Source[ServeRecord], ...]

    @property
    def all(self) -> tuple[Source[Any], ...]:
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
    by_name: dict[str, list[Source[Any]]] = {name: [] for name in BENCHMARKS}
    for path in paths:
        source = _read(path)
        by_name[source.record["benchmark"]].append(source)
    found = Sources(*(tuple(by_name[name]) for name in BENCHMARKS))
    _check_alike(found)
    return found


def _read(path: Path) -> Source[Any]:
    record = records.read(path, *BENCHMARKS, purpose="that a page can show")
    try:
        return Source(path, record, parse(BENCHMARKS[record["benchmark"]], record))
    except Misshapen as wrong:
        raise RequestError(f"{path} is damaged", saw=str(wrong), hint="the file as the command wrote it") from None


def _check_alike(found: Sources) -> None:
    for of_a_kind in (found.studies, found.vaes, found.serves):
        for other in of_a_kind[1:]:
            _compare("environment", of_a_kind[0], other)
    for other in found.studies[1:]:
        _compare("arguments", found.studies[0], other, without=_MAY_DIFFER)
    # Benchmarks of different kinds look at different libraries; what both looked at must be the same.
    first = found.all[0]
    for other in found.all[1:]:
        unlike = first.record["environment"].keys() ^ other.record["environment"].keys()
        _compare("environment", first, other, without=tuple(unlike))


def _compare(part: str, first: Source[Any], other: Source[Any], *, without: tuple[str, ...] = ()) -> None:
    before, now = (
        {key: value for key, value in source.record[part].items() if key not in without}
        for source in (first, other)
    )
    check_alike(part, {part: before}, now, hint=f"a page for {first.path}, and another for {other.path}")
