"""How a program fits in memory: arithmetic on shapes, decided before any memory is taken.

A strip run walks the program op by op.  Of an op's target it makes a few rows at a time, in a *window* that holds
the normalised source rows those need, and writes them to the target's buffer.  :mod:`.footprint` says what that
takes; here the least that is given up for memory is chosen, in this order:

* ``whole``: the module's own forward, where strips are no faster: on a device that does not need them, and for
  pictures small enough to stay in cache as they are.
* ``strips``: every value is made once.
* ``lean``: what ×2 makes, the widest values, never exists whole.  It is made again, strip by strip, whenever it is
  read: once for its statistics, once for every reader.
* ``recompute``: so are values within residual blocks.
* ``spill``: activations lie in a file, on a GPU in the host's memory, and strips of them are fetched; beside that
  as ``lean``.
* smaller strips
* ``tiles``: the module's own tiling, an approximation, and only for those who allow it.

Everything here is in bytes, counts what is on top of the weights, and includes input and output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from ...errors import RequestError, TooLarge
from ...units import format_bytes
from ..program.program import Program
from .conv_algorithms import Arithmetic
from .footprint import Buffer, Footprint, Step
from .shape import Shape

#: Rounded up, so that a budget which is read off a message is never too small.
_size = partial(format_bytes, up=True)

Mode = Literal["whole", "strips", "lean", "recompute", "spill", "tiles"]

#: The modes that give the plain forward's picture within rounding.
WITHIN_ROUNDING: tuple[Mode, ...] = ("whole", "strips", "lean", "recompute", "spill")

#: Those of them that park nothing.
IN_MEMORY: tuple[Mode, ...] = tuple(mode for mode in WITHIN_ROUNDING if mode != "spill")

#: A strip on a device that needs none for speed: large enough to fill it, small beside an activation.
_STRIP_BYTES_WITHOUT_CACHE = 256 * 2**20

#: What a run without a budget aims at, as a part of what the plain forward takes …
_FRUGAL_PART = 0.4

#: … for as long as that adds no more than this part of the multiplications …
_FRUGAL_WORK = 0.25

#: … and only above what is not worth any time.
_FRUGAL_FROM_BYTES = 512 * 2**20

#: Halvings of a strip that cost little speed, and are tried before values are made twice.
_CHEAP_HALVINGS = 2

#: How much smaller strips become at a time once everything else was tried.
_SHRINKING = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """A decision, and why.

    Attributes:
        mode: ``whole`` is the module's own forward; see above for the others.
        batch: Items.
        height: Of the input.
        width: Of the input.
        arithmetic: What numbers are kept and computed in.
        steps: One for every op; empty in modes ``whole`` and ``tiles``.
        buffers: In the order of their allocation; empty where steps are.
        last_reads: For every value the op after which it is not needed any more; empty where steps are.
        peak_bytes: Most that exists at one time on top of the weights, input and output included.  For ``whole`` it
            follows what diffusers' code keeps alive, and leaves out what a convolution takes inside itself.
        parked_bytes: Most that lies in a file, or on a GPU in the host's memory, at one time; 0 in other modes than
            ``spill``.
        flops: Of the whole batch; see :meth:`.Program.flops`.
        reason: Why this mode and these strips, in a sentence with numbers.
    """

    mode: Mode
    batch: int
    height: int
    width: int
    arithmetic: Arithmetic
    steps: tuple[Step, ...]
    buffers: tuple[Buffer, ...]
    last_reads: tuple[int, ...]
    peak_bytes: int
    parked_bytes: int
    flops: int
    reason: str

    @property
    def arena_bytes(self) -> int:
        """Of the memory that it runs in: what an op takes for itself, and above it buffers that are not parked."""
        ends = (buffer.offset + buffer.nbytes for buffer in self.buffers if not buffer.is_parked)
        return max([self.scratch_bytes, *ends])

    @property
    def scratch_bytes(self) -> int:
        """What ops take for themselves at most."""
        return max((step.scratch_bytes for step in self.steps), default=0)

    @property
    def strips(self) -> int:
        """Strips of the whole batch, which is what progress counts."""
        return self.batch * sum(step.strips for step in self.steps)


def plan(
    program: Program,
    *,
    batch: int,
    height: int,
    width: int,
    arithmetic: Arithmetic,
    budget_bytes: int | None = None,
    modes: tuple[Mode, ...] = WITHIN_ROUNDING,
    tile: tuple[int, int] | None = None,
) -> Plan:
    """The best way to run a program on an input (batch, C, height, width) within a budget.

    Args:
        program: What to run.
        batch: Items.
        height: Of the input: latents for a decoder, pixels for an encoder.
        width: The same.
        arithmetic: Of the device, for the dtype that activations are kept in.
        budget_bytes: What may be taken on top of the weights; None for no bound.
        modes: Those to choose from.
        tile: (height, width) of the module's own tiles, in the input's unit; needed for mode ``tiles``.

    Raises:
        RequestError: for a budget that is no budget, or a picture too small for the model.
        TooLarge: when nothing fits the budget; names the smallest that would.
    """
    _check(program, batch, height, width, budget_bytes)
    shape = Shape(program, batch, height, width, arithmetic)
    whole_peak = shape.whole_peak()
    budget = "no budget was set" if budget_bytes is None else f"the budget is {_size(budget_bytes)}"
    plainly = f"the plain forward takes about {_size(whole_peak)} and {budget}"

    def made(
        mode: Mode, peak_bytes: int, reason: str, chosen: Footprint | None = None, strip_bytes: int = 0
    ) -> Plan:
        steps = chosen.steps(strip_bytes) if chosen else ()
        return Plan(
            mode,
            batch,
            height,
            width,
            arithmetic,
            steps,
            chosen.laid_out(steps) if chosen else (),
            chosen.last_reads if chosen else (),
            peak_bytes,
            chosen.parked_bytes if chosen else 0,
            batch * (chosen.flops if chosen else sum(shape.flops)),
            reason,
        )

    least = None
    in_cache = arithmetic.strip_bytes is None or whole_peak <= arithmetic.strip_bytes
    if "whole" in modes and (in_cache or modes == ("whole",)):
        least = whole_peak
        if budget_bytes is None or whole_peak <= budget_bytes:
            return made("whole", whole_peak, plainly)
    for mode, chosen, strip_bytes in _in_strips(shape, modes, budget_bytes, whole_peak):
        peak = chosen.peak(strip_bytes)
        least = min(peak, least or peak)
        if budget_bytes is None or peak <= budget_bytes:
            again = chosen.work / sum(shape.work) - 1
            more = f" and {again:.0%} more multiplications" if chosen.streamed else ""
            if chosen.parked:
                more += f", with {_size(chosen.parked_bytes)} of activations parked elsewhere"
            return made(
                mode,
                peak,
                f"{plainly}; strips of {_size(strip_bytes)} take {_size(peak)}{more}",
                chosen,
                strip_bytes,
            )
    if "tiles" in modes and tile is not None:
        tiled = shape.tiled_peak(min(height, tile[0]), min(width, tile[1]))
        least = min(tiled, least or tiled)
        if budget_bytes is None or tiled <= budget_bytes:
            return made("tiles", tiled, f"{plainly}; nothing exact fits, and an approximation was allowed")
    unit = "latents" if program.task == "decode" else "pixels"
    raise TooLarge(
        f"{program.task} of {batch} × {height}×{width} {unit} does not fit the budget",
        saw=_size(budget_bytes or 0),
        expected=f"at least {_size(least or whole_peak)}",
        hint="that budget, a smaller picture, fewer at a time, or half precision",
        least_bytes=least or whole_peak,
    )


def _check(program: Program, batch: int, height: int, width: int, budget_bytes: int | None) -> None:
    if budget_bytes is not None and budget_bytes <= 0:
        raise RequestError("not a budget", saw=f"{budget_bytes} bytes", expected="more than zero, or None")
    if min(batch, height, width) < 1:
        raise RequestError("nothing to run", saw=f"{batch} × {height}×{width}", expected="at least one of each")
    if min(min(size) for size in program.sizes(height, width)) < 1:
        raise RequestError("the picture is too small for this model", saw=f"{height}×{width}")


def _in_strips(
    shape: Shape, modes: tuple[Mode, ...], budget_bytes: int | None, whole_peak: int
) -> Iterator[tuple[Mode, Footprint, int]]:
    """Ways to run in strips, from the fastest to the smallest."""
    strip_bytes = shape.arithmetic.strip_bytes or _STRIP_BYTES_WITHOUT_CACHE
    if budget_bytes is None:
        # As for one item, so that a batch is run like each of its items alone.
        item = Shape(shape.program, 1, shape.height, shape.width, shape.arithmetic)
        in_memory = tuple(mode for mode in modes if mode in IN_MEMORY)
        for mode, level in _frugal(_levels(item, in_memory, strip_bytes), strip_bytes, whole_peak // shape.batch):
            yield mode, Footprint(shape, level.streamed), strip_bytes
        return
    for mode, level in _levels(shape, modes, strip_bytes):
        for halving in range(_CHEAP_HALVINGS + 1):
            yield mode, level, max(1, strip_bytes >> halving)
    while strip_bytes > 1:
        strip_bytes = max(1, strip_bytes // _SHRINKING)
        yield from ((mode, level, strip_bytes) for mode, level in [*_levels(shape, modes, strip_bytes)][-1:])


def _levels(shape: Shape, modes: tuple[Mode, ...], strip_bytes: int) -> Iterator[tuple[Mode, Footprint]]:
    """Fewer and fewer values that exist whole: first of those that ×2 makes, then of any, or parked instead.

    At each level the value goes that is there when memory is at its peak, and whose going lowers it most for the
    work that it adds.
    """
    footprint = lean = Footprint(shape)
    if "strips" in modes:
        yield "strips", footprint
    stages: tuple[tuple[Mode, bool], ...] = (("lean", True), ("recompute", False))
    for mode, only_doubled in stages:
        while mode in modes and (leaner := footprint.leaner(strip_bytes, only_doubled=only_doubled)) is not None:
            footprint = leaner
            if mode == "lean":
                lean = footprint
            yield mode, footprint
    while "spill" in modes and (parked := lean.with_more_parked(strip_bytes)) is not None:
        lean = parked
        yield "spill", parked


def _frugal(
    levels: Iterator[tuple[Mode, Footprint]], strip_bytes: int, whole_peak: int
) -> list[tuple[Mode, Footprint]]:
    """The first level that is within the frugal part, or the last that its work allows; none if there is none."""
    best = next(levels, None)
    if best is None:
        return []
    if best[1].shape.arithmetic.strip_bytes is None or best[1].peak(strip_bytes) <= _FRUGAL_FROM_BYTES:
        return [best]
    work = sum(best[1].shape.work)
    for level in levels:
        if best[1].peak(strip_bytes) <= _FRUGAL_PART * whole_peak or level[1].work > (1 + _FRUGAL_WORK) * work:
            break
        best = level
    return [best]
