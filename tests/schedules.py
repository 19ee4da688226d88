"""A film's plans in every schedule, for tests that run each."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hybridge.engine.planning.conv_algorithms import DeviceProfile
from hybridge.engine.planning.film_footprint import FilmFootprint, one_by_one
from hybridge.engine.planning.film_plan import in_turn, sections_of
from hybridge.engine.planning.film_shape import FilmShape
from hybridge.engine.planning.plan import Mode, Plan
from hybridge.engine.program.program import Program
from hybridge.engine.program.recomputing import may_be_recomputed


def plans(
    program: Program, source: torch.Tensor, how: DeviceProfile, strip_bytes: int, *, every: bool = False
) -> Iterator[Plan]:
    """Yield a plan for every schedule, or for the one of each mode with the smallest steps."""
    batch, _, frames, height, width = source.shape
    shape = FilmShape(program, batch, frames, height, width, how)
    schedules = list(sections_of(shape))
    for mode, sections in schedules if every else dict(schedules).items():
        yield as_plan(mode, FilmFootprint(shape, sections, strip_bytes))
    yield as_plan("spill", spilled(shape, strip_bytes))
    lean = shape.recomputing(may_be_recomputed(shape.program))
    if lean.recomputed:
        yield as_plan("lean", FilmFootprint(lean, in_turn(lean), strip_bytes))


def spilled(shape: FilmShape, strip_bytes: int) -> FilmFootprint:
    """Return the schedule with as many values in a file as there can be."""
    made: FilmFootprint | None = FilmFootprint(shape, one_by_one(range(len(shape.program.ops))), strip_bytes)
    while (more := made.with_more_parked()) is not None:
        made = more
    return made


def as_plan(mode: Mode, made: FilmFootprint) -> Plan:
    shape = made.shape
    _, height, width = shape.extents[0]
    return Plan(
        *(mode, shape.batch, height, width, shape.arithmetic, made.steps, made.laid_out()),
        *(shape.program.last_reads(), made.peak_bytes, made.parked_bytes, 0, "", shape.frames, made.sections),
        shape.recomputed,
    )
