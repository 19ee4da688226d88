"""Scenes as pictures."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .scene import COLOURS, PLACES, SIDE, WIDTHS, Scene, Thing

#: Of the sky, above and below, in RGB.
SKIES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "day": ((135, 190, 235), (175, 215, 240)),
    "night": ((16, 18, 44), (30, 34, 70)),
}

#: Of the ground, in RGB.
GROUND_COLOURS: dict[tuple[str, str], tuple[int, int, int]] = {
    ("grass", "day"): (75, 95, 40),
    ("grass", "night"): (30, 52, 34),
    ("sand", "day"): (205, 180, 140),
    ("sand", "night"): (88, 76, 62),
}

#: Height of the ground in pixels.
GROUND = 24

#: Of stripes, in RGB.
GREY = (115, 115, 115)

#: Height of a stripe in pixels; stripes are counted from the picture's upper edge.
STRIPE = 8

#: Share of its width that a cross's arms have, and a ring's hole.
ARM, HOLE = 0.36, 0.56

#: How much larger it is drawn at first, for smooth edges.
_OVERSAMPLING = 4

#: Between centres of three things, and of two at least, in pixels.
_THIRD, _GAP = 42, 8

#: By how much a centre may be off, in pixels.
_WANDER = 3


def draw(scene: Scene, rng: random.Random) -> Image.Image:
    """An RGB picture of ``SIDE`` pixels; what the caption leaves open is drawn from ``rng``."""
    pen = backdrop(scene.time, scene.ground)
    for thing, (x, y, width) in zip(scene.things, boxes(scene, rng), strict=True):
        cover = silhouette(thing.shape, x, y, width)[..., None]
        pen = pen * (1 - cover) + _surface(thing) * cover
    return Image.fromarray(pen.round().astype(np.uint8))


def silhouette(shape: str, x: float, y: float, width: float, side: int = SIDE) -> np.ndarray[Any, Any]:
    """How much of each pixel a shape covers, float32 (side, side) in [0, 1]; ``x`` and ``y`` are its centre."""
    scale = _OVERSAMPLING
    canvas = Image.new("L", (side * scale, side * scale))
    pen = ImageDraw.Draw(canvas)
    half = width / 2

    def box(share: float = 1.0, tall: float | None = None) -> list[float]:
        across, down = half * share, half * (share if tall is None else tall)
        return [(x - across) * scale, (y - down) * scale, (x + across) * scale - 1, (y + down) * scale - 1]

    if shape in ("circle", "ring"):
        pen.ellipse(box(), fill=255)
        if shape == "ring":
            pen.ellipse(box(HOLE), fill=0)
    elif shape == "square":
        pen.rectangle(box(), fill=255)
    elif shape == "cross":
        pen.rectangle(box(1, ARM), fill=255)
        pen.rectangle(box(ARM, 1), fill=255)
    elif shape == "triangle":
        left, top, right, bottom = box()
        pen.polygon([(left, bottom), ((left + right) / 2, top), (right, bottom)], fill=255)
    else:
        raise ValueError(f"no shape {shape!r}")
    return np.asarray(canvas.reduce(scale), dtype=np.float32) / 255


def backdrop(time: str, ground: str) -> np.ndarray[Any, Any]:
    """Sky and ground alone, float32 (SIDE, SIDE, 3)."""
    above, below = (np.array(colour, dtype=np.float32) for colour in SKIES[time])
    share = np.linspace(0, 1, SIDE, dtype=np.float32)[:, None, None]
    pixels = np.broadcast_to(above + (below - above) * share, (SIDE, SIDE, 3)).copy()
    if ground:
        pixels[-GROUND:] = GROUND_COLOURS[ground, time]
    return pixels


def _surface(thing: Thing) -> np.ndarray[Any, Any]:
    """Colours of a thing that covers the whole picture, float32 (SIDE, 1, 3)."""
    rows = np.empty((SIDE, 1, 3), dtype=np.float32)
    rows[:] = COLOURS[thing.colour]
    if thing.is_striped:
        rows[np.arange(SIDE) // STRIPE % 2 == 1] = GREY
    return rows


def boxes(scene: Scene, rng: random.Random | None) -> list[tuple[float, float, float]]:
    """Centre and width of each thing, in pixels; where they are on average without ``rng``."""
    off_by = rng.randint if rng else lambda _least, _most: 0
    count = len(scene.things)
    widths = []
    for thing in scene.things:
        width, off = WIDTHS[count][thing.size]
        widths.append(width + off_by(-off, off))
    if count == 1:
        x, y = (share * SIDE for share in PLACES[scene.place])
        centres = [(x, y)]
    else:
        along = _along(widths)
        centres = [(at, SIDE / 2) if scene.layout == "row" else (SIDE / 2, at) for at in along]
    reach = _WANDER if count < 3 else 1
    return [
        (_inside(x + off_by(-reach, reach), width), _inside(y + off_by(-reach, reach), width), width)
        for (x, y), width in zip(centres, widths, strict=True)
    ]


def _along(widths: list[int]) -> list[float]:
    """Centres of two or three things beside each other."""
    if len(widths) == 3:
        return [SIDE / 2 - _THIRD, SIDE / 2, SIDE / 2 + _THIRD]
    apart = max(64.0, sum(widths) / 2 + _GAP + 2 * _WANDER)
    return [SIDE / 2 - apart / 2, SIDE / 2 + apart / 2]


def _inside(centre: float, width: float) -> float:
    """Moved so that the thing keeps two pixels from the edge."""
    return min(max(centre, width / 2 + 2), SIDE - width / 2 - 2)
