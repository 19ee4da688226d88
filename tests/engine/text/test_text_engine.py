"""Embeddings of the text side alone beside those of the whole pipeline, and the pictures that are made of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from allocator import peak_bytes
from text_pipelines import CASES, Case

from hybridge.client.prompts import repeated
from hybridge.engine.options import EngineOptions
from hybridge.engine.text import TextEngine
from hybridge.errors import Stopped, TooLarge
from hybridge.models.text_side import NEGATIVE_PREFIX

PROMPTS = ["a cat in rain", 'a "sign" under 3 trees']
NEGATIVE = "blurry"

COUNTS = ("num_images_per_prompt", "num_videos_per_prompt")

#: They make one video whatever they are told, or forget to repeat the embeddings.
IGNORE_COUNT = ("CogVideoXPipeline", "AllegroPipeline", "Kandinsky5T2VPipeline")


@dataclass(frozen=True)
class Both:
    """One pipeline, whole and as a text engine; both were loaded from disk."""

    case: Case
    whole: Any
    engine: TextEngine
    folder: Path


@pytest.fixture(params=CASES, ids=str, scope="module")
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    case: Case = request.param
    folder = tmp_path_factory.mktemp("pipeline")
    case.save(folder)
    whole = case.load(folder)
    engine = TextEngine.load(folder / "text", EngineOptions(device="cpu"))
    clip = getattr(whole, "text_encoder", None)
    if hasattr(clip, "final_layer_norm") and not hasattr(clip, "text_model"):
        clip.__dict__["text_model"] = clip  # where diffusers 0.42 still looks for it, for clip_skip
    return Both(case, whole, engine, folder)


def local(both: Both, prompts: list[str], negatives: list[str] | None, **options: Any) -> dict[str, Any]:
    """What the whole pipeline's own ``encode_prompt`` gives, by the names of ``__call__``'s arguments.

    Written without the engine: the arguments are the row's, the defaults those of ``__call__``.
    """
    pipe, side = both.whole, both.case.side
    takes = inspect.signature(pipe.encode_prompt).parameters
    defaults = inspect.signature(type(pipe).__call__).parameters
    given: dict[str, Any] = {
        name: defaults[name].default for name in takes if name in defaults and not name.endswith(("embeds", "mask"))
    }
    given |= {"device": torch.device("cpu"), "num_images_per_prompt": 1, "num_videos_per_prompt": 1, **options}
    given |= {"dtype": torch.float32} if side.takes_dtype else {}
    given |= {side.count: len(prompts)} if side.count else {}
    found: dict[str, Any] = {}
    for call in side.calls:
        rounds = [("", prompts)]
        if call.negative == "call" and negatives is not None:
            rounds.append((NEGATIVE_PREFIX, negatives))
        for prefix, texts in rounds:
            said = {**given, **call.arguments, "prompt": list(texts)}
            if prefix:
                said |= {name: None for name in said if name.startswith("prompt_") and name != "prompt_template"}
            if call.negative == "argument":
                said |= {"do_classifier_free_guidance": negatives is not None}
                said |= {"negative_prompt": None if negatives is None else list(negatives)}
            with torch.no_grad():
                made = pipe.encode_prompt(**{name: value for name, value in said.items() if name in takes})
            found |= {prefix + name: value for name, value in zip(call.returns, made, strict=True) if name}
    return {name: value for name, value in found.items() if value is not None and not is_empty(value)}


def is_empty(value: Any) -> bool:
    return isinstance(value, list) and not value


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        mine = found[name] if isinstance(value, list) else [found[name]]
        theirs = value if isinstance(value, list) else [value]
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            assert one.dtype == other.dtype, name
            assert torch.equal(one, other), f"{name} differs by {(one.float() - other.float()).abs().max()}"


def guided(both: Both) -> bool:
    return bool(both.case.side.negatives)


def asked(both: Both, prompts: list[str] | str, negative: Any, **options: Any) -> dict[str, Any]:
    inputs = {"prompt": prompts, **both.case.encode_options(), **options}
    return {**inputs, "negative_prompt": negative} if guided(both) else inputs


def own_negatives(both: Both) -> bool:
    return both.case.side.parameter("negative_prompt") is not None


def test_embeddings_are_those_of_the_whole_pipeline(both: Both) -> None:
    negative = NEGATIVE if own_negatives(both) else None
    found = both.engine.encode(asked(both, PROMPTS, negative))
    negatives = [NEGATIVE if own_negatives(both) else ""] * 2 if guided(both) else None
    assert_same(found.tensors, local(both, PROMPTS, negatives, **both.case.encode_options()))
    assert not any(tensor.requires_grad for tensor in found.tensors.values() if isinstance(tensor, torch.Tensor))


def test_embeddings_without_guidance_and_with_options(both: Both) -> None:
    options = {**both.case.encode_options(), **both.case.options}
    found = both.engine.encode({"prompt": PROMPTS[0], **options})
    assert_same(found.tensors, local(both, PROMPTS[:1], None, **options))
    assert not any(name.startswith(NEGATIVE_PREFIX) for name in found.tensors)


def test_defaults_are_those_of_the_call(both: Both) -> None:
    found = both.engine.encode({"prompt": PROMPTS[0]})
    assert_same(found.tensors, local(both, PROMPTS[:1], None))


@pytest.fixture
def headless(both: Both) -> Any:
    """The whole pipeline's other components, and None in place of what reads text."""
    takes = set(inspect.signature(type(both.whole).__init__).parameters)
    given = {
        name: value for name, value in dict(both.whole.config).items() if name in takes
    } | both.whole.components
    return type(both.whole)(**given | dict.fromkeys(both.case.side.components))


