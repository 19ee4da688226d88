"""``hybridge keys``"""

from __future__ import annotations

from pathlib import Path

import typer

keys = typer.Typer(help="API keys for `hybridge serve --keys FILE`.", no_args_is_help=True)

_FILE = typer.Argument(help="The file of keys; it holds hashes, from which no key can be had.")


@keys.command()
def add(
    file: Path = _FILE,
    name: str = typer.Argument(help="Whose it is; stands in the server's log."),
    admin: bool = typer.Option(False, "--admin", help="It may also manage keys, by /v1/keys."),
) -> None:
    """Make a key, and print it: it is shown this once. A running server knows it at once."""
    from ..server.middleware.key_file import add_key

    typer.echo(add_key(file, name, is_admin=admin))


@keys.command("list")
def list_keys(file: Path = _FILE) -> None:
    """Print the names of the keys in a file, and which of them may manage keys."""
    from ..server.middleware.key_file import KeyRing

    ring = KeyRing.read(file)
    if not (ring.hashes or ring.invitations):
        typer.echo(f"no keys in {file}", err=True)
    for name in ring.hashes:
        typer.echo(f"{name} (admin)" if name in ring.admins else name)
    for name in ring.invitations:
        typer.echo(f"{name} (from `hybridge pair`)")


@keys.command()
def remove(file: Path = _FILE, name: str = typer.Argument(help="Whose it was.")) -> None:
    """Take a key out of a file. A running server refuses it at once."""
    from ..server.middleware.key_file import remove_key

    remove_key(file, name)
