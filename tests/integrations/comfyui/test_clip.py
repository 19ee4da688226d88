"""The remote CLIP: called as ComfyUI's own nodes call theirs, it gives what the encoders on the server give."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from text_servers import case_of, saved, serving

from hybridge.engine import EngineOptions
from hybridge.engine.text import TextEngine
from hybridge.models import TextSpec

Node = Callable[..., tuple[Any, ...]]
MakeProfile = Callable[..., str]
PIPELINES = {
    "sd1": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
    "wan": "WanPipeline",
    "ltx": "LTXPipeline",
}
LONG, SHORT = "a (cat:1.4) in rain, " * 20, "two trees"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TextSpec]:
    root: Path = tmp_path_factory.mktemp("models")
    specs = {name: saved(case_of(case), root / name) for name, case in PIPELINES.items()}
    return {name: TextSpec(name, spec.source, spec.class_name) for name, spec in specs.items()}


@pytest.fixture(scope="module")
def text_server(texts: dict[str, TextSpec]) -> Iterator[str]:
    with serving(list(texts.values())) as address:
        yield address


@pytest.fixture
def clip(node: Node, profile: MakeProfile, text_server: str) -> Callable[[str], Any]:
    name = profile(text_server)
    return lambda model: node("HybridgeClip", profile=name, model=model)[0]


def here(texts: dict[str, TextSpec], model: str, **asked: Any) -> dict[str, torch.Tensor]:
    engine = TextEngine.load(texts[model].source, EngineOptions(device="cpu"))
    return {name: tensors[0] for name, tensors in engine.encode_as_comfyui(asked).tensors.items()}


def same(conditioning: list[list[Any]], expected: dict[str, torch.Tensor], **others: Any) -> None:
    ((cond, beside),) = conditioning
    assert torch.equal(cond, expected["cond"])
    pooled = expected.get("pooled_output")
    assert beside["pooled_output"] is None if pooled is None else torch.equal(beside["pooled_output"], pooled)
    assert {name: value for name, value in beside.items() if name != "pooled_output"} == others


@pytest.mark.parametrize("model", ["sd1", "wan"])
def test_clip_text_encode(clip: Callable[[str], Any], texts: dict[str, TextSpec], model: str) -> None:
    """``CLIPTextEncode`` of nodes.py."""
    mine = clip(model)
    with torch.inference_mode():
        tokens = mine.tokenize(LONG)
        same(mine.encode_from_tokens_scheduled(tokens), here(texts, model, prompt=LONG))


def test_a_text_for_each_encoder(clip: Callable[[str], Any], texts: dict[str, TextSpec]) -> None:
    """``CLIPTextEncodeSDXL`` fills up the shorter text, which is the server's work here."""
    mine = clip("sdxl")
    for text_l, text_g in ((SHORT, LONG), (LONG, SHORT), ("", SHORT)):
        tokens = mine.tokenize(text_g)
        tokens["l"] = mine.tokenize(text_l)["l"]
        if len(tokens["l"]) != len(tokens["g"]):
            raise AssertionError("the node would add tokens of an empty text")
        made = mine.encode_from_tokens_scheduled(tokens, add_dict={"width": 512})
        same(made, here(texts, "sdxl", prompt=text_l, prompt_2=text_g), width=512)


def test_three_texts(clip: Callable[[str], Any], texts: dict[str, TextSpec]) -> None:
    """``CLIPTextEncodeSD3``, but for an encoder that is left out."""
    mine = clip("sd3")
    tokens = mine.tokenize(SHORT)
    tokens["l"], tokens["t5xxl"] = mine.tokenize("rain")["l"], mine.tokenize("sun")["t5xxl"]
    expected = here(texts, "sd3", prompt="rain", prompt_2=SHORT, prompt_3="sun")
    same(mine.encode_from_tokens_scheduled(tokens), expected)
    tokens["g"] = []  # with `empty_padding: none`
    with pytest.raises(RuntimeError, match="needs local text encoders"):
        tokens["g"] += mine.tokenize("")["g"]
    with pytest.raises(RuntimeError, match="needs local text encoders"):
        mine.encode_from_tokens_scheduled(tokens)


