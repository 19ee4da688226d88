"""Numbers as text, the same in every language.  Bytes are decimal, as on a card's box and in the guide."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from ...units import format_bytes, format_seconds
from ..harness.tables import NONE

__all__ = ["NONE", "calls", "number", "ratio", "seconds", "size", "small"]


def seconds(value: float | None) -> str:
    return NONE if value is None else format_seconds(value)


def size(count: float | None) -> str:
    return NONE if count is None else format_bytes(count, decimal=True)


def ratio(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def number(value: float | None, digits: int) -> str:
    if value is None:
        return NONE
    return f"{value:.{digits}f}" if math.isfinite(value) else "NaN"


def small(value: float | None) -> str:
    """A difference of pixels, where the order of magnitude matters."""
    if value is None:
        return NONE
    return "0" if value == 0 else f"{value:.2g}" if math.isfinite(value) else "NaN"


def calls(batches: Sequence[int]) -> str:
    """``6 × 2 + 4 × 1``: six forwards of batch two, then four of one."""
    runs = [(len(list(same)), batch) for batch, same in itertools.groupby(batches)]
    if len(runs) > 3:
        return f"{len(batches)} ({sum(batches)})"
    return " + ".join(f"{count} × {batch}" for count, batch in runs) or NONE
