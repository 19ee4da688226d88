"""The table of a study: a row for each configuration, as wide as a terminal.  The page has the rest."""

from __future__ import annotations

import statistics
from typing import Any

from ...units import format_bytes, format_seconds
from ..harness.record import Record
from ..harness.tables import Table

_NONE = "–"

_COLUMNS = (
    "configuration",
    "outcome",
    "s/picture",
    "× baseline",
    "peak",
    "PSNR, dB",
)


def table(record: Record) -> Table:
    """Every configuration that was measured, in the order of the record."""
    entries = record["measurements"]
    baseline = next((_seconds(entry) for entry in entries if not entry["techniques"]), None)
    asked, about = record["arguments"], record["pipeline"]
    title = (
        f"{about['name']} ({about['class']}), {asked['size']}², {asked['steps']} steps, {asked['dtype']}"
        f" on {record['environment'].get('gpu') or asked['device']}"
    )
    return Table(title, _COLUMNS, tuple(_row(entry, baseline) for entry in entries))


def _row(entry: dict[str, Any], baseline: float | None) -> tuple[str, ...]:
    taken = _seconds(entry)
    numbers = (_NONE,) * 4
    if taken is not None:
        numbers = (
            format_seconds(taken),
            f"{taken / baseline:.2f}" if baseline else _NONE,
            _peak(entry["peak"]),
            _psnr(entry["difference"]),
        )
    return entry["configuration"], entry["outcome"], *numbers


def _seconds(entry: dict[str, Any]) -> float | None:
    """The median over prompts and runs; None where nothing was timed."""
    samples = [second for seconds in entry.get("seconds", {}).values() for second in seconds]
    return statistics.median(samples) if samples else None


def _peak(peak: dict[str, int | None]) -> str:
    """What a device handed out; on a CPU what the process took, or else the tensors alone."""
    found = next((peak[name] for name in ("allocated_bytes", "resident_bytes", "exact_bytes") if peak[name]), None)
    return _NONE if found is None else format_bytes(found, up=True)


def _psnr(difference: dict[str, Any] | None) -> str:
    """The worst of all prompts."""
    if difference is None:
        return _NONE
    apart = [one["psnr_db"] for one in difference.values() if one["psnr_db"] is not None]
    return f"{min(apart):.1f}" if apart else "equal"
