"""``hybridge lab advise``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..units import parse_bytes
from .options import KEY

if TYPE_CHECKING:
    from ..lab.advisor.advice import Advice


def advise(
    pipeline: str = typer.Option("sdxl", help="sd15, sdxl, sd3, flux-dev or flux-schnell."),
    vram: str = typer.Option(help="Memory of the card that torch may have, such as 6GB; 6 alone means the same."),
    ram: str = typer.Option(
        None,
        help="Memory of the host that weights may have, such as 16GB.",
        show_default="what this machine has available",
    ),
    server: str = typer.Option(None, help="A hybridge server that could decode; the way there is measured."),
    key: str = KEY,
    quality: str = typer.Option("good", help="best, good or fast."),
    size: str = typer.Option(
        None, help="Of the picture in pixels: one side, or HEIGHTxWIDTH.", show_default="what it was trained for"
    ),
    batch: int = typer.Option(1, help="Pictures at once."),
    steps: int = typer.Option(None, help="Of denoising.", show_default="the pipeline's own"),
    record: Path = typer.Option(None, help="study.json of this pipeline on this card; corrects what is estimated."),
    path: str = typer.Option(None, help="Of the pipeline, for the code.", show_default="the one on the hub"),
    vae_path: str = typer.Option(None, help="Of another VAE, for the code.", show_default="the one on the hub"),
    device: str = typer.Option("cuda", help="For the code; on CUDA alone bitsandbytes is offered."),
    code: bool = typer.Option(False, "--code", help="Print the lines of Python, and nothing else."),
) -> None:
    """Say what to switch on for a card: bits of weights, offloads, and the way to decode; why, and how."""
    from ..engine.machine.cgroups import available_bytes
    from ..lab.advisor.advice import advise as make_advice
    from ..lab.advisor.network import measure
    from ..lab.estimator.correction import read_correction
    from ..lab.estimator.shapes import shape_named
    from ..lab.estimator.types import Setup
    from .plan import sides

    shape = shape_named(pipeline)
    height, width = sides(size) if size else (0, 0)
    made = make_advice(
        Setup(pipeline, height=height, width=width, batch=batch, steps=steps),
        parse_bytes(vram, small_unit="GB"),
        ram_bytes=parse_bytes(ram, small_unit="GB") if ram else available_bytes(),
        quality=quality,  # type: ignore[arg-type] # checked there
        correction=read_correction(record, pipeline) if record else None,
        link=measure(server, shape, api_key=key) if server else None,
        path=path,
        vae_path=vae_path,
        device=device,
    )
    if code:
        typer.echo(made.code, nl=False)
        return
    _show(made)


def _show(made: Advice) -> None:
    from rich.syntax import Syntax

    from ..lab.advisor.advice import picture, title
    from .console import screen, show_table

    console = screen()
    console.print(f"[bold]{title(made.choice)}[/]")
    console.print(made.reason, "")
    rows = [
        (
            title(option),
            f"{option.needs_bytes / 1e9:.2f}",
            f"{option.estimate.host_bytes / 1e9:.2f}",
            f"{option.seconds:.1f}",
            picture(option),
            "yes" if made.fits(option) else "no",
        )
        for option in made.weighed
    ]
    numbers = ("needs GB", "host GB", "s a call")
    columns = ("", *numbers, "picture", "fits")
    show_table(console, columns, rows, title="the best of each way to decode", numbers=numbers)
    console.print("assumed: " + "; ".join(made.assumed))
    console.print("not in it: " + "; ".join(made.choice.estimate.left_out), "")
    # As text, whose lines are not broken: they are there to be pasted.
    console.print(Syntax(made.code, "python", background_color="default").highlight(made.code))
