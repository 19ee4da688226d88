"""Plan films whose class computes tiles and blends them: one tile's plan, and beside it the film."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ...errors import TooLarge
from ...units import format_bytes
from ..program.program import Program
from ..program.tiles import Tiles
from .conv_algorithms import DeviceProfile
from .film_plan import check_film, plan_film
from .film_shape import FilmShape
from .plan import WITHIN_ROUNDING, Mode, Plan

_size = partial(format_bytes, up=True)

#: Bytes of a number while tiles are blended.
_BLENDED_ITEMSIZE = 4


def plan_tiles(
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
    """Return the best plan to run a program of tiles on a film; as :func:`.plan_film`."""
    check_film(program, batch, frames, height, width, budget_bytes)
    tiles, count = _tiles_of(program), _tiles_of(program).count(frames, height, width)
    beside = bytes_beside(program, batch, frames, height, width, arithmetic, frames_leave=frames_leave)
    whole_peak = whole_peak_of_tiles(program, batch, frames, height, width, arithmetic)
    budget = "no budget was set" if budget_bytes is None else f"the budget is {_size(budget_bytes)}"
    plainly = f"the plain forward takes about {_size(whole_peak)} and {budget}"
    flops = batch * count * sum(program.flops(*tiles.source[1:], tiles.source[0]))
    in_cache = arithmetic.strip_bytes is None or whole_peak <= arithmetic.strip_bytes
    fits = budget_bytes is None or whole_peak <= budget_bytes
    if "whole" in modes and fits and (in_cache or modes == ("whole",)):
        return Plan("whole", batch, height, width, arithmetic, (), (), (), whole_peak, 0, flops, plainly, frames)
    try:
        tile_frames, tile_height, tile_width = tiles.source
        made = plan_film(
            replace(program, tiles=None),
            batch=1,
            frames=tile_frames,
            height=tile_height,
            width=tile_width,
            arithmetic=arithmetic,
            budget_bytes=None if budget_bytes is None else max(1, budget_bytes - beside),
            modes=tuple(mode for mode in modes if mode != "whole"),
        )
    except TooLarge as refusal:
        least = whole_peak if modes == ("whole",) else (refusal.least_bytes or 0) + beside
        unit = "latents" if program.task == "decode" else "pixels"
        raise TooLarge(
            f"{program.task} of {batch} × {frames}×{height}×{width} {unit} does not fit the budget",
            saw=_size(budget_bytes or 0),
            expected=f"at least {_size(least)}",
            hint="that budget, a smaller or shorter film, fewer at a time, or half precision",
            least_bytes=least,
        ) from None
    peak_bytes = made.peak_bytes + beside
    how = made.reason.rpartition("; ")[2].rpartition(" take ")[0].rstrip(",")
    one = "×".join(map(str, tiles.source))
    return replace(
        made,
        batch=batch,
        frames=frames,
        height=height,
        width=width,
        steps=tuple(replace(step, taken_bytes=step.taken_bytes + beside) for step in made.steps),
        peak_bytes=peak_bytes,
        flops=batch * count * made.flops,
        reason=f"{plainly}; {count} tiles of {one} one after another, each in {how}, take {_size(peak_bytes)}",
        tiles=count,
    )


def bytes_beside(
    program: Program,
    batch: int,
    frames: int,
    height: int,
    width: int,
    arithmetic: DeviceProfile,
    *,
    frames_leave: bool = False,
) -> int:
    """Return the bytes that exist beside a tile and its output: the film, and what blending takes.

    Where frames leave, there are only those that the next tiles still add to.
    """
    tiles, stored = _tiles_of(program), arithmetic.stored_bytes
    wide = max(_BLENDED_ITEMSIZE, stored)
    made_frames, made_height, made_width = tiles.output_extent(frames, height, width)
    channels, made_channels = program.channels[0], program.channels[-1]
    of_frame = made_channels * made_height * made_width
    kept = tiles.target[0] + 1 if frames_leave and batch == 1 else batch * made_frames
    blending = (made_channels + 1) * tiles.target[1] * tiles.target[2] * wide
    last = 2 * of_frame * wide if tiles.last is not None else 0
    own = channels * (batch * frames * height * width - _numbers(tiles.source)) * stored
    return own + kept * of_frame * stored + max(blending, last)


def whole_peak_of_tiles(
    program: Program, batch: int, frames: int, height: int, width: int, arithmetic: DeviceProfile
) -> int:
    """Return the peak of the class's own forward, which keeps all tiles, and the film twice; items in turn."""
    tiles, stored = _tiles_of(program), arithmetic.stored_bytes
    of_tile = program.channels[-1] * _numbers(tiles.target) * stored
    source = program.channels[0] * frames * height * width * stored
    made = program.channels[-1] * _numbers(tiles.output_extent(frames, height, width)) * stored
    alone = FilmShape(program, 1, *tiles.source, arithmetic).whole_peak()
    one = source + tiles.count(frames, height, width) * of_tile + max(alone, 2 * made)
    return one + batch * source + (batch - 1) * made


def _tiles_of(program: Program) -> Tiles:
    if program.tiles is None:
        raise TypeError("this program has no tiles")
    return program.tiles


def _numbers(block: tuple[int, int, int]) -> int:
    frames, rows, columns = block
    return frames * rows * columns
