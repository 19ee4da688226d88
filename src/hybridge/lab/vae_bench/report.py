"""Tables, a page and a plot from a record."""

from __future__ import annotations

from dataclasses import dataclass

from ...units import format_bytes, format_seconds
from ..harness.plot import Frame
from ..harness.record import Record
from ..harness.tables import NONE, Table, shown
from ..harness.templates import render
from ..harness.typed import parse
from .cases import Case
from .record import Measurement, Result, VaeRecord
from .rivals import RIVALS

#: (width, height) of the plot, in SVG units.
_SIZE = (960, 640)


@dataclass(frozen=True, slots=True)
class Point:
    """A rival's result in one case on the plot; coordinates in SVG units."""

    case: Case
    x: float
    y: float
    about: str


def tables(record: Record) -> list[Table]:
    """The roof, the table of diffusers' documentation with ours beside it, and every case rival by rival.

    Raises:
        Misshapen: for a record that is not what the benchmark writes.
    """
    read = parse(VaeRecord, record)
    cases = read.arguments.cases()
    return [_roofs(read, cases), _documentation(read, cases), *(_rivals(read, case) for case in cases)]


def markdown(record: Record) -> str:
    """A page: what was run where, and the tables."""
    return render(str(__package__), "page.md.jinja", record=parse(VaeRecord, record), tables=tables(record))


def drawing(record: Record) -> str:
    """Seconds against peak memory as SVG: a line for every rival and dtype, a point for every size."""
    read = parse(VaeRecord, record)
    found = [
        (name, case, result.judged.peak_bytes, result.time.median_s)
        for case in read.arguments.cases()
        for name in _asked(read)
        for result in (read.result(case, name),)
        if result.time and result.judged and result.judged.peak_bytes
    ]
    frame = Frame.around([(peak, seconds) for _, _, peak, seconds in found], *_SIZE)
    lines: dict[tuple[str, str], list[Point]] = {}
    for name, case, peak, seconds in found:
        about = f"{_bytes(peak)}, {format_seconds(seconds)} s"
        lines.setdefault((name, case.dtype), []).append(Point(case, *frame.at(peak, seconds), about))
    points = [point for line in lines.values() for point in line]
    return render(
        str(__package__),
        "plot.svg.jinja",
        record=read,
        frame=frame,
        lines=lines,
        labels=frame.named(points, lambda point: (str(point.case.size),)),
        rivals=_asked(read),
        titles={name: rival.title for name, rival in RIVALS.items()},
    )


def _title(case: Case) -> str:
    frames = f", {case.frames} frames" if case.frames > 1 else ""
    return f"{case.task} {case.size}×{case.size}{frames}, {case.dtype}"


def _asked(record: VaeRecord) -> list[str]:
    return [name for name in RIVALS if name in record.arguments.rivals]


def _roofs(record: VaeRecord, cases: list[Case]) -> Table:
    columns = ("case", "TFLOP", "convolutions, GFLOP/s", "matmul, GFLOP/s", "roof, s")
    rows: list[tuple[str, ...]] = []
    for case in cases:
        found, missing = record.roof(case)
        if found is None:
            rows.append((_title(case), f"missing: {missing}" if missing else NONE, NONE, NONE, NONE))
            continue
        speeds = (found.convolution_flops_per_s / 1e9, found.matmul_flops_per_s and found.matmul_flops_per_s / 1e9)
        cells = (f"{found.flops / 1e12:.3g}", *(shown(speed, ".0f") for speed in speeds))
        rows.append((_title(case), *cells, format_seconds(found.seconds)))
    return Table("The roof", columns, tuple(rows))


def _documentation(record: VaeRecord, cases: list[Case]) -> Table:
    """The columns of diffusers' documentation of remote VAEs, in its order, then ours."""
    columns = ("Device", "Resolution", "dtype", "Time (seconds)", "Memory", "Tiled Time (seconds)", "Tiled Memory")
    ours = ("Exact Time (seconds)", "Exact Memory", "Tiled Error", "Exact Error")
    rows = []
    for case in cases:
        plain, tiled, exact = (record.result(case, name) for name in ("diffusers", "tiled", "exact"))
        cells = [cell for one in (plain, tiled, exact) for cell in (_median(one), _peak(one.judged))]
        errors = (_error(tiled.judged), _error(exact.judged))
        size = "x".join(map(str, (case.size, case.size, *([case.frames] if case.frames > 1 else []))))
        rows.append((record.machine, size, case.dtype, *cells, *errors))
    return Table("Time and memory", (*columns, *ours), tuple(rows))


def _rivals(record: VaeRecord, case: Case) -> Table:
    numbers = ("s", "rounds, s", "× roof", "× exact", "peak", "planned peak", "error", "PSNR, dB")
    (roof, _), exact = record.roof(case), record.result(case, "exact").time
    rows: list[tuple[str, ...]] = []
    for name in _asked(record):
        one = record.result(case, name)
        if one.time is None or one.judged is None:
            why = f"missing: {one.missing}" if one.missing else "not measured yet"
            rows.append((RIVALS[name].title, *[NONE] * len(numbers), why))
            continue
        median, judged = one.time.median_s, one.judged
        cells = (
            format_seconds(median),
            f"{format_seconds(one.time.lowest_s)} … {format_seconds(one.time.highest_s)}",
            shown(median / roof.seconds if roof else None, ".2f"),
            shown(median / exact.median_s if exact else None, ".2f"),
            _peak(judged),
            _bytes(judged.plan.peak_bytes if judged.plan else None),
            _error(judged),
            shown(judged.psnr_db, ".1f"),
        )
        rows.append((RIVALS[name].title, *cells, _remark(judged, one.missing)))
    title = _title(case)
    return Table(title[0].upper() + title[1:], ("rival", *numbers, "remark"), tuple(rows))


def _remark(judged: Measurement, missing: str | None) -> str:
    remarks = [f"mode {judged.plan.mode}"] if judged.plan else []
    remarks += [f"tiles of {judged.tile_pixels}"] if judged.tile_pixels else []
    remarks += [f"no reference: {judged.no_reference}"] if judged.no_reference else []
    remarks += [f"missing later: {missing}"] if missing else []
    return "; ".join(remarks)


def _median(one: Result) -> str:
    return format_seconds(one.time.median_s) if one.time else NONE


def _peak(judged: Measurement | None) -> str:
    return _bytes(judged.peak_bytes if judged else None)


def _bytes(count: int | None) -> str:
    return NONE if count is None else format_bytes(count, up=True)


def _error(judged: Measurement | None) -> str:
    if judged is None or judged.reference is None:
        return NONE
    return "not finite" if judged.relative_l2 is None else f"{judged.relative_l2:.1e}"
