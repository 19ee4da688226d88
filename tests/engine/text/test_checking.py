"""What a request for embeddings may hold; nothing is loaded for it."""

from __future__ import annotations

from typing import Any

import pytest

from hybridge.engine.text.checking import Asked, Facts, TextLimits, read_inputs
from hybridge.errors import RequestError, TooLarge, UnknownParameter
from hybridge.models import text_side_for

FACTS = Facts(states=13, layers=30)
LIMITS = TextLimits(prompts=4, characters=100)


def read(class_name: str = "StableDiffusionXLPipeline", **inputs: Any) -> Asked:
    side = text_side_for(class_name)
    assert side is not None
    return read_inputs(inputs, side, FACTS, LIMITS)


def test_one_text_stands_for_all() -> None:
    asked = read(prompt=["a", "b"], prompt_2="c", negative_prompt="d")
    assert asked.prompts == {"prompt": ["a", "b"], "prompt_2": ["c", "c"]}
    assert asked.negatives == {"negative_prompt": ["d", "d"], "negative_prompt_2": None}


def test_absent_null_and_empty_are_three_things() -> None:
    assert read(prompt="a").negatives is None
    assert read(prompt="a", negative_prompt=None).negatives == {"negative_prompt": None, "negative_prompt_2": None}
    assert read(prompt="a", negative_prompt="").negatives == {"negative_prompt": [""], "negative_prompt_2": None}


def test_an_empty_second_prompt_is_the_first_as_in_the_pipelines() -> None:
    assert read(prompt="a", prompt_2="").prompts["prompt_2"] is None
    assert read(prompt="a", prompt_2=[""]).prompts["prompt_2"] == [""]


def test_klein_has_a_negative_prompt_that_nobody_chooses() -> None:
    assert read("Flux2KleinPipeline", prompt="a", negative_prompt=None).negatives == {"negative_prompt": None}
    with pytest.raises(RequestError, match="no negative prompt of one's own"):
        read("Flux2KleinPipeline", prompt="a", negative_prompt="b")


@pytest.mark.parametrize(
    ("class_name", "options"),
    [
        ("StableDiffusionPipeline", {"clip_skip": 12}),
        ("StableDiffusionXLPipeline", {"clip_skip": 11}),
        ("StableDiffusionXLPipeline", {"clip_skip": None}),
        ("FluxPipeline", {"max_sequence_length": 512}),
        ("Flux2Pipeline", {"text_encoder_out_layers": (0, 30)}),
        ("SanaPipeline", {"complex_human_instruction": None, "clean_caption": True}),
        ("Lumina2Pipeline", {"system_prompt": "You paint."}),
        ("HunyuanVideoPipeline", {"prompt_template": {"template": "<s>{}</s>", "crop_start": 1}}),
        ("HunyuanVideoImageToVideoPipeline", {"image_embed_interleave": 4}),
    ],
)
def test_options_within_their_bounds(class_name: str, options: dict[str, Any]) -> None:
    assert read(class_name, prompt="a", **options).options == options


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "there is no prompt"),
        ({"prompt": None}, "there is no prompt"),
        ({"prompt": []}, "`prompt` is an empty list"),
        ({"prompt": 7}, "`prompt` is no text: saw 7"),
        ({"prompt": ["a", None]}, "`prompt` is no text"),
        ({"prompt": "a", "negative_prompt": {"b": "c"}}, "`negative_prompt` is no text"),
        ({"prompt": ["a", "b"], "negative_prompt": ["c"]}, "another number of texts than `prompt`: saw 1"),
        ({"prompt": "half \ud800 of one"}, "half a character: saw the lone surrogate '\\ud800'"),
        ({"prompt": "a", "clip_skip": -1}, "`clip_skip` cannot be: saw -1, expected a whole number from 0 to 11"),
        ({"prompt": "a", "clip_skip": True}, "`clip_skip` cannot be: saw True"),
        ({"prompt": "a", "clip_skip": 12}, "`clip_skip` cannot be"),
    ],
)
def test_bad_input_is_named(inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(**inputs)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("class_name", "options", "said"),
    [
        ("FluxPipeline", {"max_sequence_length": 513}, "expected a whole number from 1 to 512"),
        ("FluxPipeline", {"max_sequence_length": 0}, "expected a whole number from 1 to 512"),
        ("FluxPipeline", {"max_sequence_length": "512"}, "`max_sequence_length` cannot be: saw 512"),
        ("Flux2Pipeline", {"text_encoder_out_layers": [31]}, "expected a whole number from 0 to 30"),
        ("Flux2Pipeline", {"text_encoder_out_layers": []}, "a list of 1 to 64 layers"),
        ("SanaPipeline", {"clean_caption": 1}, "expected true or false"),
        ("SanaPipeline", {"complex_human_instruction": "one"}, "at most 64 texts, or null"),
        ("Lumina2Pipeline", {"system_prompt": ["one"]}, "`system_prompt` is no text"),
        ("HunyuanVideoPipeline", {"prompt_template": {"template": "{0.__class__}"}}, "no other brace"),
        ("HunyuanVideoPipeline", {"prompt_template": {"template": "{:999999999}{}"}}, "no other brace"),
        ("HunyuanVideoPipeline", {"prompt_template": {"template": "{}{}"}}, "no other brace"),
        ("HunyuanVideoPipeline", {"prompt_template": {"template": "{}", "crop_start": -1}}, "from 0 to 4096"),
        ("HunyuanVideoPipeline", {"prompt_template": "{}"}, "an object with `template`"),
        ("HunyuanVideoImageToVideoPipeline", {"image_embed_interleave": 0}, "from 1 to 64"),
    ],
)
def test_bad_options_are_named(class_name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(class_name, prompt="a", **options)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "inputs",
    [{"prompt": ["a"] * 5}, {"prompt": "a" * 101}, {"prompt": "a", "negative_prompt": "b" * 101}],
    ids=["prompts", "characters", "negative"],
)
def test_limits_are_kept(inputs: dict[str, Any]) -> None:
    with pytest.raises(TooLarge):
        read(**inputs)


def test_a_system_prompt_is_limited_too() -> None:
    with pytest.raises(TooLarge):
        read("Lumina2Pipeline", prompt="a", system_prompt="b" * 101)
    with pytest.raises(TooLarge):
        read("SanaPipeline", prompt="a", complex_human_instruction=["b" * 60] * 2)


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(UnknownParameter) as caught:
        read("FluxPipeline", prompt="a", max_sequence_lenght=512)
    assert caught.value.hint == "`max_sequence_length`"
    with pytest.raises(UnknownParameter, match=r"SDXL|Stable Diffusion XL has no `height`"):
        read(prompt="a", height=512)
    with pytest.raises(UnknownParameter, match=r"FLUX\.2 has no `negative_prompt`"):
        read("Flux2Pipeline", prompt="a", negative_prompt="b")


def test_some_of_the_prompts() -> None:
    asked = read(prompt=["a", "b", "c"], negative_prompt=["d", "e", "f"]).some([2, 0])
    assert (asked.count, asked.prompts["prompt"]) == (2, ["c", "a"])
    assert (asked.negatives or {})["negative_prompt"] == ["f", "d"]
