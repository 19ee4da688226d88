"""Progress bars and tables of the verbs that measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..lab.harness.tables import Table


@contextmanager
def measuring(console: Any) -> Iterator[Callable[[int, int, str], None]]:
    """Show a progress bar; the block gets the function that advances it: (done, total, current step)."""
    with progress_bar(console) as shown:
        bar = shown.add_task("starting", total=None)

        def progress(done: int, total: int, what: str) -> None:
            shown.update(bar, completed=done, total=total, description=what)

        yield progress


def progress_bar(console: Any) -> Progress:
    """Return a progress bar with the remaining time, which disappears at the end."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), "left", TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def draw(table: Table, console: Any) -> None:
    """Print a table of the workbench."""
    from ..lab.harness.tables import columns_are_numbers
    from .console import show_table

    numbers = [
        name for name, is_number in zip(table.columns, columns_are_numbers(table.columns), strict=True) if is_number
    ]
    # Users copy the names of configurations.
    show_table(console, table.columns, table.rows, title=table.title, numbers=numbers, whole=("configuration",))


def show_record(tables: Sequence[Table], path: Path, beside: Mapping[str, str], console: Any) -> None:
    """Print a record's tables, and write what is made from it beside it, by the ending of each file."""
    for table in tables:
        draw(table, console)
        console.print()
    for ending, text in beside.items():
        path.with_suffix(ending).write_text(text, encoding="utf-8")
    console.print("written: " + ", ".join(map(str, [path, *(path.with_suffix(ending) for ending in beside)])))
