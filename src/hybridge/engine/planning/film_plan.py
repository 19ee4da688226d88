"""Decide how a film fits in memory: which ops run over all frames, frame by frame, or row by row.

There are five schedules, in this order:

* ``strips``: op by op over all frames; two values exist at a time.
* ``frames``: all ops together, a few latent frames in every step.  Of each value exists what a step makes, and the
  two frames before it that its reader reads again.  Finished frames leave first.
* ``rows``: ops between two attentions together, a few rows of all frames in every step.  Attention needs all rows
  of a frame, so it and what lies on its other side run op by op, at the size of latents.
* ``lean``: as ``strips``, without the outputs of ×2, the largest values: what reads them computes them again, a few
  rows of all frames at a time.
* ``spill``: as ``strips``, with values in a file, of which the rows that a strip needs are in memory.  On CPUs.

A norm whose statistics are over all frames leaves ``strips``, ``lean`` and ``spill``; one over each frame or over
each segment leaves ``frames``, too.

But for ``lean``, every value is computed once; the results are equal within rounding.  Which takes least memory
depends on the film: two frames are more than two rows of all frames, unless there are more frames than rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from ...errors import RequestError, TooLarge
from ...units import format_bytes
from ..program.ops import Attend, Op, frames_ahead
from ..program.program import Program
from ..program.recomputing import may_be_recomputed
from .conv_algorithms import DeviceProfile
from .courses import Section
from .film_footprint import FilmFootprint, one_by_one
from .film_shape import FilmShape
from .plan import (
    FRUGAL_FROM_BYTES,
    FRUGAL_PART,
    FRUGAL_WORK,
    STRIP_BYTES_WITHOUT_CACHE,
    WITHIN_ROUNDING,
    Mode,
    Plan,
)

_size = partial(format_bytes, up=True)

#: How many latent frames, and how many rows, a step may take; more take more memory and less overhead.
_FRAMES_IN_A_STEP = (4, 2, 1)
_ROWS_IN_A_STEP = (8, 4, 2, 1)

#: In how many steps one row is made at the least.
_STEPS_FOR_A_ROW = (2, 4)

#: Of a value that is computed again, this part of the rows exists at a time.
_PARTS_IN_MEMORY = 64

#: Factor by which strips shrink at a time once every schedule was tried.
_SHRINKING = 8


def plan_film(
    program: Program,
    *,
    batch: int,
    frames: int,
    height: int,
    width: int,
    arithmetic: DeviceProfile,
    budget_bytes: int | None = None,
    modes: tuple[Mode, ...] = WITHIN_ROUNDING,
    frames_leave: bool = False,
) -> Plan:
    """Return the best plan to run a program of films on an input (batch, C, frames, height, width) within a budget.

    Args:
        program: The program to run; :attr:`.Program.is_film`.
        batch: Number of items.
        frames: Number of frames of the input.
        height: Height of the input: in latents for a decoder, in pixels for an encoder.
        width: Width of the input: in latents for a decoder, in pixels for an encoder.
        arithmetic: The device's arithmetic for the dtype that activations are stored in.
        budget_bytes: Bytes that may be taken on top of the weights; None for no bound.
        modes: The modes to choose from.
        frames_leave: Whether finished frames of the one item are taken as soon as they are final, and not kept.

    Raises:
        RequestError: for an invalid budget, or a film that is too small for the model.
        TooLarge: when no plan fits the budget; it names the smallest budget that would do.
    """
    check_film(program, batch, frames, height, width, budget_bytes)
    shape = FilmShape(program, batch, frames, height, width, arithmetic)
    whole_peak = shape.whole_peak()
    budget = "no budget was set" if budget_bytes is None else f"the budget is {_size(budget_bytes)}"
    plainly = f"the plain forward takes about {_size(whole_peak)} and {budget}"
    flops = batch * sum(shape.flops)
    whole = Plan("whole", batch, height, width, arithmetic, (), (), (), whole_peak, 0, flops, plainly, frames)
    least = None
    in_cache = arithmetic.strip_bytes is None or whole_peak <= arithmetic.strip_bytes
    is_faster = in_cache and not program.is_folded  # whose module multiplies three times as much
    if "whole" in modes and (is_faster or modes == ("whole",)):
        least = whole_peak
        if budget_bytes is None or whole_peak <= budget_bytes:
            return whole
    enough = budget_bytes
    if enough is None and arithmetic.strip_bytes is not None:
        enough = max(FRUGAL_FROM_BYTES, int(FRUGAL_PART * whole_peak))
    best: tuple[Mode, FilmFootprint] | None = None
    schedules = _schedules(
        shape, modes, is_bounded=budget_bytes is not None, frames_leave=frames_leave and batch == 1
    )
    for mode, footprint in schedules:
        if best is None or footprint.peak_bytes < best[1].peak_bytes:
            best = mode, footprint
        if enough is None or footprint.peak_bytes <= enough:
            break
    if best is not None and budget_bytes is None and enough is not None:
        best = _leaner_for_little(shape, *best, modes)
    if best is not None:
        mode, footprint = best
        least = min(footprint.peak_bytes, least or footprint.peak_bytes)
    if best is None or (budget_bytes is not None and least is not None and least > budget_bytes):
        unit = "latents" if program.task == "decode" else "pixels"
        raise TooLarge(
            f"{program.task} of {batch} × {frames}×{height}×{width} {unit} does not fit the budget",
            saw=_size(budget_bytes or 0),
            expected=f"at least {_size(least or whole_peak)}",
            hint="that budget, a smaller or shorter film, fewer at a time, or half precision",
            least_bytes=least or whole_peak,
        )
    return replace(
        whole,
        mode=mode,
        steps=footprint.steps,
        buffers=footprint.laid_out(),
        last_reads=footprint.shape.program.last_reads(),
        flops=batch * sum(footprint.shape.flops),
        recomputed=footprint.shape.recomputed,
        peak_bytes=footprint.peak_bytes,
        parked_bytes=footprint.parked_bytes,
        reason=f"{plainly}; {_described(footprint)} take {_size(footprint.peak_bytes)}",
        sections=footprint.sections,
    )


def check_film(
    program: Program, batch: int, frames: int, height: int, width: int, budget_bytes: int | None
) -> None:
    """Raise a RequestError for an invalid budget, or a film that is too small for the model."""
    if budget_bytes is not None and budget_bytes <= 0:
        raise RequestError("not a budget", saw=f"{budget_bytes} bytes", expected="more than zero, or None")
    if min(batch, frames, height, width) < 1:
        saw = f"{batch} × {frames}×{height}×{width}"
        raise RequestError("nothing to run", saw=saw, expected="at least one of each")
    if min(min(size) for size in program.sizes(height, width)) < 1:
        raise RequestError("the film is too small for this model", saw=f"{height}×{width}")
    why_not = program.why_not(frames, height, width)
    if why_not is not None:
        saw = f"{height}×{width}" if program.is_of_pictures else f"{frames}×{height}×{width}"
        hint = "a larger picture, or sides and frames of whole blocks"
        raise RequestError(f"its layers do not take this: {why_not}", saw=saw, hint=hint)


def _schedules(
    shape: FilmShape, modes: tuple[Mode, ...], *, is_bounded: bool, frames_leave: bool
) -> Iterator[tuple[Mode, FilmFootprint]]:
    """Yield schedules from the fastest to the one that takes the least memory."""
    strip_bytes = shape.arithmetic.strip_bytes or STRIP_BYTES_WITHOUT_CACHE
    choices = [(mode, sections) for mode, sections in sections_of(shape) if mode in modes]
    spills = "spill" in modes and shape.arithmetic.strip_bytes is not None

    def made(sections: tuple[Section, ...], strip_bytes: int, *, in_file: bool = False) -> FilmFootprint:
        leave = frames_leave and (sections[-1].is_by_frames or in_file)
        return FilmFootprint(shape, sections, strip_bytes, frames_leave=leave)

    for mode, sections in choices:
        yield mode, made(sections, strip_bytes)
    if "lean" in modes:
        yield from (("lean", footprint) for footprint in leaner(shape, strip_bytes))
    if not is_bounded:
        return
    if spills:
        for mode, sections in choices if frames_leave else ():
            yield mode, made(sections, strip_bytes, in_file=True)
        first = made(one_by_one(range(len(shape.program.ops))), strip_bytes, in_file=True)
        yield from (("spill", footprint) for footprint in _spilled(first))
    while strip_bytes > 1:
        strip_bytes = max(1, strip_bytes // _SHRINKING)
        for mode, sections in dict(choices).items():  # of each mode the schedule with the smallest steps
            yield mode, made(sections, strip_bytes, in_file=spills)
        if "lean" in modes:
            yield from (("lean", footprint) for footprint in [*leaner(shape, strip_bytes)][-1:])
        if spills:
            first = made(one_by_one(range(len(shape.program.ops))), strip_bytes, in_file=True)
            yield from (("spill", footprint) for footprint in [*_spilled(first)][-1:])


def _leaner_for_little(
    shape: FilmShape, mode: Mode, footprint: FilmFootprint, modes: tuple[Mode, ...]
) -> tuple[Mode, FilmFootprint]:
    """Return ``lean`` in place of large ``strips``, as far as it adds few multiplications; else what is given."""
    if mode != "strips" or "lean" not in modes or footprint.peak_bytes <= FRUGAL_FROM_BYTES:
        return mode, footprint
    best: tuple[Mode, FilmFootprint] = (mode, footprint)
    for lean in leaner(shape, footprint.strip_bytes):
        if lean.work <= (1 + FRUGAL_WORK) * footprint.work:
            best = "lean", lean
    return best


def leaner(shape: FilmShape, strip_bytes: int) -> Iterator[FilmFootprint]:
    """Yield footprints of all frames in which more and more outputs of ×2 are computed again by what reads them."""
    best = FilmFootprint(shape, one_by_one(range(len(shape.program.ops))), strip_bytes)
    for value in sorted(may_be_recomputed(shape.program), key=lambda value: -shape.nbytes[value]):
        lean = shape.recomputing((*best.shape.recomputed, value))
        footprint = FilmFootprint(lean, in_turn(lean), strip_bytes)
        if footprint.peak_bytes < best.peak_bytes:
            best = footprint
            yield best


def in_turn(shape: FilmShape) -> tuple[Section, ...]:
    """Return a section for each op, or for those that run together a few rows at a time."""
    sections, together = list[Section](), {group.start: group for group in shape.together}
    while (index := sections[-1].end_op if sections else 0) < len(shape.program.ops):
        group = together.get(index)
        if group is None:
            sections.append(Section(index, index + 1))
            continue
        rows = shape.extents[group.stop][1] // _PARTS_IN_MEMORY
        sections.append(Section(group.start, group.stop, "rows", max(2, rows - rows % 2)))
    return tuple(sections)


def _spilled(first: FilmFootprint) -> Iterator[FilmFootprint]:
    """Yield footprints of all frames op by op, with more and more values in a file; first with none."""
    yield first
    footprint: FilmFootprint | None = first
    while footprint is not None and (footprint := footprint.with_more_parked()) is not None:
        yield footprint


def sections_of(shape: FilmShape) -> Iterator[tuple[Mode, tuple[Section, ...]]]:
    """Yield the schedules of a film, each as (mode, sections)."""
    program = shape.program
    every = range(len(program.ops))
    yield "strips", one_by_one(every)
    latent_frames = shape.extents[0][0] if program.task == "decode" else shape.extents[-1][0]
    run = _heaviest_run(shape, _needs_all_frames)
    before, after = one_by_one(every[: run.start]), one_by_one(every[run.stop :])
    for count in _FRAMES_IN_A_STEP:
        if count < latent_frames and len(run) > 1:
            # A step is of the first op's source, or if an op looks ahead, of the last op's target.
            looks_ahead = any(map(frames_ahead, (program.ops[op] for op in run)))
            value = run.stop if looks_ahead else program.ops[run.start].source
            slabs = count * max(1, -(-shape.extents[value][0] // latent_frames))
            yield "frames", (*before, Section(run.start, run.stop, "frames", slabs), *after)
    run = _heaviest_run(shape, _needs_all_rows)
    if len(run) > 1:
        before, after = one_by_one(every[: run.start]), one_by_one(every[run.stop :])
        scale = _scale(shape, run)
        steps = [(count * scale, 1) for count in _ROWS_IN_A_STEP] + [(scale, count) for count in _STEPS_FOR_A_ROW]
        for slabs, of_steps in steps:
            yield "rows", (*before, Section(run.start, run.stop, "rows", slabs, of_steps), *after)


def _needs_all_frames(op: Op) -> bool:
    """Return whether an op makes no frame before it has seen all of its source."""
    if isinstance(op, Attend) and op.sees != "frame":
        return True
    return op.norm is not None and op.norm.is_measured and op.norm.over == "film"


def _needs_all_rows(op: Op) -> bool:
    """Return whether an op makes no row before it has seen all of its source."""
    return isinstance(op, Attend) or (op.norm is not None and op.norm.is_measured)


def _heaviest_run(shape: FilmShape, breaks: Callable[[Op], bool]) -> range:
    """Return the ops between two breaks whose values are largest together."""
    ops, best, first = shape.program.ops, range(0), 0
    for index in range(len(ops) + 1):
        if index < len(ops) and not breaks(ops[index]):
            continue
        run = range(first, index)
        if sum(shape.nbytes[op + 1] for op in run) > sum(shape.nbytes[op + 1] for op in best):
            best = run
        first = index + 1
    return best


def _scale(shape: FilmShape, run: range) -> int:
    """Return how many rows of the run's last target there are for a row of latents."""
    rows = shape.extents[run.stop][1]
    return max(1, -(-rows // min(extent[1] for extent in shape.extents)))


def _described(footprint: FilmFootprint) -> str:
    together = max(footprint.sections, key=lambda section: len(section.ops))
    in_file = f", with {_size(footprint.parked_bytes)} in a file," if footprint.parked else ""
    if footprint.shape.recomputed:
        again = f"{len(footprint.shape.recomputed)} values computed again where they are read"
        return f"strips of all frames, with {again},"
    if together.slabs is None:
        return f"strips of all frames{in_file}"
    unit = f"{together.axis}" if together.slabs > 1 else together.axis.removesuffix("s")
    steps = f"in {together.of_steps} steps" if together.of_steps > 1 else "at a time"
    return f"{len(together.ops)} ops together, {together.slabs} {unit} {steps}{in_file or ','}"
