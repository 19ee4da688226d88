"""Scenes that are drawn are found again, and captions that are written are understood."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from hybridge.errors import RequestError
from hybridge.scenes import (
    GRAMMAR,
    SIDE,
    Scene,
    Thing,
    captions,
    check,
    draw,
    held_out,
    is_held_out,
    random_scene,
    read,
)
from hybridge.scenes.captions import unknown_words
from hybridge.scenes.checker import look
from hybridge.scenes.scene import COLOURS, GROUNDS, PLACES, SHAPES, STRIPED, TIMES, WIDTHS

RED_CIRCLE = Thing("red", "circle")
BLUE_SQUARE = Thing("blue", "square")


def pixels(scene: Scene) -> np.ndarray:
    return np.asarray(draw(scene, random.Random(0)))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_of_thing_is_found_in_its_drawing(shape: str) -> None:
    rng = random.Random(shape)
    for colour in COLOURS:
        for size in WIDTHS[1]:
            for is_striped in {False, shape in STRIPED}:
                for time in TIMES:
                    scene = Scene((Thing(colour, shape, size, is_striped),), time=time, ground=rng.choice(GROUNDS))
                    assert check(scene, draw(scene, rng)).wrong == (), scene


def test_random_scenes_are_found_in_their_drawings() -> None:
    rng = random.Random(0)
    for _ in range(100):
        scene = random_scene(rng)
        finding = check(scene, draw(scene, rng))
        assert finding.is_right, (scene, finding)
        assert finding.colours_right == finding.shapes_right == len(scene.things)


def test_a_picture_of_another_size_and_with_noise_is_still_right() -> None:
    scene = Scene((RED_CIRCLE, BLUE_SQUARE), "column", "", "night")
    noise = np.random.default_rng(0).normal(0, 12, (SIDE, SIDE, 3))
    noisy = (pixels(scene) + noise).clip(0, 255).astype(np.uint8)
    assert check(scene, noisy).is_right
    assert check(scene, Image.fromarray(pixels(scene)).resize((3 * SIDE, 3 * SIDE))).is_right


@pytest.mark.parametrize(
    ("drawn", "complaint"),
    [
        (Scene((Thing("orange", "circle"), BLUE_SQUARE), "column", ""), "orange instead of red"),
        (Scene((Thing("red", "ring"), BLUE_SQUARE), "column", ""), "a ring instead of a circle"),
        (Scene((Thing("red", "circle", "", True), BLUE_SQUARE), "column", ""), "striped"),
        (Scene((BLUE_SQUARE, RED_CIRCLE), "column", ""), "blue instead of red"),
        (Scene((RED_CIRCLE, BLUE_SQUARE), "row", ""), "not in a column"),
        (Scene((RED_CIRCLE,)), "1 things instead of 2"),
        (Scene((RED_CIRCLE, BLUE_SQUARE), "column", "", "night"), "the sky is night instead of day"),
        (Scene((RED_CIRCLE, BLUE_SQUARE), "column", "", "day", "sand"), "the ground is sand instead of none"),
    ],
)
def test_what_is_not_as_asked_is_named(drawn: Scene, complaint: str) -> None:
    asked = Scene((RED_CIRCLE, BLUE_SQUARE), "column", "")
    assert complaint in check(asked, pixels(drawn)).wrong


def test_sizes_and_places_are_looked_at() -> None:
    big = Scene((Thing("red", "circle", "big"),))
    assert check(Scene((Thing("red", "circle", "small"),)), pixels(big)).wrong == ("not small",)
    assert check(Scene((RED_CIRCLE,), place="left"), pixels(big)).wrong == ("not at the place 'left'",)
    for place in PLACES:
        assert check(Scene((RED_CIRCLE,), place=place), pixels(Scene((RED_CIRCLE,), place=place))).is_right


def test_noise_shows_nothing_that_was_asked_for() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    assert not check(Scene((RED_CIRCLE,)), noise).is_right
    assert look(np.full((SIDE, SIDE, 3), 255, np.uint8))  # all white is one white thing


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_caption_says_its_scene(language: str) -> None:
    rng = random.Random(language)
    for _ in range(2000):
        scene = random_scene(rng)
        text = captions(scene, rng, language)
        assert read(text) == scene, text
        assert text.isascii() == (language == "en")


def test_captions_vary_in_their_phrases() -> None:
    scene = Scene((RED_CIRCLE, BLUE_SQUARE), "column", "", "night", "grass")
    rng = random.Random(0)
    assert len({captions(scene, rng, "en") for _ in range(200)}) >= 12
    assert len({captions(scene, rng, "zh") for _ in range(200)}) >= 12


@pytest.mark.parametrize(
    "text",
    [
        "a red circle above a blue square at night",
        "A Red Circle over the blue square, at night.",
        "a blue square below a red circle at night",
        "夜晚，一个红色圆形在一个蓝色方形上面",
        "晚上，一个蓝色方形在一个红色圆形的下方。",
    ],
)
def test_several_ways_to_say_one_scene(text: str) -> None:
    assert read(text) == Scene((RED_CIRCLE, BLUE_SQUARE), "column", "", "night")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "the prompt is empty"),
        ("  ,  ", "no things"),
        ("a red dragon above a blue square", "dragon"),
        ("一个红色恐龙", "恐龙"),
        ("a circle", "which colour"),
        ("a red", "which shape"),
        ("a red circle above", "of what"),
        ("a red circle, a red circle, a red circle and a red circle", "4"),
        ("a red circle above a red ring and a red square", "above"),
        ("a red circle and a blue square at the top", "place: saw top"),
    ],
)
def test_what_is_no_caption_is_refused_with_the_reason(text: str, complaint: str) -> None:
    with pytest.raises(RequestError) as refusal:
        read(text)
    assert complaint in str(refusal.value)


def test_unknown_words_are_named_once_in_order() -> None:
    assert unknown_words("a shiny red teapot near a shiny circle") == ["shiny", "teapot", "near"]
    assert unknown_words("一个红色茶壶在一个蓝色方形上面") == ["茶壶"]
    assert unknown_words("a red circle") == []


def test_the_grammar_shown_to_people_names_every_colour_and_shape() -> None:
    for word in (*COLOURS, *SHAPES):
        assert word in GRAMMAR


def test_one_scene_in_ten_is_held_out_whichever_way_it_is_said() -> None:
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(4000)]
    assert 0.08 < sum(map(is_held_out, scenes)) / len(scenes) < 0.12
    assert is_held_out(read("a red circle above a blue square")) == is_held_out(
        read("一个红色圆形在一个蓝色方形上面")
    )
    asked = held_out(20)
    assert all(is_held_out(scene) and read(text) == scene for scene, text in asked)
    assert asked == held_out(20)
