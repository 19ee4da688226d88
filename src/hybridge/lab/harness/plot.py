"""A plot of seconds against bytes: where points, ticks and names lie.  Templates draw it, as SVG."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ...units import format_bytes, format_seconds

#: A glyph's width at the plot's text size, in SVG units; for keeping names apart.
_LATIN, _CHINESE, _LINE = 6.6, 12.5, 15.0

_MANTISSAS = ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7), tuple(x / 10 for x in range(10, 100, 5)))


class Placed(Protocol):
    """Something with a place, in SVG units."""

    @property
    def x(self) -> float: ...
    @property
    def y(self) -> float: ...


Point = TypeVar("Point", bound=Placed)

#: The point that has a name; where the name stands; SVG's ``text-anchor``.
Label = tuple[Point, float, float, str]


@dataclass(frozen=True, slots=True)
class Tick:
    """A number on an axis."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis, logarithmic: equal ratios are equal distances."""

    lowest: float
    highest: float
    start: float
    end: float

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float) -> Scale:
        """The scale on which these values lie, with a margin on both sides."""
        positive = [value for value in values if value > 0] or [1.0]
        lowest, highest = min(positive), max(positive)
        # A margin of a twentieth on both sides, and never less than a factor of 1.5 in all.
        margin = max((highest / lowest) ** 0.06, 1.5**0.5 if highest / lowest < 1.2 else 1.03)
        return cls(lowest / margin, highest * margin, start, end)

    def at(self, value: float) -> float:
        """The coordinate of a value."""
        share = math.log(value / self.lowest) / math.log(self.highest / self.lowest)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, apart: float) -> list[float]:
        """Round numbers, as many as have room."""
        found: list[float] = []
        for mantissas in _MANTISSAS:
            within = list(_round_numbers(self.lowest, self.highest, mantissas))
            places = [self.at(value) for value in within]
            too_near = any(abs(b - a) < apart for a, b in itertools.pairwise(places))
            if too_near or len(within) > abs(self.end - self.start) / apart:
                break
            found = within
        if len(found) >= 2:
            return found
        ratio = self.highest / self.lowest
        return [self.lowest * ratio**share for share in (0.15, 0.5, 0.85)]


@dataclass(frozen=True, slots=True)
class Frame:
    """Bytes to the right, seconds upwards; coordinates in SVG units."""

    width: int
    height: int
    across: Scale
    up: Scale
    left: int
    right: int
    top: int
    bottom: int

    @classmethod
    def around(cls, values: Sequence[tuple[float, float]], width: int, height: int) -> Frame:
        """The frame for these (bytes, seconds)."""
        left, right, top, bottom = 56, width - 16, 14, height - 46
        across = Scale.of([count for count, _ in values], left, right)
        up = Scale.of([seconds for _, seconds in values], bottom, top)
        return cls(width, height, across, up, left, right, top, bottom)

    @property
    def x_ticks(self) -> list[Tick]:
        return [Tick(self.across.at(value), format_bytes(value, decimal=True)) for value in self.across.ticks(66)]

    @property
    def y_ticks(self) -> list[Tick]:
        return [Tick(self.up.at(value), format_seconds(value)) for value in self.up.ticks(34)]

    def at(self, count: float, seconds: float) -> tuple[float, float]:
        """The place of bytes and seconds."""
        return self.across.at(count), self.up.at(seconds)

    def named(self, points: Sequence[Point], names: Callable[[Point], Iterable[str]]) -> Iterator[Label[Point]]:
        """The names that can be placed where they cover nothing.

        Args:
            points: The more important first.
            names: Of a point, in every language; the widest must have room.
        """
        taken = [(point.x - 5, point.y - 5, point.x + 5, point.y + 5) for point in points]
        # What the upright axis is called stands there.
        taken.append((self.left, self.top - 4.0, self.left + 140.0, self.top + 16.0))
        for point in points:
            width = max(map(_width, names(point)))
            for x, y, anchor, before in (
                (point.x + 9, point.y + 4, "start", 0.0),
                (point.x - 9, point.y + 4, "end", width),
                (point.x, point.y - 10, "middle", width / 2),
                (point.x, point.y + 19, "middle", width / 2),
            ):
                box = (x - before, y - _LINE + 4, x - before + width, y + 4)
                if self._holds(box) and not any(_meet(box, other) for other in taken):
                    taken.append(box)
                    yield point, round(x, 1), round(y, 1), anchor
                    break

    def _holds(self, box: tuple[float, ...]) -> bool:
        return self.left <= box[0] and box[2] <= self.right and self.top <= box[1] and box[3] <= self.bottom


def _round_numbers(lowest: float, highest: float, mantissas: Iterable[float]) -> Iterable[float]:
    for power in range(math.floor(math.log10(lowest)), math.ceil(math.log10(highest)) + 1):
        for mantissa in mantissas:
            value = float(f"{mantissa}e{power}")
            if lowest <= value <= highest:
                yield value


def _width(text: str) -> float:
    return sum(_LATIN if ord(letter) < 0x2E80 else _CHINESE for letter in text)


def _meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
