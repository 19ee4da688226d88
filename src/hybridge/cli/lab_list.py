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

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..lab.study.listing import listed

    console = Console()
    with console.status(f"looking at {pipeline}"):
        rows = listed(pipeline, device=device, server=server)
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    table = Table("name", "title", "picture", "here")
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(row["name"], row["title"], row["exactness"], row["outcome"] or "yes")
    console.print(table)
    for row in rows:
        if row["outcome"] is not None:
            instead = f" Instead: {row['instead']}" if row["instead"] else ""
            console.print(f"[bold]{row['name']}[/]: {escape(row['reason'] or '')}.{escape(instead)}")
