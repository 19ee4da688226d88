"""``hybridge lab``: the workbench for whole pipelines; one verb a file."""

from __future__ import annotations

import typer

from .lab_advise import advise
from .lab_estimate import estimate

lab = typer.Typer(help="Measure, estimate and choose optimisations of a pipeline.", no_args_is_help=True)

lab.command()(estimate)
lab.command()(advise)
