"""Names and numbers that people type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from ...errors import RequestError

Row = TypeVar("Row")


def look_up(kind: str, name: str, rows: Mapping[str, Row], expected: str | None = None) -> Row:
    """The row of this name.

    Args:
        kind: What it is, for people: ``technique``.
        expected: What to say in place of all names, where they are many.

    Raises:
        RequestError: where there is none, with the names that there are and the nearest.
    """
    if name in rows:
        return rows[name]
    near = difflib.get_close_matches(str(name), rows, n=1)
    raise RequestError(
        f"unknown {kind}",
        saw=name,
        expected=expected or ", ".join(rows),
        hint=near[0] if near else None,
    )


def check_known(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises :class:`RequestError` for a name that is not known; see :func:`look_up`."""
    rows = dict.fromkeys(known)
    for name in names:
        look_up(kind, name, rows)


def check_number(kind: str, value: float | None, highest: float, *, may_be_zero: bool = False) -> None:
    """Raises :class:`RequestError` for a number that is not above 0 or above ``highest``; None is fine."""
    if value is not None and not (0 < value <= highest or (may_be_zero and value == 0)):
        raise RequestError(f"not a number of {kind}", saw=value, expected=f"more than 0, at most {highest:g}")
