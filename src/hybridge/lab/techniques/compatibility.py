"""Which techniques do not go together, which do in one order, and which do because a row sees to it.

Facts, not code, from ``catalogue.json``: what was seen when both were put on one pipeline, or what the library says
of itself.  :mod:`.stack` asks this table before it touches anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from .facts import CATALOGUE, FACTS

#: What becomes of a pair.  *never together*: refused.  *first before second*: refused the other way round.
#: *cured*: it would break, and one of the two rows prevents it.
Rule = Literal["never together", "first before second", "cured"]


@dataclass(frozen=True, slots=True)
class Clash:
    """Each of the first names with each of the second.

    Attributes:
        reason: What would go wrong, as a sentence without its full stop.
        remedy: What works in its place, or what the cure is; empty where the order is all.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    rule: Rule
    reason: str
    remedy: str = ""

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Every pair, as (first, second)."""
        return itertools.product(self.first, self.second)


@dataclass(frozen=True, slots=True)
class OneOf:
    """Techniques in each other's place: a stack has one of them.

    Attributes:
        place: What they are for, with its article: ``a decoder``.
        reason: Why not two, as a sentence without its full stop.
    """

    place: str
    names: tuple[str, ...]
    reason: str


def _names(wanted: Iterable[str]) -> tuple[str, ...]:
    """Names of rows, where ``@kind`` stands for every row of a kind."""
    found: list[str] = []
    for name in wanted:
        kind = name.removeprefix("@")
        found += [name] if kind == name else [facts.name for facts in FACTS.values() if kind in facts.kinds]
    return tuple(found)


ONE_OF: tuple[OneOf, ...] = tuple(
    OneOf(place["place"], _names(place["names"]), place["reason"]) for place in CATALOGUE["places"]
)

CLASHES: tuple[Clash, ...] = tuple(
    Clash(**{**clash, "first": _names(clash["first"]), "second": _names(clash["second"])})
    for clash in CATALOGUE["clashes"]
)


def one_of(first: str, second: str) -> OneOf | None:
    """The place that both of these would take, if there is one."""
    return next((place for place in ONE_OF if first != second and {first, second} <= {*place.names}), None)


def between(first: str, second: str) -> Clash | None:
    """The row of this pair, whichever of the two it names first."""
    return next((c for c in CLASHES if (first, second) in c.pairs() or (second, first) in c.pairs()), None)


def must_precede(first: str, second: str) -> Clash | None:
    """The row that wants the first before the second, if there is one."""
    return next((c for c in CLASHES if c.rule == "first before second" and (first, second) in c.pairs()), None)
