"""What is asked: the arguments of a run, and the cases that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ...errors import RequestError
from ...models.frames import STILL, FrameRule
from ..harness.names import check_known

Task = Literal["decode", "encode"]

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table: what every rival computes.

    Attributes:
        model: A name of the catalogue, or NAME=PATH_OR_REPO[:subfolder].
        size: Side of the picture in pixels.
        dtype: Of weights and activations.
        device: ``auto`` or any torch device.
        seed: Of the input, and of random weights.
        weights: Whether the real weights are loaded; else they are random, for speed does not depend on them.
        frames: Of a video model's film; 1 for pictures.
    """

    model: str
    task: Task
    size: int
    dtype: str
    device: str = "auto"
    seed: int = 0
    weights: bool = False
    frames: int = 1

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.task} {self.size}², {f'{self.frames} frames, ' if self.frames > 1 else ''}{self.dtype}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """A whole run.  Two runs with equal arguments measure the same; what a :class:`Case` has too is said there.

    Older records lack what has a default.

    Attributes:
        sizes: Sides of pictures in pixels.
        repeats: Rounds: how often every rival is started anew.
        budget_bytes: What ``exact`` may take on top of the weights, or None.
        tile_pixels: Side of diffusers' tiles, or None for the model's own.
        rivals: Names, in the order in which they take turns.
    """

    model: str = ""
    sizes: tuple[int, ...]
    task: Task
    dtypes: tuple[str, ...]
    device: str = "auto"
    repeats: int
    budget_bytes: int | None = None
    tile_pixels: int | None = None
    rivals: tuple[str, ...]
    weights: bool = False
    limit_s: float = 600.0
    seed: int = 0
    frames: int = 1

    def cases(self) -> list[Case]:
        """Every dtype at every size."""
        return [
            Case(self.model, self.task, size, dtype, self.device, self.seed, self.weights, self.frames)
            for dtype in self.dtypes
            for size in self.sizes
        ]

    def check(self, known_rivals: tuple[str, ...], spatial_factor: int, rule: FrameRule = STILL) -> None:
        """Raises :class:`RequestError` for what cannot be asked, before any process is started."""
        check_known("task", (self.task,), get_args(Task))
        check_known("dtype", self.dtypes, DTYPES)
        check_known("rival", self.rivals, known_rivals)
        tiles = () if self.tile_pixels is None else (self.tile_pixels,)
        numbers = {"size": self.sizes, "repeats": (self.repeats,), "limit": (self.limit_s,), "tile": tiles or (1,)}
        for name, values in numbers.items():
            if not values or not all(0 < value < math.inf for value in values):
                raise RequestError(f"not a {name}", saw=", ".join(map(str, values)), expected="more than zero")
        if self.frames not in (rule.nearest(max(1, self.frames)) if rule.is_video else (1,)):
            raise RequestError(
                "not a number of this model's frames",
                saw=self.frames,
                expected=f"{rule.counts()} frames" if rule.is_video else "one, for it is a model of pictures",
            )
        for size in (*self.sizes, *tiles):
            if size % spatial_factor:
                raise RequestError(
                    "not a size of this model's pictures", saw=size, expected=f"a multiple of {spatial_factor}"
                )
