"""``hybridge plan``"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import typer

from ..units import format_bytes, parse_bytes

#: Rounded up, so that a printed size can be used as a budget.
_size = partial(format_bytes, up=True)

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
    batch: int = typer.Option(1, help="Pictures at once."),
    dtype: str = typer.Option("float32", help="float32, bfloat16 or float16."),
    device: str = typer.Option("cpu", help="cpu or cuda; the device need not be there."),
    ops: bool = typer.Option(False, "--ops", help="Show every step."),
    as_json: bool = typer.Option(False, "--json", help="For programs."),
) -> None:
    """Say how a picture would fit in memory, and why; needs no weights."""
    import dataclasses
    import json

    import torch

    from ..engine import resolve
    from ..engine.loading import config_before_loading
    from ..engine.planning.plan import plan as make_plan
    from ..engine.planning.weight_forms import prepared_bytes
    from ..engine.program.lowering import lower, skeleton
    from ..engine.runner import device_profile_for
    from ..errors import RequestError

    if task not in ("decode", "encode"):
        raise RequestError("unknown task", saw=task, expected="decode or encode")
    if dtype not in _DTYPES:
        raise RequestError("unknown dtype", saw=dtype, expected=", ".join(_DTYPES))
    spec = resolve(model)
    height, width = sides(size)
    factor = spec.spatial_factor if task == "decode" else 1
    program = lower(
        skeleton(spec.class_name, config_before_loading(spec)), "decode" if task == "decode" else "encode"
    )
    arithmetic = device_profile_for(device, getattr(torch, dtype))
    made = make_plan(
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
    title = f"{spec.name}, {task} of {batch} × {height}×{width} in {dtype} on {device}"
    _show(title, program, made, kept_bytes, ops)


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
    sizes = program.sizes(made.height, made.width)
    for index, (op, step) in enumerate(zip(program.ops, made.steps, strict=True)):
        rows, width = sizes[op.target]
        cells = (
            str(index),
            op.name,
            f"{program.channels[op.target]}×{rows}×{width}",
            str(step.way or "attention"),
            str(step.rows),
            str(step.strips),
            "streamed" if step.is_streamed else "output" if step.buffer is None else str(step.buffer),
            _size(step.scratch_bytes),
            f"{step.flops / 1e9:.1f}",
        )
        shown.append(cells)
    show_table(console, columns, shown, numbers=("rows", "strips", "scratch", "GFLOP"))
