"""The plot of time against memory: where points, ticks and names lie.  The template draws it, as SVG."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..harness.words import Text
from . import formatting
from .findings import Findings, Measure, Row
from .summary import names, title
from .texts import UI

#: A glyph's width at the plot's text size, in SVG units; for keeping names apart.
_LATIN, _CHINESE, _LINE = 6.6, 12.5, 15.0

_MANTISSAS = ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7), tuple(x / 10 for x in range(10, 100, 5)))


@dataclass(frozen=True, slots=True)
class Point:
    """A configuration on the plot; coordinates in SVG units."""

    row: Row
    x: float
    y: float
    about: Text
    is_front: bool


@dataclass(frozen=True, slots=True)
class Label:
    """The name of a point, placed where it covers no other."""

    text: Text
    x: float
    y: float
    anchor: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A number on an axis."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Plot:
    """All that the template needs.

    Attributes:
        front: The Pareto front, as an SVG path; a staircase.
        missing: Configurations that have a time and no memory of this kind, as text, or None.
    """

    measure: Measure
    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    points: tuple[Point, ...]
    labels: tuple[Label, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    front: str
    missing: Text | None


def plot(found: Findings, measure: Measure, width: int, height: int) -> Plot:
    """Memory to the right, seconds upwards, both logarithmic."""
    left, right, top, bottom = 56, width - 16, 14, height - 46
    shown = [row for row in found.rows if row.counts and measure in row.memory and row.time]
    without = [row for row in found.rows if row.counts and measure not in row.memory]
    front = found.front(measure)
    across = _scale([row.memory[measure] for row in shown], left, right)
    up = _scale([_seconds(row) for row in shown], bottom, top)
    points = [
        Point(
            row,
            across.at(row.memory[measure]),
            up.at(_seconds(row)),
            _about(row, measure, row in front),
            row in front,
        )
        for row in shown
    ]
    # The front is drawn above the rest, the baseline above all.
    points.sort(key=lambda point: (point.row.is_baseline, point.is_front))
    return Plot(
        measure,
        width,
        height,
        left,
        right,
        top,
        bottom,
        tuple(points),
        tuple(_labels(points, left, right, top, bottom)),
        tuple(Tick(across.at(value), formatting.size(value)) for value in across.ticks(right - left, 66)),
        tuple(Tick(up.at(value), formatting.seconds(value)) for value in up.ticks(bottom - top, 34)),
        _staircase([point for point in points if point.is_front]),
        names(without) if without else None,
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    lowest: float
    highest: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = math.log(value / self.lowest) / math.log(self.highest / self.lowest)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, room: float, apart: float) -> list[float]:
        """Round numbers, as many as have room."""
        found: list[float] = []
        for mantissas in _MANTISSAS:
            within = list(_round_numbers(self.lowest, self.highest, mantissas))
            places = [self.at(value) for value in within]
            too_near = any(abs(b - a) < apart for a, b in itertools.pairwise(places))
            if too_near or len(within) > room / apart:
                break
            found = within
        if len(found) >= 2:
            return found
        ratio = self.highest / self.lowest
        return [self.lowest * ratio**share for share in (0.15, 0.5, 0.85)]


def _scale(values: Sequence[float], start: float, end: float) -> _Scale:
    positive = [value for value in values if value > 0] or [1.0]
    lowest, highest = min(positive), max(positive)
    # A margin of a twentieth on both sides, and never less than a factor of 1.5 in all.
    margin = max((highest / lowest) ** 0.06, 1.5**0.5 if highest / lowest < 1.2 else 1.03)
    return _Scale(lowest / margin, highest * margin, start, end)


def _round_numbers(lowest: float, highest: float, mantissas: Iterable[float]) -> Iterable[float]:
    for power in range(math.floor(math.log10(lowest)), math.ceil(math.log10(highest)) + 1):
        for mantissa in mantissas:
            value = float(f"{mantissa}e{power}")
            if lowest <= value <= highest:
                yield value


def _seconds(row: Row) -> float:
    return max(row.time.median_s, 1e-9) if row.time else math.inf


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


def _labels(points: Sequence[Point], left: int, right: int, top: int, bottom: int) -> Iterable[Label]:
    """Names of the front and of the baseline, the rest as far as there is room."""
    taken = [(point.x - 5, point.y - 5, point.x + 5, point.y + 5) for point in points]
    # What the upright axis is called stands there.
    taken.append((left, top - 4.0, left + 140.0, top + 16.0))
    important = sorted(points, key=lambda point: (not point.row.is_baseline, not point.is_front, point.y))
    for point in important:
        text = title(point.row)
        width = max(_width(text.en), _width(text.zh))
        for x, y, anchor in (
            (point.x + 9, point.y + 4, "start"),
            (point.x - 9, point.y + 4, "end"),
            (point.x, point.y - 10, "middle"),
            (point.x, point.y + 19, "middle"),
        ):
            from_x = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            box = (from_x, y - _LINE + 4, from_x + width, y + 4)
            inside = left <= box[0] and box[2] <= right and top <= box[1] and box[3] <= bottom
            if inside and not any(_meet(box, other) for other in taken):
                taken.append(box)
                yield Label(text, round(x, 1), round(y, 1), anchor)
                break


def _width(text: str) -> float:
    return sum(_LATIN if ord(letter) < 0x2E80 else _CHINESE for letter in text)


def _meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
