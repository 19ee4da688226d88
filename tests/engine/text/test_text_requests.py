"""Single requests to text engines: what was cut, batches, threads, and what stays out of the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from text_pipelines import CASES, Case

from hybridge.engine.options import EngineOptions
from hybridge.engine.text import TextEngine, Truncation
from hybridge.errors import EngineFailure, RequestError

LONG = "a very long tale of " + "rain, " * 400


def case_of(class_name: str) -> Case:
    return next(case for case in CASES if case.class_name == class_name)


@pytest.fixture(scope="module")
def engine_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TextEngine]:
    made: dict[str, TextEngine] = {}

    def find(class_name: str) -> TextEngine:
        if class_name not in made:
            folder: Path = tmp_path_factory.mktemp(class_name)
            case_of(class_name).save(folder)
            made[class_name] = TextEngine.load(folder / "text", EngineOptions(device="cpu"))
        return made[class_name]

    return find


# ------------------------------------------------------------------------------------------- what was cut


@pytest.mark.parametrize(
    ("class_name", "options", "expected"),
    [
        ("StableDiffusionPipeline", {}, {("tokenizer", 77)}),
        ("FluxPipeline", {"max_sequence_length": 20}, {("tokenizer", 77), ("tokenizer_2", 20)}),
        ("Flux2KleinPipeline", {"max_sequence_length": 40}, {("tokenizer", 40)}),
        ("Flux2Pipeline", {}, {("tokenizer", 512)}),
        ("QwenImagePipeline", {"max_sequence_length": 40}, {("tokenizer", 40)}),
        ("ZImagePipeline", {"max_sequence_length": 40}, {("tokenizer", 40)}),
        ("WanPipeline", {"max_sequence_length": 40}, {("tokenizer", 40)}),
        ("BriaPipeline", {"max_sequence_length": 40}, {("tokenizer", 40)}),
        ("HunyuanDiTPipeline", {}, {("tokenizer", 77), ("tokenizer_2", 256)}),
        ("LongCatImagePipeline", {}, {("tokenizer", 512)}),
        ("Kandinsky5T2IPipeline", {"max_sequence_length": 40}, {("tokenizer", 80), ("tokenizer_2", 77)}),
        ("CogView4Pipeline", {"max_sequence_length": 40}, {("tokenizer", 40)}),
    ],
)
def test_what_was_cut_is_reported(
    class_name: str, options: dict[str, int], expected: set[tuple[str, int]], engine_of: Callable[[str], TextEngine]
) -> None:
    engine = engine_of(class_name)
    made = engine.encode({"prompt": ["short", LONG], **options})
    assert {(one.tokenizer, one.tokens) for one in made.truncated} == expected
    assert {(one.prompt, one.index) for one in made.truncated} <= {("prompt", 1)}
    assert not engine.encode({"prompt": "short", **options}).truncated


@pytest.mark.parametrize("class_name", ["StableDiffusionPipeline", "FluxPipeline"])
def test_a_negative_prompt_that_was_cut_is_reported(
    class_name: str, engine_of: Callable[[str], TextEngine]
) -> None:
    made = engine_of(class_name).encode({"prompt": ["a", "b"], "negative_prompt": ["c", LONG]})
    assert Truncation("negative_prompt", 1, "tokenizer", 77) in made.truncated
    assert {one.prompt for one in made.truncated} == {"negative_prompt"}


def test_what_was_cut_is_not_logged(
    engine_of: Callable[[str], TextEngine], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = engine_of("FluxPipeline")
    with caplog.at_level(logging.DEBUG):
        engine.encode({"prompt": LONG, "negative_prompt": LONG, "max_sequence_length": 16})
    assert "rain" not in caplog.text
    assert "rain" not in "".join(capfd.readouterr())


# -------------------------------------------------------------------------------------------------- batches


def test_an_empty_prompt_does_not_change_its_companions(engine_of: Callable[[str], TextEngine]) -> None:
    """Mochi makes zeros of a whole batch when its last prompt is empty."""
    engine = engine_of("MochiPipeline")
    prompts, options = ["a cat", "", "rain", ""], {"max_sequence_length": 16}
    together = engine.encode({"prompt": prompts, "negative_prompt": ["", "b", "b", ""], **options}).tensors
    for index, (prompt, negative) in enumerate(zip(prompts, ["", "b", "b", ""], strict=True)):
        alone = engine.encode({"prompt": prompt, "negative_prompt": negative, **options}).tensors
        assert set(alone) == set(together)
        for name, tensor in alone.items():
            assert torch.equal(together[name][index], tensor[0]), name
    mask = together["prompt_attention_mask"]
    assert [bool(row.any()) for row in mask] == [True, False, True, False]


def test_lists_are_not_written_into(engine_of: Callable[[str], TextEngine]) -> None:
    """Z-Image puts its chat template into the list that it is given."""
    prompts = ["a cat", "rain"]
    engine_of("ZImagePipeline").encode({"prompt": prompts, "negative_prompt": prompts})
    assert prompts == ["a cat", "rain"]


def test_eight_threads_get_what_one_gets(engine_of: Callable[[str], TextEngine]) -> None:
    """Fast tokenizers cannot be used by two threads at a time, and their lengths are state."""
    engine = engine_of("FluxPipeline")
    requests: list[dict[str, Any]] = [
        {"prompt": f"a cat and {'rain ' * (index % 7)}", "max_sequence_length": 8 + index % 5}
        for index in range(64)
    ]
    alone = [engine.encode(request).tensors for request in requests]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda request: engine.encode(request).tensors, requests))
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


# --------------------------------------------------------------------------------------- work and refusals


def test_work_grows_with_what_is_read(engine_of: Callable[[str], TextEngine]) -> None:
    flux = engine_of("FluxPipeline")
    one = flux.flops({"prompt": "a", "max_sequence_length": 100})
    assert flux.flops({"prompt": ["a", "b"], "max_sequence_length": 100}) == 2 * one
    assert flux.flops({"prompt": "a", "negative_prompt": "b", "max_sequence_length": 100}) == 2 * one
    assert flux.flops({"prompt": "a"}) > flux.flops({"prompt": "a", "max_sequence_length": 100}) == one > 0
    qwen = engine_of("QwenImagePipeline")
    assert qwen.flops({"prompt": "a" * 300}) > qwen.flops({"prompt": "a"})
    with pytest.raises(RequestError):
        flux.flops({"prompt": []})


def test_a_refused_request_leaves_the_engine_working(engine_of: Callable[[str], TextEngine]) -> None:
    engine = engine_of("FluxPipeline")
    with pytest.raises(RequestError, match="reads no picture beside the prompt"):
        engine.encode({"prompt": "a"}, images=[Image.new("RGB", (8, 8))])
    with pytest.raises(RequestError, match="has no `height`"):
        engine.check({"prompt": "a", "height": 64})
    assert engine.encode({"prompt": "a", "max_sequence_length": 8}).tensors


def test_a_failure_of_a_pipeline_does_not_quote_the_prompt(
    engine_of: Callable[[str], TextEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of("FluxPipeline")

    def fail(prompt: list[str], **_: Any) -> None:
        raise ValueError(f"cannot read {prompt}")

    monkeypatch.setattr(engine.parts.pipeline, "encode_prompt", fail, raising=False)
    with pytest.raises(EngineFailure) as caught:
        engine.encode({"prompt": "a secret"})
    assert "ValueError in test_text_requests.py" in str(caught.value)
    assert "secret" not in str(caught.value)
