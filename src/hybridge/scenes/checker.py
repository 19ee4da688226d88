"""Finds in a picture what a caption asks for, by colours and outlines alone.

The picture's edges tell the sky and the ground.  Pixels that differ from both belong to things, and connected ones
to one thing, whose outline runs where its colour and the backdrop's are mixed half and half.  Its colour is the
one that most of its pixels are nearest to, its shape the one whose drawing covers the same pixels best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .drawing import GREY, GROUND, backdrop, silhouette
from .scene import BIG_FROM, COLOURS, GROUNDS, PLACES, SHAPES, SIDE, SMALL_UP_TO, TIMES, Scene, Thing

Pixels = np.ndarray[Any, Any]

#: Pixels of the smallest thing: spots below are not things.
_SMALLEST = 150

#: Distance in RGB from which on a pixel is not the backdrop.  White on the sky by day is the nearest, with 100.
_APART = 60

#: No outline is drawn farther from the backdrop than this: grey stripes are 87 from the grass.
_CLEARLY_APART = 80

#: A thing is striped when at least this share of it is grey.
_STRIPED = 0.25

#: By how many pixels a drawing may be smaller or larger than the thing it is compared with.
_WIDTHS = (-2, -1, 0, 1, 2)

#: Shares of the side: how far a single thing may be from its place.
_PLACE_REACH = 0.12

_PALETTE = np.array([*COLOURS.values(), GREY], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Seen:
    """A thing as the pixels show it.

    Attributes:
        colour: A key of ``COLOURS``.
        shape: One of ``SHAPES``.
        is_striped: Whether grey stripes run across it.
        x: Of its centre, in pixels from the left.
        y: From the top.
        width: In pixels: the larger side of its bounding box.
    """

    colour: str
    shape: str
    is_striped: bool
    x: float
    y: float
    width: float


@dataclass(frozen=True, slots=True)
class Finding:
    """What of a caption a picture shows.

    Attributes:
        seen: Every thing found, from left to right, or from top to bottom if they stand in a column.
        colours_right: How many of the things asked for have their colour.
        shapes_right: How many have their shape.
        wrong: What is not as asked, each in a few words; empty when all is right.
    """

    seen: tuple[Seen, ...]
    colours_right: int
    shapes_right: int
    wrong: tuple[str, ...]

    @property
    def is_right(self) -> bool:
        """Whether the picture shows the whole caption."""
        return not self.wrong


def check(scene: Scene, picture: Pixels | Image.Image) -> Finding:
    """Looks for a scene in a picture.

    Args:
        scene: What was asked for.
        picture: RGB, or uint8 (H, W, 3); one of another size than ``SIDE`` is resized.
    """
    pixels = _pixels(picture)
    seen = look(pixels)
    layout = _layout(seen)
    seen.sort(key=lambda thing: thing.y if layout == "column" else thing.x)
    wrong: list[str] = []
    colours = shapes = 0
    if len(seen) != len(scene.things):
        wrong.append(f"{len(seen)} things instead of {len(scene.things)}")
    for asked, found in zip(scene.things, seen, strict=False):
        colours += asked.colour == found.colour
        shapes += asked.shape == found.shape
        wrong += _differences(asked, found)
    if layout != scene.layout and len(seen) > 1:
        wrong.append(f"not in a {scene.layout}")
    elif scene.layout == "alone":
        wrong += _misplaced(scene, seen[:1])
    wrong += _wrong_backdrop(scene, pixels)
    return Finding(tuple(seen), colours, shapes, tuple(wrong))


def look(pixels: Pixels) -> list[Seen]:
    """Every thing in uint8 (SIDE, SIDE, 3), in no order."""
    shown = pixels.astype(np.float32)
    apart = np.sqrt(((shown - backdrop(*_backdrop(pixels))) ** 2).sum(-1))
    labels, count = _components(_opened(apart > _APART))
    things = []
    for number in range(1, count + 1):
        mask = labels == number
        if mask.sum() >= _SMALLEST:
            outline = mask & (apart > min(np.median(apart[mask]) / 2, _CLEARLY_APART))
            things.append(_seen(outline, shown))
    return things


def _components(mask: Pixels) -> tuple[Pixels, int]:
    """Numbers of connected pixels, from 1; each row's runs are joined to the runs above that they touch."""
    labels = np.zeros(mask.shape, dtype=np.int32)
    parents = [0]

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    for y, row in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], row.view(np.int8), [0]))))
        for start, stop in edges.reshape(-1, 2):
            above = {root(n) for n in labels[y - 1, start:stop] if n} if y else set()
            number = min(above) if above else len(parents)
            if not above:
                parents.append(number)
            for other in above:
                parents[other] = number
            labels[y, start:stop] = number
    roots = sorted({root(number) for number in range(1, len(parents))})
    numbers = np.zeros(len(parents), dtype=np.int32)
    for number in range(1, len(parents)):
        numbers[number] = roots.index(root(number)) + 1
    return numbers[labels], len(roots)