def test_pictures_of_a_pipeline_without_encoders_are_equal(both: Both, headless: Any) -> None:
    """Also where padding is behind a mask and was not sent."""
    negative = NEGATIVE if own_negatives(both) else None
    prompts = PROMPTS[: both.case.batch]
    embeddings = both.engine.encode(asked(both, prompts, negative)).tensors
    words: dict[str, Any] = {"prompt": list(prompts), **both.case.encode_options()}
    if own_negatives(both):
        words["negative_prompt"] = [NEGATIVE] * len(prompts)
    if both.case.side.counts_absent_prompts:
        own = headless.encode_prompt
        headless.encode_prompt = lambda prompt=None, **given: own([""] * len(prompts), **given)
    expected = both.case.picture(both.whole, **words)
    assert torch.isfinite(expected).all()
    assert expected.std() > 0
    absent = {"prompt": None} | ({"negative_prompt": None} if own_negatives(both) else {})
    assert torch.equal(both.case.picture(headless, **absent, **embeddings), expected)
    if both.case.side.masks:
        for name, mask in both.case.side.masks.items():
            embeddings[name] = embeddings[name] * (embeddings[mask] != 0).unsqueeze(-1)
        assert torch.equal(both.case.picture(headless, **absent, **embeddings), expected)


def test_two_pictures_of_one_prompt_are_equal(both: Both, headless: Any) -> None:
    """Servers give one embedding for each prompt, and clients repeat it."""
    count = next(name for name in COUNTS if name in inspect.signature(type(both.whole).__call__).parameters)
    negative = NEGATIVE if own_negatives(both) else None
    embeddings = both.engine.encode(asked(both, PROMPTS[0], negative)).tensors
    layouts = both.case.side.layouts
    embeddings = {name: repeated(value, layouts[name], 2) for name, value in embeddings.items()}
    words: dict[str, Any] = {"prompt": PROMPTS[0], **both.case.encode_options(), count: 2}
    absent: dict[str, Any] = {"prompt": None}
    if own_negatives(both):
        words["negative_prompt"], absent["negative_prompt"] = NEGATIVE, None
    if both.case.side.counts_absent_prompts:
        own = headless.encode_prompt
        headless.encode_prompt = lambda prompt=None, **given: own(["", ""], **given)
    if both.case.batch == 1:
        with pytest.raises(RuntimeError, match="invalid for input of size"):
            both.case.picture(both.whole, **words)
        return
    if both.case.class_name in IGNORE_COUNT:
        del words[count]
        words |= {name: [value] * 2 for name, value in words.items() if isinstance(value, str)}
    expected = both.case.picture(both.whole, **words)
    assert len(expected) == 2
    assert torch.equal(both.case.picture(headless, **absent, **embeddings), expected)


