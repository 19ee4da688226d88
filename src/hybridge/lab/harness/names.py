"""Rows by the names that people type."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

from ...errors import RequestError

Row = TypeVar("Row")


def look_up(kind: str, name: str, rows: Mapping[str, Row], expected: str | None = None) -> Row:
    """The row of this name.

    Args:
        kind: What it is, for people: ``technique``.
        name: As it was typed.
        rows: By name.
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
