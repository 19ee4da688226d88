"""``hybridge bench vae``"""

from __future__ import annotations

from pathlib import Path

import typer

from ..units import parse_bytes


def vae(
    model: str = typer.Argument(
        "sd-v1", help="A name from `hybridge models`, NAME=PATH_OR_REPO[:subfolder], NAME=FILE[:MODEL]."
    ),
    size: list[int] = typer.Option([512, 1024], help="Side of the picture in pixels; may be repeated."),
    frames: int = typer.Option(1, help="Frames of a video model's film."),
    task: str = typer.Option("decode", help="decode or encode."),
    dtype: list[str] = typer.Option(["float32"], help="float32, bfloat16 or float16; may be repeated."),
    device: str = typer.Option("auto", help="auto, cpu, cuda, cuda:1."),
    repeats: int = typer.Option(3, help="Rounds; in each, every rival runs in a fresh process."),
    budget: str = typer.Option(
        None, help="What the exact engine may take on top of the weights.", show_default="no bound"
    ),
    tile: int = typer.Option(
        None, help="Side of diffusers' tiles in pixels.", show_default="the model's own, else 512"
    ),
    rivals: str = typer.Option(None, help="Some of them, with commas between.", show_default="all"),
    weights: bool = typer.Option(False, "--weights", help="Load the real weights instead of random ones."),
    limit_s: float = typer.Option(600, "--limit-s", help="Seconds that one measurement may take, start included."),
    out: Path = typer.Option(Path("hybridge-bench"), help="Folder for the record, the tables and the plot."),
    resume: Path = typer.Option(None, help="Go on with this record of a run that was ended."),
) -> None:
    """Time, memory and error of the exact engine beside diffusers, torch.compile and OpenVINO."""

    from ..engine import resolve
    from ..lab.vae_bench.cases import Arguments
    from ..lab.vae_bench.report import drawing, markdown, tables
    from ..lab.vae_bench.rivals import RIVALS
    from ..lab.vae_bench.runner import run
    from .console import screen
    from .tables import measuring, show_record

    console = screen()
    arguments = Arguments(
        model=model,
        sizes=tuple(size),
        task=task,  # type: ignore[arg-type] # checked with the others
        dtypes=tuple(dtype),
        device=device,
        repeats=repeats,
        budget_bytes=None if budget is None else parse_bytes(budget),
        tile_pixels=tile,
        rivals=tuple(rivals.split(",")) if rivals else tuple(RIVALS),
        weights=weights,
        limit_s=limit_s,
        frames=frames,
    )
    path = resume or out / f"vae-{resolve(model).name}-{task}.json"
    with measuring(console) as progress:
        record = run(arguments, path, resume=resume is not None, progress=progress)
    show_record(tables(record), path, {".md": markdown(record), ".svg": drawing(record)}, console)
