"""Execute a program of tiles as its plan says, and blend the tiles as their class does."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import torch

from ..planning.courses import Course
from ..planning.plan import Plan
from ..program.tiles import Block, Tiles, places
from .buffers import Buffers
from .conditioning import NOTHING
from .film_executor import FilmExecutor, FilmItem
from .parameters import Parameters


class TiledFilmExecutor(FilmExecutor):
    """A program of tiles together with a module's weights; as :class:`.FilmExecutor`."""

    def _frames_leave(self, plan: Plan) -> bool:
        return True  # once no further tile adds to them

    def _output(self, source: torch.Tensor, plan: Plan, *, is_kept: bool) -> torch.Tensor:
        frames, *size = self._tiles.output_extent(plan.frames, plan.height, plan.width)
        return source.new_zeros((plan.batch, self.program.channels[-1], frames if is_kept else 0, *size))

    def _strips(
        self,
        bound: list[Any],
        source: torch.Tensor,
        output: torch.Tensor,
        plan: Plan,
        buffers: Buffers,
        deliver: Callable[[torch.Tensor], None] | None,
        timestep: torch.Tensor | None,
    ) -> Generator[None]:
        del timestep
        tiles, program = self._tiles, self._as_planned(plan).program
        tile_frames, *tile_size = tiles.source
        sizes = program.sizes(*tile_size)
        lengths = program.lengths(tile_frames)
        extents = tuple((length, *size) for length, size in zip(lengths, sizes, strict=True))
        courses = [Course(program, section, extents) for section in plan.sections]
        grid = tiles.grid(plan.frames, plan.height, plan.width)
        extent = tiles.output_extent(plan.frames, plan.height, plan.width)
        conditions = [NOTHING] * len(program.ops)
        for item in range(plan.batch):
            film = Blended(tiles, grid, None if deliver else output[item], extent, deliver)
            for place in places(grid):
                tile = source[item][:, *_within(place, tiles.source_step, tiles.source)]
                made = source.new_empty((program.channels[-1], *tiles.target)).transpose(0, 1)
                ends = tile.transpose(0, 1), made
                run = FilmItem(program, plan, bound, *ends, buffers, extents, None, conditions)
                for section, course in zip(plan.sections, courses, strict=True):
                    yield from run.section(section, course)
                film.add(place, made)
                del run, made, ends, tile  # before the next one is made
            film.finish()
            if tiles.last is not None:
                self._convolve_last(output[item], buffers.scratch.like.dtype)

    @property
    def _tiles(self) -> Tiles:
        if self.program.tiles is None:
            raise TypeError("this program has no tiles")
        return self.program.tiles

    def _convolve_last(self, film: torch.Tensor, computed: torch.dtype) -> None:
        """Apply the 1×1 convolution of what all tiles give together, in place: (C, T, H, W)."""
        if self._tiles.last is None:
            return
        weight, bias = Parameters(self._parameters.parts, computed).of(self._tiles.last)
        for frame in range(film.shape[1]):
            film[:, frame] = torch.nn.functional.conv2d(film[None, :, frame].to(computed), weight, bias)[0]


class Blended:
    """A film (C, T, H, W) to which tiles are added with weights that rise and fall where they overlap.

    Args:
        tiles: The tiles.
        grid: How many there are along each axis.
        film: The film, of zeros; None if its frames leave.
        extent: (frames, height, width) of the film.
        deliver: Takes frames (1, C, 1, H, W) that no further tile adds to.
    """

    def __init__(
        self,
        tiles: Tiles,
        grid: Block,
        film: torch.Tensor | None,
        extent: Block,
        deliver: Callable[[torch.Tensor], None] | None,
    ) -> None:
        self._tiles, self._grid, self._film, self._extent, self._deliver = tiles, grid, film, extent, deliver
        self._some: torch.Tensor | None = None  # the frames that tiles are added to, where frames leave
        self._left = 0  # frames that have left

    def add(self, place: Block, tile: torch.Tensor) -> None:
        """Add the tile of this number along each axis, (T, C, H, W)."""
        tiles = self._tiles
        frames, rows, columns = _within(place, tiles.target_step, tiles.target)
        if self._deliver is not None:
            self._deliver_up_to(frames.start, tile)
        wide = torch.promote_types(tile.dtype, torch.float32)
        along = [
            _ramp(at, count, size, overlap, tile.device).to(wide)
            for at, count, size, overlap in zip(place, self._grid, tiles.target, tiles.overlap, strict=True)
        ]
        weight = along[1][:, None] * along[2]
        for number, frame in enumerate(tile):
            part = frame.to(wide, copy=True).mul_(weight).mul_(along[0][number])
            target = self._frame(frames.start + number)[:, rows, columns]
            target.copy_(part.add_(target))

    def finish(self) -> None:
        """Deliver the frames that are left; those that no tile covers are zeros."""
        if self._deliver is not None:
            self._deliver_up_to(self._extent[0], self._some)

    def _frame(self, frame: int) -> torch.Tensor:
        if self._film is not None:
            return self._film[:, frame]
        if self._some is None:
            raise TypeError("no tile was begun")
        return self._some[frame % len(self._some)]

    def _deliver_up_to(self, end: int, like: torch.Tensor | None) -> None:
        if like is None or self._deliver is None:
            return
        if self._some is None:
            size = self._tiles.target[0], like.shape[1], *self._extent[1:]
            self._some = like.new_zeros(size)
        while self._left < end:
            frame = self._some[self._left % len(self._some)]
            self._deliver(frame[None, :, None].clone())
            frame.zero_()
            self._left += 1


def _within(place: Block, step: Block, size: Block) -> tuple[slice, slice, slice]:
    frames, rows, columns = (
        slice(at * far, at * far + long) for at, far, long in zip(place, step, size, strict=True)
    )
    return frames, rows, columns


def _ramp(at: int, count: int, size: int, overlap: int, device: torch.device) -> torch.Tensor:
    """Return the weights along one axis; in float32 as in the class, whose weights are these numbers."""
    weights = torch.ones(size, dtype=torch.float32, device=device)
    rising = torch.arange(overlap, dtype=torch.float32, device=device) / overlap
    if at > 0:
        weights[:overlap] *= rising
    if at < count - 1:
        weights[-overlap:] *= 1 - rising
    return weights
