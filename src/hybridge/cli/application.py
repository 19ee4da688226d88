"""The command ``hybridge`` with all its verbs."""

from __future__ import annotations

import typer

from .. import __version__
from .bench import bench
from .convert import convert
from .decode import decode
from .demo import demo
from .doctor import doctor
from .encode import encode
from .find import find
from .join import join
from .keys import keys
from .lab import lab
from .models import models
from .openmp import spin_briefly
from .pair import pair
from .plan import plan
from .profiles import profiles
from .prompt import prompt
from .serve import serve
from .serve_options import ServeCommand
from .verify import verify

application = typer.Typer(
    name="hybridge",
    help="Hybrid inference that you host yourself: VAE and text encoders over HTTP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hybridge {__version__}")
        raise typer.Exit


@application.callback()
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print it."),
) -> None:
    # Benchmarks measure their competitors in the user's own environment, unchanged.
    if context.invoked_subcommand not in ("bench", "lab"):
        spin_briefly()


application.command()(demo)
application.command(cls=ServeCommand)(serve)
for verb in (models, encode, decode, prompt, plan, convert, doctor, verify, pair, join, find):
    application.command()(verb)
application.add_typer(bench, name="bench")
application.add_typer(lab, name="lab")
application.add_typer(keys, name="keys")
application.add_typer(profiles, name="profiles")
