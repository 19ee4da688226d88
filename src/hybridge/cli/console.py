"""The console of all verbs: it supports any encoding, and tables wrap between words in narrow terminals.

A console that is not UTF-8 gets ASCII replacements (``x`` for ``×``) for characters that it cannot show.
"""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_ERRORS = "hybridge.alike"

_ALIKE = str.maketrans(
    {
        **{"×": "x", "→": "->", "←": "<-", "↔": "<->", "✓": "*", "µ": "u", "μ": "u", "±": "+-", "≈": "~"},
        **{"–": "-", "—": "-", "−": "-", "‑": "-", "…": "...", "≤": "<=", "≥": ">=", "≠": "!=", "·": "*"},
        **{"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "\N{NO-BREAK SPACE}": " ", "•": "*"},
        **{
            "⁰": "^0",
            "¹": "^1",
            "²": "^2",
            "³": "^3",
            "⁴": "^4",
            "⁵": "^5",
            "⁶": "^6",
            "⁷": "^7",
            "⁸": "^8",
            "⁹": "^9",
        },
        **dict.fromkeys("─━═╌╍┄┅╴╶╸╺╼╾", "-"),
        **dict.fromkeys("│┃║╎╏┆┇╵╷╹╻╽╿", "|"),
        **{chr(code): "+" for code in (*range(0x250C, 0x254C), *range(0x2552, 0x2574))},
    }
)


def speak(*streams: Any) -> None:
    """Make streams print a similar character, or ``?``, for one outside their encoding, instead of raising."""
    codecs.register_error(_ERRORS, _replaced)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_alike(letter, error.encoding) for letter in missing), error.end


def _alike(letter: str, encoding: str) -> str:
    other = letter.translate(_ALIKE)
    try:
        other.encode(encoding)
    except UnicodeEncodeError:
        return "?"
    return other


class _Screen(Console):
    """rich's console, but it replaces characters before it measures columns, and never breaks lines of text.

    Terminals wrap lines themselves, and text that is copied or redirected to a file keeps its lines.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(self._shown(text), **options)

    def _shown(self, text: str) -> str:
        try:
            text.encode(self.encoding)
        except UnicodeEncodeError:
            return text.encode(self.encoding, _ERRORS).decode(self.encoding)
        return text

    def status(self, status: Any, **options: Any) -> Any:
        has_dots = self.encoding.lower().startswith("utf")
        return super().status(status, **{"spinner": "dots" if has_dots else "line", **options})


def screen(*, stderr: bool = False) -> Console:
    """Return a console for a verb."""
    speak(sys.stdout, sys.stderr)
    return _Screen(stderr=stderr, soft_wrap=True)


def show_table(
    console: Console,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str | None = None,
    numbers: Iterable[str] = (),
    whole: Iterable[str] = (),
) -> None:
    """Print a table that breaks lines only between words; if the console is too narrow for it, print a list.

    Args:
        console: A console from :func:`screen`.
        columns: The headings of the columns; they may be empty.
        rows: The cells, with rich's markup.
        title: The title above the table.
        numbers: Headings of the columns that are aligned to the right.
        whole: Headings of the columns whose cells are not wrapped.
    """
    cells = [list(row) for row in rows]
    plain = [[console.render_str(cell).plain for cell in row] for row in [list(columns), *cells]]
    uncut = set(whole)
    most, least = [], []
    for name, column in zip(columns, zip(*plain, strict=True), strict=True):
        parts = column if name in uncut else [word for cell in column for word in cell.split()]
        most.append(max(map(cell_len, column)))
        least.append(max(map(cell_len, parts), default=0))
    frame = 3 * len(columns) + 1
    if sum(least) + frame > console.width:
        _show_list(console, columns, cells, title)
        return
    table = Table(title=title, title_justify="left")
    widths = _widths(least, most, console.width - frame)
    for name, width in zip(columns, widths, strict=True):
        table.add_column(name, width=width, justify="right" if name in set(numbers) else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    console.print(table, soft_wrap=False)


def _widths(least: Sequence[int], most: Sequence[int], room: int) -> list[int]:
    """Give every column its minimum, then fill columns with small needs; the other columns share the rest."""
    widths, spare = list(least), room - sum(least)
    wanting = sorted(range(len(least)), key=lambda index: most[index] - least[index])
    for done, index in enumerate(wanting):
        more = min(most[index] - least[index], spare // (len(wanting) - done))
        widths[index] += more
        spare -= more
    return widths


def _show_list(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None) -> None:
    if title:
        console.print(title, style="italic")
    for first, *others in rows:
        console.print(f"[bold]{first}[/]")
        for name, cell in zip(columns[1:], others, strict=True):
            if not cell:
                continue
            said = console.render_str(f"{name}: {cell}" if name else cell)
            if any(cell_len(word) + 2 > console.width for word in said.plain.split()):
                console.print("  ", said, sep="")  # the terminal wraps this, so that a copy has no line breaks
            else:
                console.print(Padding(said, (0, 0, 0, 2)), soft_wrap=False)
