"""``hybridge profiles``"""

from __future__ import annotations

import typer

profiles = typer.Typer(help="Servers that are stored under a name, as `hybridge join` does.", no_args_is_help=True)


@profiles.command("list")
def list_profiles() -> None:
    """Print the names and addresses of the servers that this machine knows."""
    from ..client.profiles import file_path, load_all

    stored = load_all()
    if not stored:
        typer.echo(f"no profiles: `hybridge join` stores one in {file_path()}", err=True)
    for profile in stored:
        about = ["a key" if profile.key else "no key", *(["its own certificate"] if profile.certificate else [])]
        typer.echo(f"{profile.name}  {', '.join(map(str, profile.servers()))}  ({', '.join(about)})")


@profiles.command()
def remove(name: str = typer.Argument(help="Name of the server on this machine.")) -> None:
    """Forget a server. Its key stays valid until `hybridge keys remove` on the server."""
    from ..client.profiles import remove

    remove(name)
