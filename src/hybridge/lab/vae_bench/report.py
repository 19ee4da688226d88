"""Tables from a record: on the screen, and as Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...units import format_bytes, format_seconds
from ..harness.record import Record, machine
from ..harness.stats import Roof, Summary, roof_of, summary
from ..harness.tables import NONE, Table, page
from .rivals import RIVALS
from .runner import entries_of


@dataclass(frozen=True, slots=True)
class Result:
    """What a record knows of one rival in one case.

    Attributes:
        time: Of its rounds, or None.
        missing: Why there is no time, or None.
        judged: The entry of the round that judged: ``peak_bytes``, ``relative_l2``, ``psnr_db``, ``plan``.
    """

    time: Summary | None
    missing: str | None
    judged: dict[str, Any]


def result(record: Record, case: dict[str, Any], rival: str) -> Result:
    """One rival's entries of a case (task, size, dtype), put together."""
    entries = entries_of(record, case, rival)
    missing = next((entry["missing"] for entry in entries if "missing" in entry), None)
    time = summary(entry.get("seconds", ()) for entry in entries)
    return Result(time, missing, entries[0] if entries else {})


def cases(record: Record) -> list[dict[str, Any]]:
    """(task, size, dtype) of everything that was asked for."""
    asked = record["arguments"]
    return [
        {"task": asked["task"], "size": size, "dtype": dtype}
        for dtype in asked["dtypes"]
        for size in asked["sizes"]
    ]


def title(case: dict[str, Any]) -> str:
    """Of a case, for people."""
    return f"{case['task']} {case['size']}×{case['size']}, {case['dtype']}"


def tables(record: Record) -> list[Table]:
    """The roof, the table of diffusers' documentation with ours beside it, and every case rival by rival."""
    return [_roofs(record), _documentation(record), *(_rivals(record, case) for case in cases(record))]


def markdown(record: Record) -> str:
    """A page: what was run where, and the tables."""
    environment, asked = record["environment"], record["arguments"]
    where = machine(environment)
    weights = "random weights" if record["model"]["weights"] == "random" else record["model"]["weights"]
    lines = [
        f"# {record['model']['name']}, {asked['task']}, on {where}",
        "",
        f"{weights}, seed {asked['seed']}; {asked['repeats']} rounds, every rival in a fresh process each time;"
        f" {environment['threads']} of {environment['cores']} cores, {environment['capability']};"
        f" torch {environment['torch']}, diffusers {environment['diffusers']},"
        f" OpenVINO {environment['openvino'] or 'not installed'}, hybridge {environment['hybridge']};"
        f" {record['date']}.",
        "",
        "Seconds are medians over rounds, beside the fastest and the slowest. Memory is what a call takes on top of"
        " the weights. Errors are relative, ‖a − b‖ / ‖b‖, against diffusers' untiled forward in float32, or in"
        " float64 for float32 up to 256×256.",
    ]
    return page(lines, tables(record))


def roof(record: Record, case: dict[str, Any]) -> Roof | None:
    """The roof of a case, or None where none could be measured."""
    return roof_of([entry for entry in entries_of(record, case, None) if "missing" not in entry])


def _roofs(record: Record) -> Table:
    columns = ("case", "TFLOP", "convolutions, GFLOP/s", "matmul, GFLOP/s", "roof, s")
    rows = []
    for case in cases(record):
        found = roof(record, case)
        if found is None:
            reasons = [entry["missing"] for entry in entries_of(record, case, None) if "missing" in entry]
            rows.append((title(case), f"missing: {reasons[0]}" if reasons else NONE, NONE, NONE, NONE))
            continue
        matmul = f"{found.matmul_flops_per_s / 1e9:.0f}" if found.matmul_flops_per_s else NONE
        speeds = (f"{found.convolution_flops_per_s / 1e9:.0f}", matmul)
        rows.append((title(case), f"{found.flops / 1e12:.3g}", *speeds, format_seconds(found.seconds)))
    return Table("The roof", columns, tuple(rows))


def _documentation(record: Record) -> Table:
    """The columns of diffusers' documentation of remote VAEs, in its order, then ours."""
    columns = ("Device", "Resolution", "dtype", "Time (seconds)", "Memory", "Tiled Time (seconds)", "Tiled Memory")
    ours = ("Exact Time (seconds)", "Exact Memory", "Tiled Error", "Exact Error")
    device = machine(record["environment"])
    rows = []
    for case in cases(record):
        plain, tiled, exact = (result(record, case, name) for name in ("diffusers", "tiled", "exact"))
        cells = [cell for one in (plain, tiled, exact) for cell in (_median(one), _bytes(one.judged))]
        errors = (_error(tiled), _error(exact))
        rows.append((device, f"{case['size']}x{case['size']}", case["dtype"], *cells, *errors))
    return Table("Time and memory", (*columns, *ours), tuple(rows))


def _rivals(record: Record, case: dict[str, Any]) -> Table:
    columns = (
        "rival",
        "s",
        "rounds, s",
        "× roof",
        "× exact",
        "peak",
        "planned peak",
        "error",
        "PSNR, dB",
        "remark",
    )
    found, exact = roof(record, case), result(record, case, "exact").time
    rows: list[tuple[str, ...]] = []
    for name in (name for name in RIVALS if name in record["arguments"]["rivals"]):
        one = result(record, case, name)
        if one.time is None:
            why = f"missing: {one.missing}" if one.missing else "not measured yet"
            rows.append((RIVALS[name].title, *[NONE] * (len(columns) - 2), why))
            continue
        median, plan = one.time.median_s, one.judged.get("plan", {})
        rows.append(
            (
                RIVALS[name].title,
                format_seconds(median),
                f"{format_seconds(one.time.lowest_s)} … {format_seconds(one.time.highest_s)}",
                f"{median / found.seconds:.2f}" if found else NONE,
                f"{median / exact.median_s:.2f}" if exact else NONE,
                _bytes(one.judged),
                format_bytes(plan["peak_bytes"], up=True) if "peak_bytes" in plan else NONE,
                _error(one),
                _psnr(one.judged),
                _remark(one),
            )
        )
    return Table(title(case)[0].upper() + title(case)[1:], columns, tuple(rows))


def _remark(one: Result) -> str:
    judged = one.judged
    remarks = [f"mode {judged['plan']['mode']}"] if "plan" in judged else []
    remarks += [f"tiles of {judged['tile_pixels']}"] if "tile_pixels" in judged else []
    remarks += [f"no reference: {judged['no_reference']}"] if "no_reference" in judged else []
    remarks += [f"missing later: {one.missing}"] if one.missing else []
    return "; ".join(remarks)


def _median(one: Result) -> str:
    return format_seconds(one.time.median_s) if one.time else NONE


def _bytes(judged: dict[str, Any]) -> str:
    peak = judged.get("peak_bytes")
    return NONE if peak is None else format_bytes(peak, up=True)


def _error(one: Result) -> str:
    if "relative_l2" not in one.judged:
        return NONE
    error = one.judged["relative_l2"]
    return "not finite" if error is None else f"{error:.1e}"


def _psnr(judged: dict[str, Any]) -> str:
    psnr = judged.get("psnr_db")
    return NONE if psnr is None else f"{psnr:.1f}"
