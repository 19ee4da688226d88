"""How far pictures are apart: by hand, and by what is installed."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from hybridge.lab.studies import pictures
from hybridge.lab.studies.tiny_pipeline import tiny_base
from hybridge.scenes import draw, read


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(0).random((1, 32, 32, 3), dtype=np.float32)


def test_equal_pictures_are_equal(noise: np.ndarray) -> None:
    found = pictures.difference(noise, noise)
    assert found == {
        "psnr_db": None,
        "largest": 0.0,
        "mean": 0.0,
        "ssim": None,
        "lpips": None,
        "clip_score": None,
        "caption": None,
    }


def test_captions_are_looked_for_in_the_pictures() -> None:
    text = "a red circle above a blue square at night"
    score = pictures.JUDGES["caption"].make()
    right, wrong = (
        np.asarray(draw(read(said), random.Random(0)), np.float32) / 255
        for said in (text, "a red circle above a blue ring at night")
    )
    assert score(np.stack([right]), None, text) == 1.0
    assert score(np.stack([right, wrong]), None, text) == 0.5
    assert score(np.stack([right]), None, "macro shot of a bee collecting nectar") is None


def test_differences_by_hand() -> None:
    black = np.zeros((1, 2, 2, 3), np.float32)
    other = black.copy()
    other[0, 0, 0] = 0.5
    found = pictures.difference(other, black)
    assert found["largest"] == 0.5
    assert found["mean"] == pytest.approx(0.125)
    assert found["psnr_db"] == pytest.approx(10 * np.log10(1 / 0.0625))


def test_structure(noise: np.ndarray) -> None:
    pytest.importorskip("skimage")
    assert "ssim" not in pictures.judges_missing()
    scores = {"ssim": pictures.JUDGES["ssim"].make()}
    assert pictures.difference(noise, noise, scores=scores)["ssim"] == pytest.approx(1)
    brighter = pictures.difference(noise * 0.5 + 0.5, noise, scores=scores)["ssim"]
    other = pictures.difference(1 - noise, noise, scores=scores)["ssim"]
    assert brighter is not None
    assert other is not None
    assert other < 0.1 < brighter < 1
    small = noise[:, :8, :8]
    assert pictures.difference(small, small, scores=scores)["ssim"] is None


def test_what_is_not_there_is_named() -> None:
    for name, reason in pictures.judges_missing().items():
        assert name in pictures.JUDGES
        assert reason.endswith(("is not installed", "is not there", "is not in the cache of the hub"))


def test_what_clip_says_depends_on_picture_and_prompt(noise: np.ndarray, tmp_path: Path) -> None:
    base = tiny_base()
    config = CLIPConfig(
        text_config=base.text_encoder.config.to_dict(),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        },
        projection_dim=32,
    )
    CLIPModel(config).save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    score = pictures.clip_score(str(tmp_path))
    found = [score(noise, noise, "a cat"), score(noise, noise, "two dogs"), score(1 - noise, noise, "a cat")]
    assert len(set(found)) == 3
    assert all(-100 <= one <= 100 for one in found if one is not None)


def test_the_first_picture_of_a_call_is_shown(tmp_path: Path) -> None:
    both = np.stack([np.full((4, 4, 3), 0.5), np.zeros((4, 4, 3))])
    pictures.write_png(both, tmp_path / "new" / "a.png")
    with Image.open(tmp_path / "new" / "a.png") as picture:
        assert picture.getpixel((0, 0)) == (128, 128, 128)
