"""The plot of a study: its configurations as points, their Pareto front, and the names that have room."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from ..harness.plot import Frame, Label
from ..harness.words import Text
from . import formatting
from .findings import Findings, Measure, Row
from .summary import names, title
from .texts import UI


@dataclass(frozen=True, slots=True)
class Point:
    """A configuration on the plot; coordinates in SVG units."""

    row: Row
    x: float
    y: float
    about: Text
    is_front: bool


@dataclass(frozen=True, slots=True)
class Plot:
    """All that the template needs.

    Attributes:
        labels: Names of points, where they cover no other.
        front: The Pareto front, as an SVG path; a staircase.
        missing: Configurations that have a time and no memory of this kind, as text, or None.
    """

    frame: Frame
    measure: Measure
    points: tuple[Point, ...]
    labels: tuple[Label[Point], ...]
    front: str
    missing: Text | None


def plot(found: Findings, measure: Measure, width: int, height: int) -> Plot:
    """Memory to the right, seconds upwards, both logarithmic."""
    shown = [row for row in found.rows if row.counts and measure in row.memory]
    without = [row for row in found.rows if row.counts and measure not in row.memory]
    front = found.front(measure)
    frame = Frame.around([(row.memory[measure], _seconds(row)) for row in shown], width, height)
    points = [
        Point(row, *frame.at(row.memory[measure], _seconds(row)), _about(row, measure, row in front), row in front)
        for row in shown
    ]
    # The front is drawn above the rest, the baseline above all.
    points.sort(key=lambda point: (point.row.is_baseline, point.is_front))
    # Named are the baseline and the front, the rest as far as there is room.
    important = sorted(points, key=lambda point: (not point.row.is_baseline, not point.is_front, point.y))
    return Plot(
        frame,
        measure,
        tuple(points),
        tuple(frame.named(important, lambda point: title(point.row))),
        _staircase([point for point in points if point.is_front]),
        names(without) if without else None,
    )


def _seconds(row: Row) -> float:
    return max(row.seconds, 1e-9)


def _about(row: Row, measure: Measure, is_front: bool) -> Text:
    numbers = f"{formatting.seconds(_seconds(row))} s, {formatting.size(row.memory[measure])}"
    name, on_it = title(row), UI["front"]
    if not is_front:
        return Text(f"{name.en}: {numbers}", f"{name.zh}：{numbers}")
    return Text(f"{name.en}: {numbers}; {on_it.en}", f"{name.zh}：{numbers}；{on_it.zh}")


def _staircase(points: Sequence[Point]) -> str:
    ordered = sorted(points, key=lambda point: point.x)
    if len(ordered) < 2:
        return ""
    path = f"M{ordered[0].x} {ordered[0].y}"
    for before, after in itertools.pairwise(ordered):
        path += f"H{after.x}V{after.y}" if after.y >= before.y else f"V{after.y}H{after.x}"
    return path
