"""What a scene is made of, scenes at random, and which of them are never trained on."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Literal

#: Width and height of a picture, in pixels.
SIDE = 128

Layout = Literal["alone", "row", "column"]

#: Where a single thing is: centre as shares of the side, x from the left and y from the top.
PLACES: dict[str, tuple[float, float]] = {
    "middle": (0.5, 0.5),
    "left": (0.28, 0.5),
    "right": (0.72, 0.5),
    "top": (0.5, 0.28),
    "bottom": (0.5, 0.72),
}

#: Of things, in RGB.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 35, 35),
    "orange": (250, 140, 20),
    "yellow": (250, 225, 40),
    "green": (30, 180, 60),
    "blue": (40, 70, 225),
    "purple": (145, 50, 185),
    "white": (250, 250, 250),
}

SHAPES = ("circle", "square", "triangle", "cross", "ring")

#: Shapes that have stripes in some of the scenes: those with room for them.
STRIPED = ("circle", "square", "triangle")

#: Widths in pixels, and how far they may be off, by size and number of things.  An empty size is an unsaid one.
WIDTHS: dict[int, dict[str, tuple[int, int]]] = {
    1: {"small": (34, 2), "": (52, 4), "big": (72, 3)},
    2: {"small": (32, 2), "": (46, 3), "big": (57, 2)},
    3: {"": (34, 1)},
}

#: Width in pixels up to which a thing is small, and from which on it is big.
SMALL_UP_TO, BIG_FROM = 40, 50

TIMES = ("day", "night")
GROUNDS = ("", "grass", "sand")


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing of a scene, as a caption describes it.

    Attributes:
        colour: A key of ``COLOURS``.
        shape: One of ``SHAPES``.
        size: ``small``, ``big`` or empty: any.
        is_striped: Whether grey stripes run across it.
    """

    colour: str
    shape: str
    size: str = ""
    is_striped: bool = False


@dataclass(frozen=True, slots=True)
class Scene:
    """What a caption asks for; see :func:`.captions.read`.

    Attributes:
        things: One to three, from left to right, or from top to bottom in a column.
        layout: How they stand: ``alone``, in a ``row`` or in a ``column``.
        place: Of a single thing, a key of ``PLACES``; empty for more than one.
        time: ``day`` or ``night``: the sky's colour.
        ground: ``grass``, ``sand`` or empty: what covers the lower edge.
    """

    things: tuple[Thing, ...]
    layout: Layout = "alone"
    place: str = "middle"
    time: str = "day"
    ground: str = ""


def is_held_out(scene: Scene) -> bool:
    """Whether it is never trained on: one in ten, by its hash, whichever way it is said or drawn."""
    digest = hashlib.sha256(repr(scene).encode()).digest()
    return digest[0] % 10 == 0


def random_scene(rng: random.Random) -> Scene:
    """Any scene of the grammar; a third has one thing, half have two, the rest three."""
    count = rng.choices((1, 2, 3), (0.35, 0.5, 0.15))[0]
    layout: Layout = "alone" if count == 1 else "row" if count == 3 else rng.choice(("row", "column"))
    place = ""
    if count == 1:
        place = "middle" if rng.random() < 0.4 else rng.choice(list(PLACES))
    return Scene(
        things=tuple(_random_thing(rng, count) for _ in range(count)),
        layout=layout,
        place=place,
        time="night" if rng.random() < 0.35 else "day",
        ground=rng.choice(GROUNDS[1:]) if rng.random() < 0.35 else "",
    )


def _random_thing(rng: random.Random, count: int) -> Thing:
    colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
    sizes = [size for size in WIDTHS[count] if size]
    size = rng.choice(sizes) if sizes and rng.random() < 0.3 else ""
    # Only where there is room for stripes.
    can_have_stripes = shape in STRIPED and size != "small" and count < 3
    return Thing(colour, shape, size, is_striped=can_have_stripes and rng.random() < 0.25)
