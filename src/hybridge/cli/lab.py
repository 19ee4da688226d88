"""``hybridge lab``: what each technique of the catalogue does to a pipeline, on this machine."""

from __future__ import annotations

import typer

from .lab_list import list_
from .lab_report import report
from .lab_run import run

lab = typer.Typer(help="Try what makes pipelines faster or smaller.", no_args_is_help=True)

lab.command("list")(list_)
lab.command()(run)
lab.command()(report)
