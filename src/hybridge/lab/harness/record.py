"""What a benchmark keeps: raw samples in versioned JSON, with what they must not be compared without.

A record is one JSON object: ``schema``, ``benchmark``, ``date``, ``environment``, ``arguments``, and what was
measured.  It is plain data from beginning to end, so that an old one can be read without the code that wrote it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...errors import HybridgeError, RequestError

#: Goes up when a reader of older records would misread a newer one.
SCHEMA = 2

Record = dict[str, Any]


def begin(benchmark: str, environment: Mapping[str, Any], arguments: Mapping[str, Any], **measured: Any) -> Record:
    """A record of now."""
    about = {
        "schema": SCHEMA,
        "benchmark": benchmark,
        "date": datetime.now(UTC).date().isoformat(),
        "environment": environment,
        "arguments": arguments,
    }
    # As a reader will see it: no tuples.
    whole: Record = json.loads(json.dumps(about | measured))
    return whole


def write(record: Record, path: Path) -> None:
    """Writes a record; whoever is ended while writing leaves the older file.

    Raises:
        HybridgeError: where the disk takes no more; the older file is whole.
    """
    try:
        write_whole(path, json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise no_room(path, error) from None


def write_whole(path: Path, text: str) -> None:
    """A file, all or nothing, in a folder that is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8", newline="\n")
    os.replace(unfinished, path)


def no_room(path: Path, why: object) -> HybridgeError:
    """What to raise where something that belongs to a record cannot be written."""
    return HybridgeError(
        "the disk takes no more; what was measured until now is in the record",
        saw=why,
        hint=f"room on the disk, then --resume {path}",
    )


def read(path: Path, *benchmarks: str, purpose: str = "that can be gone on with") -> Record:
    """A record of one of these benchmarks.

    Raises:
        RequestError: when the file cannot be read, or holds something else, or a schema that this version does not
            write; it says that this is no record for the purpose.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{path} cannot be read", saw=error.strerror) from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not JSON", saw=error) from None
    about = {key: record.get(key) for key in ("schema", "benchmark")} if isinstance(record, dict) else {}
    if about.get("schema") != SCHEMA or about["benchmark"] not in benchmarks:
        expected = f"schema {SCHEMA} of {', '.join(benchmarks)}"
        raise RequestError(f"{path} is not a record {purpose}", saw=about or "something else", expected=expected)
    return dict(record)


def find(path: Path, benchmark: str, *, resume: bool) -> Record | None:
    """The record to go on with, or None for a new one.

    Raises:
        RequestError: when there is a record and ``resume`` is not set; when it is set and there is none that can be
            gone on with.
    """
    if resume:
        return read(path, benchmark)
    if path.exists():
        raise RequestError("there is a record already", saw=path, hint=f"--resume {path}, or another --out")
    return None


def machine(environment: Mapping[str, Any]) -> str:
    """The name of what computed."""
    return str(environment.get("gpu") or environment.get("cpu") or environment.get("device"))


def check_alike(
    part: str, record: Record, now: Mapping[str, Any], *, hint: str = "a new run, without --resume"
) -> None:
    """Raises :class:`RequestError` unless the record's ``environment`` or ``arguments`` is what it is now."""
    before, now = record.get(part, {}), json.loads(json.dumps(now))
    unlike = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if unlike:
        raise RequestError(
            f"records of unlike {part} are not put together",
            saw=", ".join(f"{key} {now.get(key)}" for key in unlike),
            expected=", ".join(f"{key} {before.get(key)}" for key in unlike),
            hint=hint,
        )
