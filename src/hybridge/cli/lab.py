"""``hybridge lab``: the workbench for whole pipelines; one verb a file."""

from __future__ import annotations

import typer

from .lab_advise import advise
from .lab_estimate import estimate
from .lab_list import list_
from .lab_report import report
from .lab_run import run
from .lab_simulate import simulate

lab = typer.Typer(
    help="Measure, estimate and choose what makes a pipeline faster or smaller.", no_args_is_help=True
)

lab.command("list")(list_)
lab.command()(run)
lab.command()(report)
lab.command()(estimate)
lab.command()(advise)
lab.command()(simulate)
