"""``hybridge bench``: what is fast, what fits, and what it costs; one verb for each part that is measured."""

from __future__ import annotations

import typer

from .bench_serve import serve_bench
from .bench_vae import vae

bench = typer.Typer(help="Measure on this machine.", no_args_is_help=True)

bench.command()(vae)
bench.command("serve")(serve_bench)
