"""``hybridge lab list``"""

from __future__ import annotations

import typer


def list_(
    pipeline: str = typer.Argument("tiny", help="tiny (made here, random weights), a folder, or a hub id."),
    device: str = typer.Option("auto", help="auto, cpu, cuda, cuda:1."),
    server: str = typer.Option(None, help="A hybridge server that techniques may use."),
    as_json: bool = typer.Option(False, "--json", help="For programs."),
) -> None:
    """The catalogue of techniques, and which of them can run on a pipeline here."""
    import json

    from rich.markup import escape

    from ..lab.studies.listing import listed
    from .console import screen, show_table

    console = screen()
    with console.status(f"looking at {pipeline}"):
        rows = listed(pipeline, device=device, server=server)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    shown = [(row["name"], row["title"], row["exactness"], row["outcome"] or "yes") for row in rows]
    show_table(console, ("name", "title", "picture", "here"), shown)
    for row in rows:
        if row["outcome"] is not None:
            instead = f" Instead: {row['instead']}" if row["instead"] else ""
            console.print(f"[bold]{row['name']}[/]: {escape(row['reason'] or '')}.{escape(instead)}")
