"""Tables as text, for whoever draws them: the terminal, Markdown, the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: In a cell that has nothing to say.
NONE = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text, whoever draws them."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def shown(number: float | None, form: str) -> str:
    """A number in a cell, formatted as ``form`` says."""
    return NONE if number is None else format(number, form)


def columns_are_numbers(columns: Sequence[str]) -> list[bool]:
    """Which columns are aligned to the right: all but those that name something."""
    names = {"case", "rival", "remark", "Device", "dtype", "server", "pictures", "stage", "errors"}
    names |= {"configuration", "outcome"}
    return [column not in names for column in columns]
