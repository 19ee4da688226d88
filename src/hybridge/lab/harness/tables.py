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


def page(lines: Sequence[str], tables: Sequence[Table]) -> str:
    """Markdown: the lines, then every table under its title."""
    whole = list(lines)
    for table in tables:
        whole += ["", f"## {table.title}", ""]
        whole.append(f"| {' | '.join(table.columns)} |")
        whole.append("|" + "---|" * len(table.columns))
        whole += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in table.rows]
    return "\n".join(whole) + "\n"


def columns_are_numbers(columns: Sequence[str]) -> list[bool]:
    """Which columns are aligned to the right: all but those that name something."""
    names = {"case", "rival", "remark", "Device", "dtype", "server", "pictures", "stage", "errors"}
    names |= {"configuration", "outcome"}
    return [column not in names for column in columns]
