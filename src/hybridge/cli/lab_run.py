"""``hybridge lab run``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ..lab.studies.arguments import Arguments, Configuration


def run(
    context: typer.Context,
    pipeline: str = typer.Argument(
        "starter", help="starter (shipped), tiny (SDXL's shape, random weights), a folder, or a hub id."
    ),
    technique: list[str] = typer.Option(
        None, help="One of `hybridge lab list`, alone; may be repeated.", show_default="the whole catalogue"
    ),
    stack: list[str] = typer.Option(None, help="Several at once, in order: tiny-vae+deepcache; may be repeated."),
    ladder: Path = typer.Option(None, help="A file with a stack in each line; # begins a remark."),
    prompts: Path = typer.Option(
        None,
        help="A file with a name, a seed and a prompt in each line.",
        show_default="the guide's; tiny two, starter captions",
    ),
    runs: int = typer.Option(None, help="Warm pictures of each prompt.", show_default="5; tiny 2, starter 1"),
    steps: int = typer.Option(None, help="Of denoising.", show_default="50; starter 10, tiny 6"),
    guidance: float = typer.Option(None, help="Guidance scale.", show_default="5; starter 3"),
    size: int = typer.Option(
        None, help="Side of the pictures in pixels.", show_default="the pipeline's own; tiny 64"
    ),
    batch: int = typer.Option(1, help="Pictures of one call."),
    device: str = typer.Option("auto", help="auto, cpu, cuda, cuda:1."),
    dtype: str = typer.Option("auto", help="Of the baseline: auto, float32, bfloat16 or float16."),
    server: str = typer.Option(None, help="A hybridge server that techniques may use."),
    limit_s: float = typer.Option(
        None,
        "--limit-s",
        help="Seconds that one configuration may take.",
        show_default="3600; starter and tiny 300",
    ),
    out: Path = typer.Option(Path("hybridge-lab"), help="Folder for the record and the pictures."),
    resume: Path = typer.Option(None, help="Go on with this record; what was asked is in it."),
) -> None:
    """Time, memory and pictures of techniques, alone or stacked, each in a fresh process, with proof of effect."""

    from ..lab.studies import arguments as study
    from ..lab.studies.runner import RECORD, arguments_of
    from .console import screen

    console = screen()
    if resume is not None:
        _refuse_others(context)
        path = resume / RECORD if resume.is_dir() else resume
        _measure(arguments_of(path, server), path, True, console)
        return
    method = study.method_of(pipeline)
    arguments = study.Arguments(
        pipeline=pipeline,
        prompts=study.prompts_of(study.read_short(prompts)) if prompts else method.prompts,
        configurations=_configurations(technique, stack, ladder),
        runs=method.runs if runs is None else runs,
        steps=method.steps if steps is None else steps,
        guidance_scale=method.guidance_scale if guidance is None else guidance,
        size=method.size if size is None else size,
        batch=batch,
        device=device,
        dtype=dtype,
        limit_s=method.limit_s if limit_s is None else limit_s,
        server=server,
    )
    _measure(arguments, out / RECORD, False, console)


def _configurations(
    techniques: list[str] | None, stacks: list[str] | None, ladder: Path | None
) -> tuple[Configuration, ...]:
    from ..lab.studies.arguments import configurations, read_short
    from ..lab.techniques.catalogue import TECHNIQUES

    if not techniques and not stacks and not ladder:
        return configurations(TECHNIQUES)
    return configurations(techniques or (), stacks or (), read_short(ladder) if ladder else "")


def _refuse_others(context: typer.Context) -> None:
    """What else is said would not be what the record was asked."""
    from ..errors import RequestError

    sources = {name: context.get_parameter_source(name) for name in context.params.keys() - {"resume", "server"}}
    said = sorted(name for name, source in sources.items() if source and source.name == "COMMANDLINE")
    if said:
        raise RequestError(
            "a run that goes on measures what it was begun with",
            saw=f"--resume and {', '.join(said)}",
            hint="--resume alone, or a new run into another --out",
        )


def _measure(arguments: Arguments, path: Path, resume: bool, console: Any) -> None:
    from ..lab.studies.runner import run as measure
    from ..lab.studies.table import table
    from .tables import draw, measuring

    try:
        with measuring(console) as progress:
            record = measure(arguments, path, resume=resume, progress=progress)
    except KeyboardInterrupt:
        if path.exists():
            console.print(f"ended; go on with: hybridge lab run --resume {path}")
        raise
    draw(table(record), console)
    console.print(f"written: {path}, and pictures beside it")
