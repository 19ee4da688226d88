"""``hybridge bench serve``"""

from __future__ import annotations

from pathlib import Path

import typer


def serve_bench(
    url: str = typer.Option(None, help="A hybridge server that runs already.", show_default="one is started"),
    model: str = typer.Option(
        "starter", help="A name from `hybridge models`, NAME=PATH_OR_REPO[:subfolder], NAME=FILE[:MODEL]."
    ),
    size: list[int] = typer.Option([256], help="Side of the picture in pixels; may be repeated."),
    mix: str = typer.Option(
        None, help="Instead of --size, one load of [MODEL@]SIZE:WEIGHT with commas between: 256:16,2048:1."
    ),
    clients: int = typer.Option(
        None,
        help="Closed loop: each sends its next request when it has its answer. A mix deals them out by weight.",
        show_default="8, or the sum of a mix's weights",
    ),
    rate: float = typer.Option(
        None, "--open", help="Open loop: requests in a second, at random; time counts from when each was due."
    ),
    in_flight: int = typer.Option(256, help="Open loop: most requests under way."),
    seconds: float = typer.Option(None, help="Of each measurement.", show_default="10, without --requests"),
    requests: int = typer.Option(None, help="Of each measurement.", show_default="no bound"),
    repeats: int = typer.Option(3, help="Rounds; in each, every server is started anew."),
    rivals: str = typer.Option(
        None,
        help="Some of engine, hybridge, litserve, ray, with commas between.",
        show_default="all; with --url hybridge",
    ),
    picture_format: str = typer.Option("png", "--format", help="png, jpeg or webp."),
    limit_s: float = typer.Option(600, "--limit-s", help="Seconds that one request, or a start, may take."),
    out: Path = typer.Option(Path("hybridge-bench"), help="Folder for the record and the tables."),
    resume: Path = typer.Option(None, help="Go on with this record of a run that was ended."),
) -> None:
    """Throughput, latency and errors under load, beside the engine alone, LitServe and Ray Serve."""

    from ..lab.serve_bench.cases import ServeArguments, loads_of
    from ..lab.serve_bench.report import markdown, tables
    from ..lab.serve_bench.runner import run
    from ..lab.serve_bench.servers import SERVERS
    from .console import screen
    from .tables import measuring, show_record

    console = screen()
    asked = rivals.split(",") if rivals else ["hybridge"] if url else SERVERS
    arguments = ServeArguments(
        url=url,
        loads=loads_of(model, tuple(size), mix),
        clients=clients,
        rate=rate,
        in_flight=in_flight,
        seconds=10.0 if seconds is None and requests is None else seconds,
        requests=requests,
        rivals=tuple(asked),
        picture_format=picture_format,
        repeats=repeats,
        limit_s=limit_s,
    )
    path = resume or out / f"serve-{model.partition('=')[0]}.json"
    with measuring(console) as progress:
        record = run(arguments, path, resume=resume is not None, progress=progress)
    show_record(tables(record), path, {".md": markdown(record)}, console)