class Stop:
    """Counts the layers, and ends the run before the one of this number; 0 ends none."""

    def __init__(self, layer: int = 0) -> None:
        self.layer, self.asked = layer, 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked == self.layer


def hooks(both: Both) -> int:
    modules = (module for encoder in both.engine.parts.encoders.values() for module in encoder.modules())
    return sum(len(module._forward_pre_hooks) for module in modules)


def test_a_run_tells_how_far_it_is_and_stops_before_any_layer(both: Both) -> None:
    inputs = asked(both, PROMPTS, NEGATIVE if own_negatives(both) else None)
    expected = both.engine.encode(inputs).tensors
    before, told, never = hooks(both), [], Stop()
    watched = both.engine.encode(inputs, progress=lambda *given: told.append(given), should_stop=never)
    assert_same(watched.tensors, expected)
    layers = sum(model.config.get_text_config().num_hidden_layers for model in both.engine.parts.encoders.values())
    assert never.asked == len(told) >= layers
    (of,) = {of for _, of in told}
    done = [done for done, _ in told]
    assert done == sorted(done)
    assert done[0] == 0 < of / 4 < done[-1] <= of
    for layer in {1, 2, never.asked}:
        stop = Stop(layer)
        with pytest.raises(Stopped, match="the encoding was stopped"):
            both.engine.encode(inputs, should_stop=stop)
        assert stop.asked == layer
    assert hooks(both) == before
    assert_same(both.engine.encode(inputs).tensors, expected)


#: Also measured at their default lengths, where masks and biases of pairs of positions take most: T5 without a mask
#: and with one, and states of all layers.
LONG = ("FluxPipeline", "WanPipeline", "LTX2Pipeline")


def test_memory_is_asked_for_before_it_is_taken(both: Both) -> None:
    """What is asked for is at least what torch's allocator gives, and at most eight times as much."""
    lengths = [both.case.encode_options(), *([{}] if both.case.class_name in LONG else [])]
    for options in lengths:
        inputs = {"prompt": PROMPTS, **options} | ({"negative_prompt": None} if guided(both) else {})
        reserved: list[int] = []
        both.engine.encode(inputs, reserve=reserved.append)
        taken = peak_bytes(functools.partial(both.engine.encode, inputs))
        assert taken <= max(reserved) <= 8 * taken


def test_what_is_refused_does_not_run(both: Both) -> None:
    def refuse(_: int) -> None:
        raise TooLarge("no room")

    never, before = Stop(), hooks(both)
    with pytest.raises(TooLarge, match="no room"):
        both.engine.encode({"prompt": "a", **both.case.encode_options()}, reserve=refuse, should_stop=never)
    assert never.asked == 0
    assert hooks(both) == before


def test_requests_that_share_a_run_get_what_they_get_alone(both: Both) -> None:
    """Within rounding: matrix products of another shape may round differently."""
    if both.case.side.separates_requests:
        pytest.skip("the embeddings' length or dtype depends on all prompts of a batch")
    requests = [asked(both, prompts, NEGATIVE if own_negatives(both) else None) for prompts in (PROMPTS, "", "x")]
    alone = [both.engine.encode(request).tensors for request in requests]
    for one, made in zip(alone, both.engine.encode_together(requests), strict=True):
        assert one.keys() == made.tensors.keys()
        for name, value in one.items():
            assert len(value) == len(made.tensors[name])
            for mine, theirs in zip(value, made.tensors[name], strict=True):
                torch.testing.assert_close(theirs, mine, rtol=1e-5, atol=1e-5, msg=name)
