from __future__ import annotations

from dataclasses import replace

import pytest

from hybridge.errors import RequestError
from hybridge.lab.vae_bench.cases import Arguments
from hybridge.models.frames import STILL, FrameRule

KNOWN = ("exact", "diffusers", "tiled")
GOOD = Arguments(
    model="sd-v1",
    sizes=(512, 1024),
    task="decode",
    dtypes=("float32", "bfloat16"),
    device="cpu",
    repeats=3,
    budget_bytes=None,
    tile_pixels=512,
    rivals=("exact", "tiled"),
    weights=False,
    limit_s=60,
)


def test_every_dtype_is_measured_at_every_size() -> None:
    GOOD.check(KNOWN, 8)
    assert [(case.dtype, case.size) for case in GOOD.cases()] == [
        ("float32", 512),
        ("float32", 1024),
        ("bfloat16", 512),
        ("bfloat16", 1024),
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"task": "decod"}, "unknown task: saw decod.*Try: decode"),
        ({"dtypes": ("float32", "bf16")}, "unknown dtype: saw bf16"),
        ({"rivals": ("exakt",)}, "unknown rival: saw exakt, expected exact, diffusers, tiled. Try: exact"),
        ({"sizes": (512, 100)}, "saw 100, expected a multiple of 8"),
        ({"sizes": (0,)}, "not a size: saw 0, expected more than zero"),
        ({"sizes": ()}, "not a size"),
        ({"tile_pixels": 100}, "saw 100, expected a multiple of 8"),
        ({"repeats": 0}, "not a repeats"),
        ({"limit_s": 0}, "not a limit"),
        ({"limit_s": float("nan")}, "not a limit"),
        ({"tile_pixels": 0}, "not a tile: saw 0"),
    ],
)
def test_what_cannot_be_asked_is_refused_at_once(changed: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        replace(GOOD, **changed).check(KNOWN, 8)


@pytest.mark.parametrize(
    ("frames", "rule", "message"),
    [
        (17, STILL, "saw 17, expected one, for it is a model of pictures"),
        (18, FrameRule("causal", 4), r"saw 18, expected 4·n \+ 1 frames"),
        (0, FrameRule("causal", 4), "not a number of this model's frames: saw 0"),
    ],
)
def test_films_have_as_many_frames_as_their_model_can_have(frames: int, rule: FrameRule, message: str) -> None:
    replace(GOOD, frames=17).check(KNOWN, 8, FrameRule("causal", 4))
    with pytest.raises(RequestError, match=message):
        replace(GOOD, frames=frames).check(KNOWN, 8, rule)
