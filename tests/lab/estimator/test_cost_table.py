"""The table beside the code: whole, what counting gives today, and what the checkpoints have."""

from __future__ import annotations

import json

import pytest

from hybridge.lab.estimator.cost_table import TABLE, _key, cost_of, usual, weights_of
from hybridge.lab.estimator.parts import forward_cost, weights
from hybridge.lab.estimator.shapes import PIPELINES

#: Parameters of the published checkpoints, from their files and papers.
PUBLISHED = {
    "sd15/unet": 859_520_964,
    "sdxl/unet": 2_567_463_684,
    "clip-l": 123_060_480,
    "clip-g": 694_659_840,
    "vae-4": 83_653_863,
    "tiny-4": 2_445_063,
    "sd3/transformer": 2_028_328_000,
    "t5-xxl-256": 4_762_310_656,
    "flux-dev/transformer": 11_901_408_320,
    "flux-schnell/transformer": 11_891_178_560,
}

PARTS = {part.name: part for shape in PIPELINES.values() for part in shape.parts()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_checkpoint(name: str) -> None:
    assert weights_of(PARTS[name]).numbers == PUBLISHED[name]


def test_the_table_has_every_usual_row_and_no_other() -> None:
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    assert set(table["weights"]) == set(PARTS)
    rows = {_key(part, itemsize, batch, side, side, "fused") for part, itemsize, batch, side in usual()}
    assert set(table["costs"]) == rows


# The others take longer, and come out of the same few lines.
@pytest.mark.parametrize(
    ("name", "itemsize", "batch", "side"), [("clip-l", 2, 1, 0), ("tiny-4", 4, 1, 1024), ("vae-4-sdxl", 2, 1, 1024)]
)
def test_the_table_is_what_is_counted(name: str, itemsize: int, batch: int, side: int) -> None:
    part = PARTS[name]
    assert weights(part) == weights_of(part)
    assert forward_cost(part, itemsize, batch, side, side) == cost_of(part, itemsize, batch, side, side)


def test_tiles_bound_what_a_decode_takes() -> None:
    part = PARTS["tiny-4"]
    tiled, whole = (forward_cost(part, 2, 1, 1024, 1024, way) for way in ("tiled", "fused"))
    assert tiled.peak_bytes < whole.peak_bytes / 2
    assert tiled.flops > whole.flops  # tiles overlap
