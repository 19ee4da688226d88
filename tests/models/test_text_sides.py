"""Rows of text sides beside the pipelines of the installed diffusers: names that do not exist there are faults."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest

from hybridge.models import TEXT_CATALOGUE, TextSide, known_text_sides, text_side_for
from hybridge.models.text_side import NEGATIVE_PREFIX

CLASSES = [(row, name) for row in known_text_sides() for name in row.classes]

#: Arguments that ``__call__`` and ``encode_prompt`` share, and that are not what the text is.
NOT_TEXT = {
    "self",
    "device",
    "dtype",
    "image",
    "lora_scale",
    "num_images_per_prompt",
    "num_videos_per_prompt",
    "kwargs",
}


def arguments_of(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


@pytest.fixture(params=CLASSES, ids=[name for _, name in CLASSES])
def pair(request: pytest.FixtureRequest) -> tuple[TextSide, Any]:
    row, name = request.param
    return row, getattr(diffusers, name)


def test_every_class_is_in_one_row() -> None:
    names = [name for _, name in CLASSES]
    assert len(names) == len(set(names))
    assert len({row.name for row in known_text_sides()}) == len(known_text_sides())
    assert all(text_side_for(name) is row for row, name in CLASSES)
    assert text_side_for("DDPMPipeline") is None


def test_a_row_has_the_options_that_its_pipelines_have(pair: tuple[TextSide, Any]) -> None:
    row, pipeline = pair
    called, encoded = arguments_of(pipeline.__call__), arguments_of(pipeline.encode_prompt)
    own = {parameter.name for parameter in row.parameters}
    assert own <= called
    fixed = {name for call in row.calls for name in call.arguments}
    shared = {name for name in called & encoded if not name.endswith("scale") and "embeds" not in name}
    shared = {name for name in shared if "mask" not in name} - NOT_TEXT - fixed
    assert shared <= own
    through_a_call = {name for name in own if any(call.negative == "call" for call in row.calls)}
    assert {name for name in own if name in encoded or name in through_a_call} == own


def test_a_row_gives_back_what_its_pipelines_take(pair: tuple[TextSide, Any]) -> None:
    row, pipeline = pair
    called = arguments_of(pipeline.__call__)
    names = {output.name for output in row.outputs}
    twins = {NEGATIVE_PREFIX + name for name in names}
    assert names <= called
    assert (twins <= called) == (row.guidance is not None)
    returned = {name for call in row.calls for name in call.returns if name}
    assert returned == (names | twins if any(call.negative == "argument" for call in row.calls) else names)
    assert {output.mask for output in row.outputs if output.mask} <= names
    assert set(row.call_with) <= called
    if row.guidance:
        assert set(row.guidance.scales) <= called
        assert row.guidance.scales or row.guidance.guider in arguments_of(pipeline.__init__)


def test_a_row_names_the_components_that_its_pipelines_have(pair: tuple[TextSide, Any]) -> None:
    row, pipeline = pair
    made_of = arguments_of(pipeline.__init__)
    assert set(row.components) | set(row.stand_ins) <= made_of
    texts = {name for name in made_of if name.startswith(("text_encoder", "tokenizer"))}
    assert texts == set(row.components) - set(row.others)
    for encoder in row.encoders:
        assert isinstance(encoder.tokens, int) or row.parameter(encoder.tokens)
        assert encoder.layers is None or row.parameter(encoder.layers[1])


def test_what_encode_prompt_must_be_told_is_in_the_row(pair: tuple[TextSide, Any]) -> None:
    row, pipeline = pair
    parameters = inspect.signature(pipeline.encode_prompt).parameters
    assert (row.count in parameters) == ("batch_size" in parameters)
    assert ("image" in parameters) == (row.picture is not None)
    for call in row.calls:
        assert set(call.arguments) <= set(parameters)
        assert (call.negative == "argument") == ("negative_prompt" in parameters and row.guidance is not None)


#: Repositories that the installed diffusers does not name, and the page on which each was read.
READ_ELSEWHERE = {
    "black-forest-labs/FLUX.2-klein-4B": "https://huggingface.co/black-forest-labs/FLUX.2-klein-4B",
}


def test_repositories_of_the_hub_exist_by_the_word_of_diffusers() -> None:
    folder = Path(diffusers.__file__).parent
    files = [*folder.glob("pipelines/**/*.py"), folder / "loaders" / "single_file_utils.py"]
    quoted = re.findall(r"""["']([\w.-]+/[\w.-]+)["']""", "".join(path.read_text("utf-8") for path in files))
    unknown = {row.source for row in TEXT_CATALOGUE.values() if row.name != "starter"} - {*quoted}
    assert unknown == READ_ELSEWHERE.keys()
