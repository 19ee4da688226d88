"""``hybridge plan``"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import typer

from ..units import format_bytes, parse_bytes

#: Rounded up, so that a printed size can be used as a budget.
_size = partial(format_bytes, up=True)

#: Of a video of five seconds, as most pipelines make by default.
_USUAL_FRAMES = 81

_DTYPES = ("float32", "bfloat16", "float16")


def plan(
    model: str = typer.Argument(
        help="A name from `hybridge models`, NAME=PATH_OR_REPO[:subfolder], NAME=FILE[:MODEL]."
    ),
    size: str = typer.Option("1024", help="Of the picture in pixels: one side, or HEIGHTxWIDTH."),
    budget: str = typer.Option(
        None, help="What one call may take on top of the weights, such as 2GiB.", show_default="no bound"
    ),
    task: str = typer.Option("decode", help="decode or encode."),
    frames: int = typer.Option(None, help="Of a video.", show_default="81 for models of videos"),
    streamed: bool = typer.Option(
        False, "--streamed", help="A video whose frames leave as they are made, as the server's MP4 does."
    ),
    batch: int = typer.Option(1, help="Pictures or videos at once."),
    dtype: str = typer.Option("float32", help="float32, bfloat16 or float16."),
    device: str = typer.Option("cpu", help="cpu or cuda; the device need not be there."),
    ops: bool = typer.Option(False, "--ops", help="Show every step."),
    as_json: bool = typer.Option(False, "--json", help="For programs."),
) -> None:
    """Say how a picture or a video would fit in memory, and why; needs no weights."""
    import dataclasses
    import json

    import torch

    from ..engine import resolve
    from ..engine.device_profile import device_profile_for
    from ..engine.loading import config_for_planning
    from ..engine.planning.film_plan import plan_film
    from ..engine.planning.plan import plan as make_plan
    from ..engine.planning.tiled_film_plan import plan_tiles
    from ..engine.planning.weight_forms import prepared_bytes
    from ..engine.program.folding import folded
    from ..engine.program.lowering import lower, skeleton
    from ..errors import CannotLower, RequestError

    if task not in ("decode", "encode"):
        raise RequestError("unknown task", saw=task, expected="decode or encode")
    if dtype not in _DTYPES:
        raise RequestError("unknown dtype", saw=dtype, expected=", ".join(_DTYPES))
    spec = resolve(model)
    height, width = sides(size)
    shown = frames_of(spec, frames)
    factor = spec.spatial_factor if task == "decode" else 1
    try:
        program = lower(
            skeleton(spec.class_name, config_for_planning(spec)), "decode" if task == "decode" else "encode"
        )
    except CannotLower as error:
        raise RequestError(
            f"{spec.name} has no plan: its VAE runs as its own class does it, and not in strips",
            saw=spec.class_name,
            expected=error.expected,
        ) from None
    arithmetic = device_profile_for(device, getattr(torch, dtype))
    count = spec.frames.latent_frames(shown) if task == "decode" else shown
    make: Any = make_plan
    if count == 1:
        program = folded(program)
    if program.is_film:
        make = partial(plan_tiles if program.tiles else plan_film, frames=count, frames_leave=streamed)
    made = make(
        program,
        batch=batch,
        height=height // factor,
        width=width // factor,
        arithmetic=arithmetic,
        budget_bytes=None if budget is None else parse_bytes(budget),
    )
    kept_bytes = 0 if made.mode == "whole" else prepared_bytes(program, arithmetic)
    if as_json:
        named = {"model": spec.name, "task": task, "kept_bytes": kept_bytes}
        typer.echo(json.dumps(named | dataclasses.asdict(made), indent=2))
        return
    many = f"{shown}×" if spec.frames.is_video else ""
    title = f"{spec.name}, {task} of {batch} × {many}{height}×{width} in {dtype} on {device}"
    _show(title, program, made, kept_bytes, ops)


def frames_of(spec: Any, frames: int | None) -> int:
    """Return the number of frames to plan for: those asked for, if the model can have them, or the usual number."""
    from ..errors import RequestError

    if frames is None:
        return _USUAL_FRAMES if spec.frames.is_video else 1
    if frames < 1 or spec.frames.frames_out(spec.frames.latent_frames(frames)) != frames:
        expected = f"{spec.frames.counts()} frames" if spec.frames.is_video else "a picture, so no --frames or 1"
        raise RequestError(f"{spec.name} has no such video", saw=f"--frames {frames}", expected=expected)
    return frames


def sides(size: str) -> tuple[int, int]:
    """Return (height, width) of ``1024`` or ``768x1024``."""
    from ..errors import RequestError

    match = re.fullmatch(r"(\d+)(?:[x×](\d+))?", size)
    if not match:
        raise RequestError("not a size", saw=repr(size), expected="such as 1024 or 768x1024")
    return int(match[1]), int(match[2] or match[1])


def _show(title: str, program: Any, made: Any, kept_bytes: int, with_ops: bool) -> None:

    from .console import screen, show_table

    console = screen()
    console.print(f"[bold]{title}[/]")
    console.print(f"mode   {made.mode}, because {made.reason}")
    console.print(f"peak   {_size(made.peak_bytes)} on top of the weights, input and output included")
    if kept_bytes:
        console.print(f"kept   {_size(kept_bytes)} of other forms of the weights, made by the first run")
    console.print(f"work   {made.flops / 1e12:.3f} TFLOP in {made.strips} strips")
    if not with_ops or not made.steps:
        return
    columns = ("op", "what", "makes", "way", "rows", "strips", "buffer", "scratch", "GFLOP")
    shown = []
    of_tile = program.tiles.source if program.tiles else None
    frames, height, width = of_tile or (made.frames, made.height, made.width)
    sizes, lengths = program.sizes(height, width), program.lengths(frames)
    for index, (op, step) in enumerate(zip(program.ops, made.steps, strict=True)):
        rows, width = sizes[op.target]
        cells = (
            str(index),
            op.name,
            f"{program.channels[op.target]}×{f'{lengths[op.target]}×' if program.is_film else ''}{rows}×{width}",
            str(step.way or type(op).__name__.lower()),
            str(step.rows),
            str(step.strips),
            "streamed" if step.is_streamed else "output" if step.buffer is None else str(step.buffer),
            _size(step.scratch_bytes),
            f"{step.flops / 1e9:.1f}",
        )
        shown.append(cells)
    show_table(console, columns, shown, numbers=("rows", "strips", "scratch", "GFLOP"))
