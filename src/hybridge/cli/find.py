"""``hybridge find``"""

from __future__ import annotations

import typer


def find(
    seconds: float = typer.Option(3.0, help="How long to listen.", min=0.1, max=60),
    update: bool = typer.Option(
        False, "--update", help="Store new addresses of paired servers, after a look at their certificates."
    ),
) -> None:
    """List the servers that announce themselves in the local network (`serve --announce`).

    Anybody there can announce anything: use `hybridge join` for a server that is new.
    """
    from ..client import profiles
    from ..client.discovery import find as listen
    from ..client.discovery import moved
    from ..errors import ClientError

    stored = profiles.load_all()
    heard = listen(seconds)
    if not heard:
        typer.echo(
            f"no server was heard in {seconds:g} s: `hybridge serve --announce` makes one announce itself", err=True
        )
    for found in heard:
        profile = found.profile(stored)
        note = "not paired: `hybridge pair` there, then `hybridge join` here"
        if profile is not None:
            note = f"looks like {profile.name}"
            if not set(found.urls) & set(profile.addresses):
                note += (
                    f", which is stored as {', '.join(map(str, profile.servers()))}; --update checks and stores it"
                )
                if update:
                    try:
                        note = f"is {profile.name}, now stored as {moved(found, profile).addresses[0]}"
                    except ClientError as error:
                        note = str(error)
        typer.echo(f"{found.name}  {', '.join(found.urls)}  ({note})")
