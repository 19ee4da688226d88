"""``hybridge lab estimate``"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from ..lab.estimator.types import Estimate

#: Cards are sold in powers of 1000.
_size = partial(format_bytes, decimal=True)


def estimate(
    pipeline: str = typer.Option("sdxl", help="sd15, sdxl, sd3, flux-dev or flux-schnell."),
    stack: str = typer.Option(
        "fp16", help="Techniques with + between, such as fp16+tiny-vae; baseline is none of them, in float32."
    ),
    size: str = typer.Option(
        None, help="Of the picture in pixels: one side, or HEIGHTxWIDTH.", show_default="what it was trained for"
    ),
    batch: int = typer.Option(1, help="Pictures at once."),
    steps: int = typer.Option(None, help="Of denoising.", show_default="the pipeline's own"),
    refiner: bool = typer.Option(False, "--refiner", help="SDXL's refiner makes the last steps."),
    budget: str = typer.Option(
        None, help="What exact-vae may take on top of the weights, such as 2GiB.", show_default="no bound"
    ),
    record: Path = typer.Option(None, help="study.json of this pipeline; corrects the estimate."),
    guide: bool = typer.Option(False, "--guide", help="Show the guide's figures beside ours, and nothing else."),
    as_json: bool = typer.Option(False, "--json", help="For programs."),
) -> None:
    """Say what a stack of techniques would take at full size; needs no weights and no GPU."""
    import dataclasses
    import json

    from ..lab.estimator.correction import read_correction
    from ..lab.estimator.phases import estimate as make_estimate
    from ..lab.estimator.types import Setup, parse_stack
    from .plan import sides

    if guide:
        _show_guide()
        return
    height, width = sides(size) if size else (0, 0)
    setup = Setup(
        pipeline=pipeline,
        stack=parse_stack(stack),
        height=height,
        width=width,
        batch=batch,
        steps=steps,
        refiner=refiner,
        decode_budget_bytes=None if budget is None else parse_bytes(budget),
    )
    made = make_estimate(setup, correction=read_correction(record, pipeline) if record else None)
    if as_json:
        # The steps of a plan are `hybridge plan`'s business.
        document = dataclasses.asdict(dataclasses.replace(made, plan=None))
        typer.echo(json.dumps({"peak_bytes": made.peak_bytes, "flops": made.flops} | document, indent=2))
        return
    _show(made)


def _show(made: Estimate) -> None:

    from .console import screen, show_table

    setup, console = made.setup, screen()
    title = f"{setup.pipeline}, {'+'.join(setup.stack) or 'float32'}, {setup.batch} × {setup.height}×{setup.width}"
    numbers = ("weights GB", "activations GB", "workspace GB", "peak GB", "TFLOP")
    rows = []
    for phase in made.phases:
        sizes = (phase.weights_bytes, phase.activations_bytes, phase.workspace_bytes, phase.peak_bytes)
        name = f"[bold]{phase.name}[/]" if phase is made.largest else phase.name
        rows.append((name, *(f"{nbytes / 1e9:.2f}" for nbytes in sizes), f"{phase.flops / 1e12:.1f}"))
    show_table(console, ("phase", *numbers), rows, title=f"{title}, {setup.steps} steps", numbers=numbers)
    console.print(f"[bold]peak[/] {peak_of(made)}")
    files = ", ".join(f"{title} {_size(nbytes)}" for title, nbytes in made.files)
    console.print(f"files {_size(sum(nbytes for _, nbytes in made.files))}: {files}")
    if made.moved_bytes:
        console.print(f"moved {_size(made.moved_bytes)} of weights to the device for every call")
    console.print(f"host {_size(made.host_bytes)} for weights that pass through its memory or wait there")
    if made.plan is not None:
        console.print(f"decoder {made.plan.mode}, because {made.plan.reason}")
    _show_measured(made, console)
    console.print("not in it: " + "; ".join(made.left_out))


def _show_measured(made: Estimate, console: Any) -> None:
    if made.correction is None:
        return
    correction = made.correction
    console.print(
        f"corrected by {correction.source}: its baseline took {correction.above_weights:.2f} times what was counted"
        " on top of the weights",
        soft_wrap=True,
    )
    same = correction.of(made.setup)
    if same and same.peak_bytes:
        console.print(f"measured there, with this stack: {_size(same.peak_bytes)}")


def peak_of(made: Estimate) -> str:
    """``7.24 GB, to denoise (7.18 GB counted and 140 MB allowed for libraries)``"""
    largest = made.largest
    least = "at least " if made.is_lower_bound else ""
    return (
        f"{least}{_size(made.peak_bytes)}, to {largest.name}"
        f" ({_size(largest.counted_bytes)} counted and"
        f" {_size(largest.workspace_bytes)} allowed for libraries)"
    )


def _show_guide() -> None:

    from ..lab.estimator.guide import compared
    from .console import screen, show_table

    numbers = ("counted", "with workspace", "the guide", "off")
    rows = []
    for one in compared():
        made = one.estimate
        cells = (
            one.title,
            f"{made.counted_bytes / 1e9:.2f}",
            f"{'≥ ' if made.is_lower_bound else ''}{made.peak_bytes / 1e9:.2f}",
            f"{one.gb:.2f}",
            f"{one.off:+.1%}",
            one.note,
        )
        rows.append(cells)
    show_table(screen(), ("stack", *numbers, ""), rows, title="SDXL, FP16, 1024×1024, GB", numbers=numbers)
