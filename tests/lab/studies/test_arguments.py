"""What can be asked of a study, and what is refused before anything starts."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from hybridge.errors import RequestError
from hybridge.lab.studies.arguments import (
    LONGEST_FILE_BYTES,
    Arguments,
    Prompt,
    configurations,
    method_of,
    prompts_of,
    read_short,
)
from hybridge.scenes import is_held_out, read


def test_the_starter_is_asked_for_what_it_was_never_trained_on() -> None:
    captions = method_of("starter").prompts
    assert len(captions) == 4
    assert all(is_held_out(read(one.prompt)) for one in captions)
    guide = method_of("some/folder")
    assert (len(guide.prompts), guide.runs, guide.steps, guide.size, guide.guidance_scale) == (4, 5, 50, None, 5.0)
    assert method_of("tiny").prompts == guide.prompts[:2]


def names(*asked: Any, **further: Any) -> list[str]:
    return [one.name for one in configurations(*asked, **further)]


def test_the_baseline_comes_first_and_everything_once() -> None:
    assert names() == ["baseline"]
    assert names(["b", "a"], ["a+c", " c + a "]) == ["baseline", "b", "a", "a+c", "c+a"]
    assert names(["a", "a"], ["a", "baseline"]) == ["baseline", "a"]
    assert configurations([], ["a+c"])[1].techniques == ("a", "c")


def test_a_ladder_is_a_stack_a_line() -> None:
    text = "# rungs\nbaseline\nfp16\n\nfp16 + tiny-vae  # half of it\n"
    assert names(ladder=text) == ["baseline", "fp16", "fp16+tiny-vae"]


def test_prompts_are_lines() -> None:
    text = "# mine\n\nbee 7  a bee # in the sun\nisland 2257899453 an island\n"
    assert prompts_of(text) == (Prompt("bee", "a bee # in the sun", 7), Prompt("island", "an island", 2257899453))


@pytest.mark.parametrize("line", ["bee", "bee 7", "bee seven a bee", "bee -7 a bee"])
def test_a_line_that_is_no_prompt_is_shown(line: str) -> None:
    with pytest.raises(RequestError, match=f"not a prompt: saw '{line}'"):
        prompts_of(line)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"a" * (LONGEST_FILE_BYTES + 1))
    (tmp_path / "picture").write_bytes(b"\x89PNG")
    for name, complaint in {"long": "is too long", "picture": "cannot be read", "none": "cannot be read"}.items():
        with pytest.raises(RequestError, match=complaint):
            read_short(tmp_path / name)


def test_a_record_keeps_what_was_asked(arguments: Arguments) -> None:
    assert Arguments.of(json.loads(json.dumps(asdict(arguments)))) == arguments
    with pytest.raises(RequestError, match=r"not the arguments of a study.*without prompts"):
        Arguments.of({"pipeline": "tiny"})


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"runs": 0}, "not a number of runs: saw 0"),
        ({"steps": 1001}, "not a number of steps"),
        ({"limit_s": float("nan")}, "not a number of limit_s"),
        ({"guidance_scale": -1.0}, "not a number of guidance_scale"),
        ({"size": 100}, "a multiple of 8"),
        ({"size": 2**20}, "not a number of size"),
        ({"batch": 65}, "not a number of batch"),
        ({"dtype": "int8"}, "unknown dtype: saw int8"),
        ({"configurations": configurations(["a"])[1:]}, "begins with the baseline"),
        ({"configurations": configurations() * 2}, "not a list of configurations"),
        ({"prompts": ()}, "not a list of prompts"),
        ({"prompts": (Prompt("a", "a", 0), Prompt("a", "b", 1))}, "not a list of prompts: saw a, a"),
        ({"prompts": (Prompt("../a", "a", 0),)}, "not a prompt's name"),
        ({"prompts": (Prompt("a", "a", 2**64),)}, "not a seed"),
        ({"prompts": (Prompt("a", "a" * 10_001, 0),)}, "10001 characters"),
        ({"pipeline": "no/such/folder"}, "no such pipeline"),
        ({"pipeline": "tinny"}, "no such pipeline"),
    ],
)
def test_what_cannot_be_asked(arguments: Arguments, changed: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        replace(arguments, **changed).check()


def test_what_may_be_left_open(arguments: Arguments) -> None:
    replace(arguments, size=None, device="auto", dtype="auto", guidance_scale=0.0, pipeline="some/where").check()


def test_a_model_that_is_no_pipeline(arguments: Arguments, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RequestError, match=r"is not a pipeline: saw .*config.json.*bench vae"):
        replace(arguments, pipeline=str(tmp_path)).check()
    with pytest.raises(RequestError, match=r"saw a file, expected a folder with model_index\.json"):
        replace(arguments, pipeline=str(tmp_path / "config.json")).check()
    (tmp_path / "model_index.json").write_text("{}")
    replace(arguments, pipeline=str(tmp_path)).check()
