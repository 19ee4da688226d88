"""Fold a program of films for a film of one frame: it is then a program of pictures.

A convolution over several frames sees one frame, and around it zeros or the same frame, so that of its taps in time
one is left, or their sum; and what a program does to the frames after the first does not happen.
A third of the multiplications remains, and every way to run pictures serves; a program that moves numbers between
channels and positions, or that normalises with maps, stays one of films, of one frame.  One that makes several
frames of one, attends along time, or computes tiles, stays as it is.
"""

from __future__ import annotations

from dataclasses import replace

from .layers import Weights
from .ops import Attend, Convolve, Op, needs_film
from .program import Program


def folded(program: Program) -> Program:
    """Return the program of pictures that computes what ``program`` computes for one frame; pictures' as it is."""
    if (
        not program.is_film
        or program.is_of_pictures
        or program.tiles is not None
        or not all(map(_folds, program.ops))
    ):
        return program
    program = program.at(1)
    now = {0: 0}  # the new number of every value
    channels, ops, held = [program.channels[0]], [], []
    for op, inside in zip(program.ops, program.held, strict=True):
        if isinstance(op, Convolve) and op.in_time is not None and op.in_time.first_computed:
            now[op.target] = now[op.source]  # frame 0 is passed on
            continue
        made: Op = replace(op, source=now[op.source], target=len(channels))
        if made.norm is not None:
            made = replace(made, norm=replace(made.norm, over="frame", segments=None))
        if isinstance(made, Attend):
            made = replace(made, sees="frame")
        if not isinstance(made, Attend) and made.residual is not None:
            made = replace(made, residual=now[made.residual])
        if isinstance(made, Convolve):
            made = replace(made, in_time=None, weights=_of_one_frame(made))
        now[op.target] = made.target
        channels.append(program.channels[op.target])
        ops.append(made)
        held.append(frozenset(now[value] for value in inside))
    is_film = any(map(needs_film, ops))
    values = tuple(channels), tuple(ops), tuple(held)
    return Program(program.task, program.module, *values, is_film, is_folded=True, is_at_once=program.is_at_once)


def _folds(op: Op) -> bool:
    """Return whether an op makes one frame of one, as it would in a picture."""
    if isinstance(op, Attend):
        return op.sees != "pixel before"
    return op.output_frames(1) == 1


def _of_one_frame(op: Convolve) -> Weights:
    weights, time = op.weights, op.in_time
    if time is None or weights.taps is None:
        return weights
    first, end = time.window_of(0)
    *_, of_frame_0 = weights.taps  # the last of its window's phases
    seen = [slot for slot, frame in enumerate(range(first, end)) if frame == 0 or time.outside == "nearest"]
    summed = tuple(sorted(tap for slot in seen for tap in of_frame_0[slot]))
    into, out = weights.in_channels // time.kernel, weights.out_channels // weights.phases
    return replace(weights, in_channels=into, out_channels=out, taps=((summed,),))
