"""What verbs that measure have in common on the screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..lab.tables import Table


@contextmanager
def measuring(console: Any) -> Iterator[Callable[[int, int, str], None]]:
    """A bar for as long as it is measured; the block gets what moves it: (done, in all, what comes now)."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), "left", TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        bar = shown.add_task("starting", total=None)

        def progress(done: int, total: int, what: str) -> None:
            shown.update(bar, completed=done, total=total, description=what)

        yield progress


def drawn(table: Table) -> Any:
    """A table of the workbench, for rich."""
    from rich.table import Table as Drawn

    from ..lab.tables import columns_are_numbers

    whole = Drawn(title=table.title, title_justify="left")
    for column, is_number in zip(table.columns, columns_are_numbers(table.columns), strict=True):
        is_name = column == "configuration"  # which people copy
        whole.add_column(column, justify="right" if is_number else "left", overflow="fold", no_wrap=is_name)
    for row in table.rows:
        whole.add_row(*row)
    return whole
