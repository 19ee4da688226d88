"""One picture of a record: seconds against peak memory, a line for every rival, a point for every size."""

from __future__ import annotations

from pathlib import Path

from ..harness.record import Record, machine
from .report import cases, result
from .rivals import RIVALS

_MARKERS = {"float32": "o", "bfloat16": "s", "float16": "^"}


def plot(record: Record, path: Path) -> None:
    """Writes a PNG; both axes are logarithmic, so equal ratios are equal distances.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    # Figure and canvas, not pyplot: no window, and nothing kept in a global.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = [name for name in RIVALS if name in record["arguments"]["rivals"]]
    has_points = False
    for number, name in enumerate(names):
        label: str | None = RIVALS[name].title
        for dtype in record["arguments"]["dtypes"]:
            points = [
                (one.judged["peak_bytes"] / 2**20, one.time.median_s, case["size"])
                for case in cases(record)
                if case["dtype"] == dtype
                for one in (result(record, case, name),)
                if one.time and one.judged.get("peak_bytes")
            ]
            if not points:
                continue
            peaks, seconds, sizes = zip(*points, strict=True)
            axes.plot(peaks, seconds, marker=_MARKERS[dtype], color=f"C{number}", label=label)
            for peak, second, size in zip(peaks, seconds, sizes, strict=True):
                axes.annotate(f"{size}", (peak, second), textcoords="offset points", xytext=(5, 4), fontsize=7)
            label, has_points = None, True
    if has_points:
        axes.set(xscale="log", yscale="log")
        axes.legend(fontsize=8)
    else:
        axes.text(0.5, 0.5, "nothing was measured", ha="center", transform=axes.transAxes)
    asked = record["arguments"]["dtypes"]
    dtypes = ", ".join(f"{dtype} {_MARKERS[dtype]}" for dtype in asked) if len(asked) > 1 else asked[0]
    where = machine(record["environment"])
    axes.set(xlabel="peak memory on top of the weights, MiB", ylabel="seconds, median")
    axes.set_title(f"{record['model']['name']}, {record['arguments']['task']}, {dtypes}\n{where}", fontsize=9)
    axes.grid(visible=True, which="both", alpha=0.25)
    figure.savefig(path, format="png")
