"""The table of techniques.  A new one is a row of ``catalogue.json``, and its functions in a family's file."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ...errors import RequestError
from . import (
    attention,
    caches,
    calling,
    compilers,
    engines,
    layout,
    offload,
    other_hardware,
    phases,
    precision,
    quantised,
    refiner,
    remote,
    tokens,
    unavailable,
    vae,
)
from .facts import FACTS
from .technique import Technique

_FAMILIES = (
    precision,
    attention,
    vae,
    layout,
    calling,
    refiner,
    phases,
    remote,
    caches,
    tokens,
    unavailable,
    compilers,
    quantised,
    offload,
    engines,
    other_hardware,
)

#: By name, family by family.
TECHNIQUES: dict[str, Technique] = {
    name: {row.name: row for family in _FAMILIES for row in family.ROWS}[name] for name in FACTS
}


def named(names: Iterable[str]) -> tuple[Technique, ...]:
    """The rows of these names, in the order given.

    Raises:
        RequestError: for a name that no row has.
    """
    found = []
    for name in names:
        if name not in TECHNIQUES:
            near = difflib.get_close_matches(name, TECHNIQUES, n=1)
            raise RequestError(
                "unknown technique",
                saw=name,
                expected="a name that `hybridge lab list` shows",
                hint=near[0] if near else None,
            )
        found.append(TECHNIQUES[name])
    return tuple(found)
