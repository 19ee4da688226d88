"""The table of a study: a row for each configuration, as wide as a terminal.  The page has the rest."""

from __future__ import annotations

from ...units import format_bytes, format_seconds
from ..harness.record import Record
from ..harness.tables import NONE, Table
from .record import Difference, Measurement, Peak, study_of

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
    study = study_of(record)
    baseline = next((one.median_s for one in study.measurements if not one.techniques), None)
    asked, about = study.arguments, study.pipeline
    title = (
        f"{about.name} ({about.class_name}), {asked.size}², {asked.steps} steps, {asked.dtype}"
        f" on {study.environment.get('gpu') or asked.device}"
    )
    rows = tuple(_row(one, baseline) for one in study.measurements)
    shares = [_captions(one.difference) for one in study.measurements]
    if any(share != NONE for share in shares):
        every = zip(rows, shares, strict=True)
        return Table(title, (*_COLUMNS, "captions right"), tuple((*row, share) for row, share in every))
    return Table(title, _COLUMNS, rows)


def _row(one: Measurement, baseline: float | None) -> tuple[str, ...]:
    numbers = (NONE,) * 4
    if one.median_s is not None:
        ratio = f"{one.median_s / baseline:.2f}" if baseline else NONE
        numbers = (format_seconds(one.median_s), ratio, _peak(one.peak), _psnr(one.difference))
    return one.configuration, one.outcome, *numbers


def _peak(peak: Peak) -> str:
    """What a device handed out; on a CPU what the process took, or else the tensors alone."""
    found = peak.allocated_bytes or peak.resident_bytes or peak.exact_bytes
    return format_bytes(found, up=True) if found else NONE


def _captions(difference: dict[str, Difference] | None) -> str:
    """The share of prompts that the pictures show."""
    found = [one.caption for one in (difference or {}).values() if one.caption is not None]
    return f"{sum(found) / len(found):.0%}" if found else NONE


def _psnr(difference: dict[str, Difference] | None) -> str:
    """The worst of all prompts."""
    if difference is None:
        return NONE
    apart = [one.psnr_db for one in difference.values() if one.psnr_db is not None]
    return f"{min(apart):.1f}" if apart else "equal"
