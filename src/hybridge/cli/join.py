"""``hybridge join``"""

from __future__ import annotations

import typer


def join(
    link: str = typer.Argument(help="What `hybridge pair` printed on the server's machine.", show_default=False),
    name: str = typer.Option(None, help="Name for the server on this machine.", show_default="its own"),
) -> None:
    """Store a server that has invited this machine, with its address, certificate and a key of its own.

    Its certificate is compared with the link before anything secret is sent.
    """
    from ..client import pairing, profiles
    from .console import screen

    profile = pairing.join(link, name)
    console = screen()
    console.print(f"[bold]{profile.name}[/] is {profile.addresses[0]}, stored in {profiles.file_path()}")
    console.print(f"hybridge models --server {profile.name}", highlight=False)
    console.print(f'hybridge.Client("{profile.name}")', highlight=False)
