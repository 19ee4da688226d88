"""What verbs that measure have in common on the screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..lab.harness.tables import Table


@contextmanager
def measuring(console: Any) -> Iterator[Callable[[int, int, str], None]]:
    """A bar for as long as it is measured; the block gets what moves it: (done, in all, what comes now)."""
    with progress_bar(console) as shown:
        bar = shown.add_task("starting", total=None)

        def progress(done: int, total: int, what: str) -> None:
            shown.update(bar, completed=done, total=total, description=what)

        yield progress


def progress_bar(console: Any) -> Progress:
    """A bar that is gone at the end, with the time that is left beside it."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), "left", TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def draw(table: Table, console: Any) -> None:
    """Prints a table of the workbench."""
    from ..lab.harness.tables import columns_are_numbers
    from .console import show_table

    numbers = [
        name for name, is_number in zip(table.columns, columns_are_numbers(table.columns), strict=True) if is_number
    ]
    # Names of configurations are copied.
    show_table(console, table.columns, table.rows, title=table.title, numbers=numbers, whole=("configuration",))
