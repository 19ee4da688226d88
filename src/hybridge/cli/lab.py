"""``hybridge lab``: the workbench."""

from __future__ import annotations

import typer

from .lab_report import report

lab = typer.Typer(help="Which optimisation pays on this machine.", no_args_is_help=True)


@lab.callback()
def _root() -> None:
    # With it, one verb alone is a verb still.
    pass


lab.command()(report)
