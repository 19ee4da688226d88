"""Options that several verbs share."""

from __future__ import annotations

import typer

DEVICE = typer.Option(None, help="auto, cpu, cuda, cuda:1, mps.", show_default="auto")
DTYPE = typer.Option(None, help="auto, float32, bfloat16 or float16.", show_default="auto")
MODEL = typer.Option(
    "starter", help="A name from `hybridge models`, NAME=PATH_OR_REPO[:subfolder], NAME=FILE[:MODEL]."
)
SERVER = typer.Option(
    None, help="A hybridge server's address, or the name of a profile.", show_default="this machine"
)
CA = typer.Option(None, help="PEM file of certificates to trust, for a server with its own.", envvar="HYBRIDGE_CA")
KEY = typer.Option(None, help="API key for the server.", envvar="HYBRIDGE_KEY")
