"""Which records a page is made of: read, checked, and put together only where they were measured alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from ...errors import RequestError
from ..harness.record import SCHEMA, Record, check_alike

#: What a page can show, by the name that a record carries.
BENCHMARKS = ("study", "vae", "serve")

OUTCOMES = ("worked", "no effect", "unavailable", "dead", "failed")

#: Arguments in which the records of one study may differ: what was tried, and how patiently.
_MAY_DIFFER = ("configurations", "runs", "limit_s", "server")


@dataclass(frozen=True, slots=True)
class Source:
    """One record and the folder that its pictures lie in."""

    path: Path
    record: Record

    @property
    def folder(self) -> Path:
        return self.path.parent


@dataclass(frozen=True, slots=True)
class Sources:
    """All records of a page, of one environment, in the order given.

    Attributes:
        studies: Of ``hybridge lab run``; alike in everything but what was tried.
        vaes: Of ``hybridge bench vae``.
        serves: Of ``hybridge bench serve``.
    """

    studies: tuple[Source, ...]
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
    by_name: dict[str, list[Source]] = {name: [] for name in BENCHMARKS}
    for path in paths:
        record = _read(path)
        by_name[record["benchmark"]].append(Source(path, record))
    found = Sources(*(tuple(by_name[name]) for name in BENCHMARKS))
    _check_alike(found)
    return found


def _read(path: Path) -> Record:
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
        _check(record, _COMMON)
        if record["benchmark"] == "study":
            _check(record, _STUDY)
    except _Misshapen as wrong:
        raise RequestError(f"{path} is damaged", saw=str(wrong), hint="the file as the command wrote it") from None
    return dict(record)


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


class _Misshapen(Exception):
    """Where a record is not what its schema says."""


#: Shapes: a type, a mapping of keys (those that end in ``?`` may be missing or null), or a list of one shape.
Shape = Any

_PEAKS = ("exact_bytes?", "allocated_bytes?", "reserved_bytes?", "resident_bytes?")
_DIFFERENCES = ("psnr_db?", "ssim?", "largest?", "mean?", "lpips?", "clip_score?")
_COMMON: Shape = {"date": str, "environment": dict, "arguments": dict, "measurements": [dict]}
_STUDY: Shape = {
    "arguments": {
        "pipeline": str,
        "prompts": [{"name": str, "prompt": str, "seed": int}],
        "configurations": [{"name": str, "techniques": [str]}],
        "size": int,
        "steps": int,
        "batch?": int,
        "runs?": int,
        "guidance_scale?": Real,
        "dtype?": str,
    },
    "not_scored?": {"*": str},
    "pipeline": {"name": str, "class": str, "weights": str},
    "measurements": [
        {
            "configuration": str,
            "outcome": OUTCOMES,
            "reason?": str,
            "techniques": [
                {"name": str, "outcome": OUTCOMES, "evidence?": str, "reason?": str, "instead?": str},
            ],
            "load_s?": Real,
            "preparation_s?": Real,
            "first_picture_s?": Real,
            "seconds?": {"*": [Real]},
            "steps?": int,
            "denoiser_calls?": [int],
            "weights_bytes?": int,
            "why_not_exact?": str,
            "peak?": dict.fromkeys(_PEAKS, int),
            "difference?": {"*": dict.fromkeys(_DIFFERENCES, Real)},
            "pictures?": {"*": str},
        }
    ],
}


def _check(value: object, shape: Shape, where: str = "the record") -> None:
    if isinstance(shape, dict):
        if not isinstance(value, Mapping):
            raise _Misshapen(f"{where}: {_short(value)} instead of an object")
        for key, inner in shape.items():
            name, may_miss = key.removesuffix("?"), key.endswith("?")
            if name == "*":
                for each, item in value.items():
                    _check(item, inner, f"{where}, {each}")
            elif value.get(name) is not None:
                _check(value[name], inner, f"{where}, {name}")
            elif not may_miss:
                raise _Misshapen(f"{where} without {name}")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise _Misshapen(f"{where}: {_short(value)} instead of a list")
        for number, item in enumerate(value):
            _check(item, shape[0], f"{where} {number}")
    elif isinstance(shape, tuple):
        if value not in shape:
            raise _Misshapen(f"{where}: {_short(value)} instead of {', '.join(shape)}")
    elif not isinstance(value, shape) or isinstance(value, bool):
        raise _Misshapen(f"{where}: {_short(value)} instead of {shape.__name__}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
