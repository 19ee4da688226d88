"""``hybridge models``"""

from __future__ import annotations

import typer

from .options import CA, KEY, SERVER


def models(
    download: list[str] = typer.Option(None, help="Fetch the weights of this model now; may be repeated."),
    server: str = SERVER,
    key: str = KEY,
    ca: str = CA,
    as_json: bool = typer.Option(False, "--json", help="For programs."),
) -> None:
    """List the models that hybridge knows by name, or those of a server."""
    import json

    from .console import screen, show_table

    console = screen()
    if download:
        from ..engine import locate, resolve

        for argument in download:
            spec = resolve(argument)
            console.print(f"[bold]{spec.name}[/] {locate(spec)}")
        return

    rows = _served(server, key, ca) if server else _known()
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    shown = []
    for row in rows:
        shift = f" shift {row['shift_factor']:g}" if row["shift_factor"] else ""
        where = (
            f"{row['dtype']} on {row['device']}" if server else f"{row['source']}{' ✓' if row['is_here'] else ''}"
        )
        scaling = f"{row['scaling_factor']:g}{shift}"
        shown.append((row["name"], row["title"], f"{row['latent_channels']} ch", scaling, where))
    show_table(console, ("name", "what", "latents", "scaling", "runs in" if server else "source"), shown)
    if not server:
        console.print("✓ is on this machine; the others are fetched from the hub when they are first used.")


def _known() -> list[dict]:  # type: ignore[type-arg]
    from ..engine import is_cached
    from ..models import CATALOGUE

    return [
        {
            "name": spec.name,
            "title": spec.title,
            "latent_channels": spec.latent_channels,
            "scaling_factor": spec.normalisation.scaling_factor,
            "shift_factor": spec.normalisation.shift_factor,
            "source": "shipped" if spec.name == "starter" else f"{spec.source}/{spec.subfolder or ''}".rstrip("/"),
            "is_here": is_cached(spec),
        }
        for spec in CATALOGUE.values()
    ]


def _served(server: str, key: str | None, ca: str | None) -> list[dict]:  # type: ignore[type-arg]
    from ..client import Client

    with Client(server, api_key=key, verify=ca) as client:
        return client.models()
