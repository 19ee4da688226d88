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
        where = (
            f"{row['dtype']} on {row['device']}".strip()
            if server
            else f"{row['source']}{' ✓' if row['is_here'] else ''}"
        )
        has_vae = "latent_channels" in row
        latents = f"{row['latent_channels']} × 1/{row['spatial_factor']}" if has_vae else ""
        frames = row.get("frames") or ""
        scaling = row.get("scaling") or (f"{row['scaling_factor']:g}" if has_vae else "")
        tasks = ", ".join(row.get("tasks") or ("decode", "encode"))
        shown.append((row["name"], row["title"] or row["class"], tasks, latents, frames, scaling, where))
    columns = ("name", "what", "tasks", "latents", "frames", "scaling", "runs in" if server else "source")
    show_table(console, columns, shown)
    if not server:
        console.print("✓ is on this machine; the others are fetched from the hub when they are first used.")


def _known() -> list[dict]:  # type: ignore[type-arg]
    from ..engine import is_cached
    from ..models import CATALOGUE, TEXT_CATALOGUE

    rows: list[dict] = [  # type: ignore[type-arg]
        {
            "name": spec.name,
            "title": spec.title,
            "class": spec.class_name,
            "tasks": ["decode", "encode", *(["prompt"] if spec.name in TEXT_CATALOGUE else [])],
            "latent_channels": spec.latent_channels,
            "spatial_factor": spec.spatial_factor,
            "frames": str(spec.frames),
            "scaling": str(spec.normalisation),
            "scaling_factor": spec.normalisation.scaling_factor,
            "shift_factor": spec.normalisation.shift_factor,
            "source": "shipped" if spec.name == "starter" else f"{spec.source}/{spec.subfolder or ''}".rstrip("/"),
            "is_here": is_cached(spec),
        }
        for spec in CATALOGUE.values()
    ]
    rows += [
        {
            "name": spec.name,
            "title": spec.title,
            "class": spec.class_name,
            "tasks": ["prompt"],
            "source": spec.source,
            "is_here": False,
        }
        for spec in TEXT_CATALOGUE.values()
        if spec.name not in CATALOGUE
    ]
    return rows


def _served(server: str, key: str | None, ca: str | None) -> list[dict]:  # type: ignore[type-arg]
    from ..client import Client

    with Client(server, api_key=key, verify=ca) as client:
        return client.models()
