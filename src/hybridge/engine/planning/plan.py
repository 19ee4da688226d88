"""Decide how a program fits in memory, by arithmetic on shapes, before any memory is allocated.

A strip run executes the program op by op.  It computes a few rows of an op's target at a time, from a *window* of
the normalised source rows that these need, and writes them to the target's buffer.  :mod:`.footprint` computes the
memory that this takes; this module chooses the mode that gives up least speed for memory, in this order:

* ``whole``: the module's own forward, where strips are no faster: on a device that does not need them, and for
  pictures that are small enough to stay in cache.
* ``strips``: every value is computed once.
* ``lean``: the outputs of ×2 upsampling, which are the largest values, never exist whole.  They are recomputed
  strip by strip whenever they are read: once for their statistics, and once for every reader.
* ``recompute``: so are values within residual blocks.
* ``spill``: activations lie in a file, on a GPU in the host's memory, and strips of them are fetched; beside that
  as ``lean``.
* smaller strips
* ``frames`` and ``rows``: for films only; see :mod:`.film_plan`.
* ``tiles``: the module's own tiling, which is an approximation; used only if the caller allows it.

All sizes are in bytes, on top of the weights, and include input and output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from ...errors import RequestError, TooLarge
from ...units import format_bytes
from ..program.program import Program
from .conv_algorithms import DeviceProfile
from .courses import Section
from .footprint import Buffer, Footprint, Step
from .shape import Shape

#: Rounded up, so that a budget copied from a message is never too small.
_size = partial(format_bytes, up=True)

Mode = Literal["whole", "strips", "lean", "recompute", "spill", "frames", "rows", "tiles"]

#: The modes whose picture equals the plain forward's within rounding.
WITHIN_ROUNDING: tuple[Mode, ...] = ("whole", "strips", "lean", "recompute", "spill", "frames", "rows")

#: The modes of :data:`WITHIN_ROUNDING` that offload nothing.
IN_MEMORY: tuple[Mode, ...] = tuple(mode for mode in WITHIN_ROUNDING if mode != "spill")

#: Size of a strip on a device that does not need strips for speed: it fills the device, and is small compared with
#: an activation.
STRIP_BYTES_WITHOUT_CACHE = 256 * 2**20

#: Memory that a run without a budget aims at, as a part of the plain forward's memory …
FRUGAL_PART = 0.4

#: … as long as this adds no more than this part of the multiplications …
FRUGAL_WORK = 0.25

#: … and only where strips take more than this; below it, saving memory is not worth the time.
FRUGAL_FROM_BYTES = 512 * 2**20

#: Number of halvings of a strip that cost little speed; they are tried before values are recomputed.
_CHEAP_HALVINGS = 2

#: Factor by which strips shrink at a time once everything else was tried.
_SHRINKING = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """The decision how to run, and its reason.

    Attributes:
        mode: The mode of running; see the module's docstring.
        batch: Number of items.
        height: Height of the input.
        width: Width of the input.
        arithmetic: The widths in which numbers are stored and computed.
        steps: One step for every op; empty in modes ``whole`` and ``tiles``.
        buffers: The buffers in the order of their allocation; empty in modes ``whole`` and ``tiles``.
        last_reads: For every value the index of the op that reads it last; empty in modes ``whole`` and ``tiles``.
        peak_bytes: Most bytes that exist at one time on top of the weights, input and output included.  For
            ``whole`` this follows what diffusers' code keeps alive, without the memory that a convolution takes
            internally.
        parked_bytes: Most bytes that lie in a file, or for a GPU in the host's memory, at one time; 0 in modes
            other than ``spill``.
        flops: Floating-point operations for the whole batch; see :meth:`.Program.flops`.
        reason: The reason for this mode and these strips, in a sentence with numbers.
        frames: Number of frames of the input; 1 for a picture.
        sections: For a film, which ops run together; empty for a picture, whose ops run one after another.
        tiles: Number of tiles of an item that its class computes one after another; the steps are those of one.
        recomputed: For a film, the values that each reader computes again; see :mod:`..program.recomputing`.
    """

    mode: Mode
    batch: int
    height: int
    width: int
    arithmetic: DeviceProfile
    steps: tuple[Step, ...]
    buffers: tuple[Buffer, ...]
    last_reads: tuple[int, ...]
    peak_bytes: int
    parked_bytes: int
    flops: int
    reason: str
    frames: int = 1
    sections: tuple[Section, ...] = ()
    recomputed: tuple[int, ...] = ()
    tiles: int = 1

    @property
    def arena_bytes(self) -> int:
        """Bytes of the run's arena: the ops' scratch memory, and above it the buffers that are not offloaded."""
        ends = (buffer.offset + buffer.nbytes for buffer in self.buffers if not buffer.is_parked)
        return max([self.scratch_bytes, *ends])

    @property
    def scratch_bytes(self) -> int:
        """Most scratch memory that one op takes, in bytes."""
        return max((step.scratch_bytes for step in self.steps), default=0)

    @property
    def strips(self) -> int:
        """Number of strips of the whole batch; progress counts these."""
        return self.batch * self.tiles * sum(step.strips for step in self.steps)


def plan(
    program: Program,
    *,
    batch: int,
    height: int,
    width: int,
    arithmetic: DeviceProfile,
    budget_bytes: int | None = None,
    modes: tuple[Mode, ...] = WITHIN_ROUNDING,
    tile: tuple[int, int] | None = None,
) -> Plan:
    """Return the best plan to run a program on an input (batch, C, height, width) within a budget.

    Args:
        program: The program to run.
        batch: Number of items.
        height: Height of the input: in latents for a decoder, in pixels for an encoder.
        width: Width of the input: in latents for a decoder, in pixels for an encoder.
        arithmetic: The device's arithmetic for the dtype that activations are stored in.
        budget_bytes: Bytes that may be taken on top of the weights; None for no bound.
        modes: The modes to choose from.
        tile: (height, width) of the module's own tiles, in the input's unit; needed for mode ``tiles``.

    Raises:
        RequestError: for an invalid budget, or a picture that is too small for the model.
        TooLarge: when no plan fits the budget; it names the smallest budget that would do.
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
    is_faster = in_cache and not program.is_folded  # whose module multiplies three times as much
    if "whole" in modes and (is_faster or modes == ("whole",)):
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
                more += f", with {_size(chosen.parked_bytes)} of activations offloaded"
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
    """Yield the ways to run in strips, from the fastest to the one that takes the least memory."""
    strip_bytes = shape.arithmetic.strip_bytes or STRIP_BYTES_WITHOUT_CACHE
    if budget_bytes is None:
        # Planned for one item, so that each item of a batch runs as it would alone.
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
    """Yield footprints with fewer and fewer whole values: first without outputs of ×2, then without any others.

    In mode ``spill``, buffers are offloaded instead.  Each level removes one value that exists at the peak of
    memory: the one whose removal lowers the peak most for the work that it adds.
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
    """Return, in a list, the first level within the frugal part, or the last that its work allows; or no level."""
    best = next(levels, None)
    if best is None:
        return []
    if best[1].shape.arithmetic.strip_bytes is None or best[1].peak(strip_bytes) <= FRUGAL_FROM_BYTES:
        return [best]
    work = sum(best[1].shape.work)
    for level in levels:
        if best[1].peak(strip_bytes) <= FRUGAL_PART * whole_peak or level[1].work > (1 + FRUGAL_WORK) * work:
            break
        best = level
    return [best]
