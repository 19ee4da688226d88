"""``hybridge keys``"""

from __future__ import annotations

from pathlib import Path

import typer

keys = typer.Typer(help="API keys for `hybridge serve --keys FILE`.", no_args_is_help=True)

_FILE = typer.Argument(help="The file of keys; it holds hashes, from which no key can be had.")


@keys.command()
def add(file: Path = _FILE, name: str = typer.Argument(help="Whose it is; stands in the server's log.")) -> None:
    """Make a key, and print it: it is shown this once. A running server reads the file when it starts again."""
    from ..server.middleware.auth import add_key

    typer.echo(add_key(file, name))


@keys.command("list")
def list_keys(file: Path = _FILE) -> None:
    """Print the names of the keys in a file."""
    from ..server.middleware.auth import KeyRing

    for name in KeyRing.read(file).hashes:
        typer.echo(name)


@keys.command()
def remove(file: Path = _FILE, name: str = typer.Argument(help="Whose it was.")) -> None:
    """Take a key out of a file."""
    from ..server.middleware.auth import remove_key

    remove_key(file, name)
