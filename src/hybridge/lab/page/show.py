"""Numbers as text, the same in every language.  Bytes are decimal, as on a card's box and in the guide."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

NONE = "–"


def seconds(value: float | None) -> str:
    if value is None:
        return NONE
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def size(count: float | None) -> str:
    if count is None:
        return NONE
    unit, name = next(
        ((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if count >= unit), (1, "B")
    )
    value = count / unit
    return f"{value:.0f} {name}" if value >= 100 or unit == 1 else f"{value:.3g} {name}"


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