def _seen(mask: Pixels, shown: Pixels) -> Seen:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    x, y, width = (left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top)
    inner = shown[_eroded(mask)]
    apart = ((inner[:, None] - _PALETTE) ** 2).sum(-1)
    nearest = apart.argmin(-1)
    colour = int(np.bincount(nearest, minlength=len(_PALETTE))[:-1].argmax())
    grey = float((apart[:, -1] < apart[:, colour]).mean())
    fits = {
        shape: max(_overlap(mask, silhouette(shape, x, y, width + by) > 0.5) for by in _WIDTHS) for shape in SHAPES
    }
    return Seen(
        colour=list(COLOURS)[colour],
        shape=max(SHAPES, key=lambda shape: fits[shape]),
        is_striped=grey > _STRIPED,
        x=float(x),
        y=float(y),
        width=float(width),
    )


def _opened(mask: Pixels) -> Pixels:
    """Without lines of one or two pixels: a blurred horizon is no thing."""
    return ~_shrunk(~_shrunk(mask))


def _shrunk(mask: Pixels) -> Pixels:
    """Without the pixels that have a neighbour outside of it; beyond the picture's edge it goes on."""
    wide = np.pad(mask, 1, mode="edge")
    inner = mask.copy()
    middle = slice(1, -1)
    for side in (slice(0, -2), slice(2, None)):
        inner &= wide[side, middle] & wide[middle, side]
    return inner


def _eroded(mask: Pixels) -> Pixels:
    """Without its edge, where colours are mixed; the mask itself when nothing else is left."""
    inner = _shrunk(_shrunk(mask))
    return inner if inner.sum() > _SMALLEST // 4 else mask


def _overlap(mask: Pixels, other: Pixels) -> float:
    return float((mask & other).sum() / (mask | other).sum())


def _differences(asked: Thing, found: Seen) -> list[str]:
    wrong = []
    if asked.colour != found.colour:
        wrong.append(f"{found.colour} instead of {asked.colour}")
    if asked.shape != found.shape:
        wrong.append(f"a {found.shape} instead of a {asked.shape}")
    if asked.is_striped != found.is_striped:
        wrong.append("striped" if found.is_striped else "not striped")
    if (asked.size == "small" and found.width > SMALL_UP_TO) or (asked.size == "big" and found.width < BIG_FROM):
        wrong.append(f"not {asked.size}")
    return wrong


def _layout(seen: list[Seen]) -> str:
    """How things stand: in a column when they are farther apart from above to below than across."""
    if len(seen) < 2:
        return "alone"
    across, down = (max(at) - min(at) for at in ([t.x for t in seen], [t.y for t in seen]))
    return "column" if down > across else "row"


def _misplaced(scene: Scene, seen: list[Seen]) -> list[str]:
    x, y = PLACES[scene.place]
    off = (max(abs(thing.x / SIDE - x), abs(thing.y / SIDE - y)) for thing in seen)
    return [f"not at the place {scene.place!r}" for distance in off if distance > _PLACE_REACH]


def _wrong_backdrop(scene: Scene, pixels: Pixels) -> list[str]:
    time, ground = _backdrop(pixels)
    wrong = [] if time == scene.time else [f"the sky is {time} instead of {scene.time}"]
    if ground != scene.ground:
        wrong.append(f"the ground is {ground or 'missing'} instead of {scene.ground or 'none'}")
    return wrong


def _backdrop(pixels: Pixels) -> tuple[str, str]:
    """Time and ground: the ones whose colours most pixels of the upper and the lower edge are nearest to."""
    rows = 6
    times = [backdrop(time, "")[:rows] for time in TIMES]
    time = TIMES[_nearest(pixels[:rows], times)]
    grounds = [backdrop(time, ground)[-GROUND // 2 :] for ground in GROUNDS]
    return time, GROUNDS[_nearest(pixels[-GROUND // 2 :], grounds)]


def _nearest(pixels: Pixels, candidates: list[Pixels]) -> int:
    apart = np.stack([((pixels.astype(np.float32) - candidate) ** 2).sum(-1) for candidate in candidates])
    return int(np.bincount(apart.argmin(0).ravel(), minlength=len(candidates)).argmax())


def _pixels(picture: Pixels | Image.Image) -> Pixels:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(image.convert("RGB"))