def test_flux(clip: Callable[[str], Any], texts: dict[str, TextSpec]) -> None:
    """``CLIPTextEncodeFlux``; the older form of the call, which other packs use, gives the same."""
    mine = clip("flux")
    tokens = mine.tokenize(SHORT)
    tokens["t5xxl"] = mine.tokenize(LONG)["t5xxl"]
    expected = here(texts, "flux", prompt=SHORT, prompt_2=LONG)
    same(mine.encode_from_tokens_scheduled(tokens, add_dict={"guidance": 3.5}), expected, guidance=3.5)
    cond, pooled = mine.encode_from_tokens(tokens, return_pooled=True)
    assert torch.equal(cond, expected["cond"])
    assert torch.equal(pooled, expected["pooled_output"])
    assert set(mine.encode_from_tokens(tokens, return_dict=True)) == {"cond", "pooled_output"}
    assert torch.equal(mine.encode(SHORT), here(texts, "flux", prompt=SHORT)["cond"])


def test_the_layer(clip: Callable[[str], Any], texts: dict[str, TextSpec]) -> None:
    """``CLIPSetLastLayer`` changes a clone."""
    mine = clip("sd1")
    other = mine.clone()
    other.clip_layer(-2)
    again = other.clone()
    for one, options in ((mine, {}), (other, {"clip_layer": -2}), (again, {"clip_layer": -2})):
        made = one.encode_from_tokens_scheduled(one.tokenize(SHORT))
        same(made, here(texts, "sd1", prompt=SHORT, **options))
    flux = clip("flux").clone()
    flux.clip_layer(-2)
    with pytest.raises(RuntimeError, match="flux has no `clip_layer`"):
        flux.encode(SHORT)


def test_what_a_remote_clip_cannot_do_is_said(pack: ModuleType, clip: Callable[[str], Any]) -> None:
    mine = clip("sd1")
    tokens = mine.tokenize(SHORT)
    for act, said in (
        (lambda: mine.tokenize(SHORT, images=[1]), "puts images into the text"),
        (lambda: mine.tokenize(SHORT, return_word_ids=True), "numbers of words"),
        (lambda: [token for token, _ in tokens["l"]], "changes the tokens"),
        (lambda: tokens["l"][0], "changes the tokens"),
        (lambda: tokens["g"], "are l; a node asks for 'g'"),
        (lambda: mine.encode_from_tokens({"l": [[(49406, 1.0)]]}), "changes the tokens"),
        (lambda: mine.encode_from_tokens(tokens, return_pooled="unprojected"), "projected alone"),
        (lambda: mine.set_tokenizer_option("min_length", 8), "no options of tokenizers"),
        (lambda: mine.cond_stage_model.state_dict(), "a LoRA or a hook cannot change it"),
        (lambda: mine.patcher.forced_hooks, "a LoRA or a hook cannot change it"),
        (lambda: mine.add_patches({}), "a LoRA or a hook cannot change it"),
        (lambda: mine.get_sd(), "weights of 'sd1' are on the server"),
        (lambda: mine.state_dict_for_saving(), "weights of 'sd1' are on the server"),
        (lambda: mine.get_key_patches(), "a LoRA or a hook cannot change it"),
        (lambda: mine.generate(tokens), "to write text, a node needs a local model"),
        (lambda: mine.decode([1]), "to write text, a node needs a local model"),
        (lambda: clip("ltx"), "'ltx' on the server 'desktop' makes no text for ComfyUI"),
    ):
        with pytest.raises(sys.modules[f"{pack.__name__}.messages"].NodeError, match=said):
            act()
    assert mine.tokenize(SHORT, images=[], llama_template=None).keys() == {"l"}
    assert repr(mine) == "RemoteCLIP('sd1' on 'desktop')"
