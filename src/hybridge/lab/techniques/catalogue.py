"""The table of techniques.  A new one is a row of ``catalogue.json``, and its functions in a family's file."""

from __future__ import annotations

from collections.abc import Iterable

from ..harness.names import look_up
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
from .facts import FACTS, KNOWN
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
    return tuple(look_up("technique", name, TECHNIQUES, KNOWN) for name in names)
