"""Thumbnails of a study's pictures, and how they differ from the baseline's, as data URIs."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..studies.arguments import Prompt
from .findings import Findings, Row

#: Longer side of a thumbnail: what a phone shows at two device pixels per CSS pixel in two columns.
SIDE = 384

#: A picture above this is not read; the largest that a pipeline here makes is 16 megapixels.
MOST_PIXELS = 2**26

_QUALITY = 82

#: The share of pixels that an amplified difference may clip.
_CLIPPED = 0.001

#: No use in showing rounding as a picture.
_MOST_AMPLIFIED = 2**12


@dataclass(frozen=True, slots=True)
class Tile:
    """A picture, and everybody who made just this one.

    Attributes:
        rows: The configurations, the baseline first; at least one.
        width, height: Of the thumbnail, pixels.
        picture, difference: Data URIs; the latter of |picture − baseline| × factor, None without a baseline.
        factor: A power of two.
    """

    rows: tuple[Row, ...]
    picture: str
    width: int
    height: int
    difference: str | None
    factor: int


@dataclass(frozen=True, slots=True)
class Sheet:
    """All pictures of one prompt.

    Attributes:
        tiles: The baseline's first.
        lost: Configurations whose picture is named in the record and could not be read.
    """

    prompt: Prompt
    tiles: tuple[Tile, ...]
    lost: tuple[Row, ...]


def sheets(found: Findings) -> tuple[Sheet, ...]:
    """A contact sheet for every prompt that has pictures."""
    made = [_sheet(found.rows, prompt) for prompt in found.arguments.prompts]
    return tuple(sheet for sheet in made if sheet.tiles or sheet.lost)


def _sheet(rows: Sequence[Row], prompt: Prompt) -> Sheet:
    makers: dict[str, list[Row]] = {}
    pictures: dict[str, Image.Image] = {}
    lost = []
    for row in rows:
        name = row.pictures.get(prompt.name)
        if name is None:
            continue
        picture = _opened(row.folder, name)
        if picture is None:
            lost.append(row)
            continue
        key = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
        makers.setdefault(key, []).append(row)
        pictures.setdefault(key, picture)
    baseline = next((pictures[key] for key, made_by in makers.items() if made_by[0].is_baseline), None)
    tiles = []
    for key, made_by in makers.items():
        picture, difference, factor = pictures[key], None, 1
        if baseline is not None and picture is not baseline and picture.size == baseline.size:
            distance = np.abs(np.asarray(picture, np.int16) - np.asarray(baseline, np.int16))
            factor = _factor(distance)
            amplified = np.clip(distance.astype(np.int32) * factor, 0, 255).astype(np.uint8)
            difference = _shown(Image.fromarray(amplified))[0]
        uri, size = _shown(picture)
        tiles.append(Tile(tuple(made_by), uri, *size, difference, factor))
    return Sheet(prompt, tuple(tiles), tuple(lost))


def _opened(folder: Path, name: str) -> Image.Image | None:
    """The picture in RGB; None where there is none in the folder, or none that can be read."""
    folder = folder.resolve()
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):  # a record may come from anybody
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                return picture.convert("RGB") if picture.width * picture.height <= MOST_PIXELS else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _factor(distance: np.ndarray[Any, Any]) -> int:
    """The largest power of two that leaves all but a thousandth of the values within the range."""
    high = float(np.quantile(distance, 1 - _CLIPPED)) or float(distance.max())
    return 1 if high <= 0 else min(_MOST_AMPLIFIED, 2 ** max(0, math.floor(math.log2(255 / high))))


def _shown(picture: Image.Image) -> tuple[str, tuple[int, int]]:
    """(data URI, size of the thumbnail); small pictures stay as they are."""
    shown, file = picture.copy(), io.BytesIO()
    shown.thumbnail((SIDE, SIDE))
    shown.save(file, "WEBP", quality=_QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}", shown.size
