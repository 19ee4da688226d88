"""``connect`` for pipelines that were loaded without text encoders: the pictures are those of the whole pipeline.

For each pipeline two pictures of each of two prompts with negatives, and one picture of one prompt without.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from text_pipelines import CASES, Case
from text_servers import case_of, saved, serving

import hybridge
from hybridge.client import Client, repeat_for_images
from hybridge.errors import Mismatch, RequestError
from hybridge.models import TextSpec, look_up

PROMPTS = ["a cat in rain", 'a "sign" under 3 trees']
NEGATIVE = "blurry"


#: Of several prompts with several pictures each, these put masks in another order than embeddings: pictures of one
#: prompt are made with the mask of another.  They are compared with prompts that are written out for each picture.
MIXED_UP = {
    *("AuraFlowPipeline", "HunyuanDiTPipeline", "LTXPipeline", "LTX2Pipeline", "Lumina2Pipeline", "MochiPipeline"),
    *("QwenImagePipeline", "SanaPipeline", "SanaSprintPipeline", "HunyuanImagePipeline"),
    "Kandinsky5T2IPipeline",
}


@dataclass
class Pair:
    """One pipeline whole, and a server that has its text encoders."""

    case: Case
    whole: Any
    folder: Path
    server: str

    def headless(self) -> Any:
        return self.case.load(self.folder, **dict.fromkeys(self.case.side.components))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers and transformers deprecate what they use themselves
        yield


@pytest.fixture(params=CASES, ids=str, scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    case: Case = request.param
    folder = tmp_path_factory.mktemp("pipeline")
    spec = saved(case, folder)
    whole = case.load(folder)
    with serving([spec]) as server:
        yield Pair(case, whole, folder, server)


def words(case: Case, prompts: Any, negative: Any = None) -> dict[str, Any]:
    said = {"prompt": prompts, **case.encode_options()}
    if negative is not None and case.side.parameter("negative_prompt") is not None:
        said["negative_prompt"] = negative
    return said


def picture_or_refusal(case: Case, pipe: Any, said: dict[str, Any]) -> Any:
    # Copied, because Z-Image writes into the lists that it is given.
    copied = {name: list(value) if isinstance(value, list) else value for name, value in said.items()}
    with quiet():
        try:
            return case.picture(pipe, **copied)
        except (RuntimeError, ValueError, TypeError) as error:
            return type(error)


@pytest.mark.parametrize(
    ("prompts", "negative", "count"),
    [(PROMPTS, [NEGATIVE, ""], 2), (PROMPTS[0], None, 1)],
    ids=["two pictures of two", "one without a negative"],
)
def test_pictures_are_those_of_the_whole_pipeline(pair: Pair, prompts: Any, negative: Any, count: int) -> None:
    if pair.case.side.separates_empty and isinstance(negative, list):
        negative = [NEGATIVE] * 2  # locally an empty prompt in a batch changes the others
    said = words(pair.case, prompts, negative)
    takes = inspect.signature(type(pair.whole).__call__).parameters
    counts = [name for name in ("num_images_per_prompt", "num_videos_per_prompt") if name in takes]
    local = said
    if count > 1 and counts:
        said = {**said, **dict.fromkeys(counts, count)}
        local = (
            said
            if not (pair.case.class_name in MIXED_UP and isinstance(prompts, list))
            else {
                name: [text for text in value for _ in range(count)] if isinstance(value, list) else value
                for name, value in local.items()
            }
        )
    expected = picture_or_refusal(pair.case, pair.whole, local)
    pipe = pair.headless()
    with hybridge.connect(pipe, pair.server, parts="text") as done:
        found = picture_or_refusal(pair.case, pipe, said)
    assert [(one.part, one.model) for one in done.replaced] == [("text", "tiny")]
    if isinstance(expected, type):
        # EasyAnimate's own encode_prompt fails without a negative prompt; the server takes the empty one for it.
        assert isinstance(found, type) or pair.case.class_name == "EasyAnimatePipeline", (
            "no refusal, unlike locally"
        )
        return
    assert isinstance(found, torch.Tensor), found
    assert torch.isfinite(expected).all()
    assert torch.equal(found, expected), f"differs by {(found.float() - expected.float()).abs().max()}"


def test_loaded_encoders_are_known_by_their_weights(pair: Pair) -> None:
    with hybridge.connect(pair.whole, pair.server) as done:
        (text,) = done.replaced
    assert text.part == "text"
    assert text.reason.startswith("its weights and tokens equal this pipeline's")


def test_keyword_arguments_of_the_client_give_the_same_picture(pair: Pair) -> None:
    case = pair.case
    if case.side.counts_absent_prompts:
        pytest.skip("its call fails without a prompt, embeddings or not; connect works")
    guided = bool(case.side.negatives)
    own = case.side.parameter("negative_prompt") is not None
    prompts: Any = PROMPTS
    expected = picture_or_refusal(case, pair.whole, words(case, prompts, [NEGATIVE] * 2))
    if isinstance(expected, type):  # HunyuanVideo 1.5's VAE takes no batch
        prompts = PROMPTS[0]
        expected = picture_or_refusal(case, pair.whole, words(case, prompts, NEGATIVE))
    options = {**case.encode_options(), **({"negative_prompt": NEGATIVE if own else None} if guided else {})}
    with quiet():  # the server's word, too, that prompts were cut, as short as they are
        with Client(pair.server) as client:
            embeddings = client.encode_prompt(prompts, model="tiny", **options)
        found = case.picture(pair.headless(), **embeddings)
    assert torch.equal(found, expected)


# ---------------------------------------------------------------------------------------- one pipeline


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    case = case_of("StableDiffusionXLPipeline")
    folder = tmp_path_factory.mktemp("sdxl")
    spec = saved(case, folder)
    flux = saved(case_of("FluxPipeline"), tmp_path_factory.mktemp("flux"))
    whole = case.load(folder)
    texts = [spec, TextSpec("flux", flux.source, flux.class_name)]
    with serving(texts, cold=[look_up("starter")]) as server:
        yield Pair(case, whole, folder, server)


def test_clip_skip_and_second_prompts_reach_the_server(sdxl: Pair) -> None:
    said = words(sdxl.case, PROMPTS[0], NEGATIVE)
    said |= {"clip_skip": 1, "prompt_2": "rain", "negative_prompt_2": "snow"}
    pipe = sdxl.headless()
    with hybridge.connect(pipe, sdxl.server, parts=["text"]), quiet():
        assert torch.equal(sdxl.case.picture(pipe, **said), sdxl.case.picture(sdxl.whole, **said))


def test_negatives_are_sent_exactly_when_guidance_is_on(sdxl: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    encode = Client.encode_prompt

    def remembered(self: Client, prompt: Any, **given: Any) -> Any:
        asked.append(given)
        return encode(self, prompt, **given)

    monkeypatch.setattr(Client, "encode_prompt", remembered)
    pipe = sdxl.headless()
    with hybridge.connect(pipe, sdxl.server, parts="text"), quiet():
        for scale in (5.0, 1.0):
            sdxl.case.picture(pipe, prompt="a", negative_prompt="b", guidance_scale=scale)
    assert ["negative_prompt" in given for given in asked] == [True, False]


def test_undo_restores_the_pipeline(sdxl: Pair) -> None:
    pipe = sdxl.headless()
    before = {**vars(pipe), "_internal_dict": str(pipe.config)}
    done = hybridge.connect(pipe, sdxl.server, parts="text")
    assert "RemoteTextEncoder('tiny'" in repr(pipe.encode_prompt)
    done.undo()
    assert {**vars(pipe), "_internal_dict": str(pipe.config)} == before
    with quiet(), pytest.raises((AttributeError, TypeError)):
        sdxl.case.picture(pipe, prompt="a")


def test_embeddings_of_ones_own_are_taken_as_before(sdxl: Pair) -> None:
    with Client(sdxl.server) as client:
        embeddings = client.encode_prompt("a", model="tiny", negative_prompt="b")
    pipe = sdxl.headless()
    with quiet():
        expected = sdxl.case.picture(sdxl.whole, prompt="a", negative_prompt="b", num_images_per_prompt=2)
        with hybridge.connect(pipe, sdxl.server, parts="text"):
            found = sdxl.case.picture(pipe, **repeat_for_images(embeddings, 2))
    assert torch.equal(found, expected)


def test_auto_replaces_what_the_server_has(sdxl: Pair) -> None:
    for pipe in (sdxl.headless(), sdxl.whole):
        with hybridge.connect(pipe, sdxl.server, model="starter") as done:
            assert [(one.part, one.model) for one in done.replaced] == [("vae", "starter"), ("text", "tiny")]
            assert "text is tiny of" in str(done)
    with hybridge.connect(sdxl.whole, sdxl.server, model="starter", parts=("vae",)) as done:
        assert [one.part for one in done.replaced] == ["vae"]


def test_text_encoders_that_do_not_fit_are_refused(sdxl: Pair) -> None:
    pipe = sdxl.headless()
    with pytest.raises(Mismatch, match=r"flux of .* has no text encoders for this StableDiffusionXLPipeline"):
        hybridge.connect(pipe, sdxl.server, parts="text", text_model="flux")
    with pytest.raises(Mismatch, match="has no text encoders for this StableDiffusionPipeline"):
        hybridge.connect(case_of("StableDiffusionPipeline").make(), sdxl.server, parts="text")
    with pytest.raises(RequestError, match="no such part"):
        hybridge.connect(pipe, sdxl.server, parts="texts")
    assert "encode_prompt" not in vars(pipe)


def test_encoders_of_another_width_are_told_from_those_that_fit(sdxl: Pair) -> None:
    pipe = sdxl.headless()
    pipe.unet.register_to_config(cross_attention_dim=2048)
    with (
        hybridge.connect(pipe, sdxl.server, parts="text"),
        quiet(),
        pytest.raises(Mismatch, match=r"embeddings of .* numbers for each token, expected 2048"),
    ):
        sdxl.case.picture(pipe, prompt="a")


def test_several_that_fit_are_not_guessed_at(sdxl: Pair) -> None:
    spec = TextSpec("second", str(sdxl.folder / "text"), "StableDiffusionXLPipeline")
    with serving([TextSpec("first", spec.source, spec.class_name), spec]) as server:
        with pytest.raises(Mismatch, match=r'saw first, second\. Try: text_model="first"'):
            hybridge.connect(sdxl.headless(), server, parts="text")
        with hybridge.connect(sdxl.headless(), server, parts="text", text_model="second") as done:
            assert done.replaced[0].model == "second"
        assert {model["name"] for model in httpx.get(f"{server}/v1/models").json()["models"]} == {"first", "second"}


def test_more_prompts_than_one_request_takes(tmp_path: Path) -> None:
    """A server takes 32 at once."""
    case = case_of("StableDiffusionPipeline")
    spec = saved(case, tmp_path)
    prompts, negative = [f"{index} cats in rain" for index in range(33)], ["blurry"] * 33
    whole = case.load(tmp_path)
    headless = case.load(tmp_path, **dict.fromkeys(case.side.components))
    with quiet(), serving([spec]) as server, hybridge.connect(headless, server, parts="text"):
        found = headless.encode_prompt(prompts, "cpu", 1, True, negative)
        expected = whole.encode_prompt(prompts, "cpu", 1, True, negative)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, atol=1e-5)
