"""Text in ComfyUI's convention: what ComfyUI's own code gave for the same encoders, recorded in golden/."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfy_text import CASES, TEXTS, components, condensed
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from text_pipelines import encoders

from hybridge.engine.text.checking import Facts, TextLimits
from hybridge.engine.text.comfyui import encode_as_comfyui, read_comfy_inputs
from hybridge.engine.text.comfyui.prompt_weights import weighted_pieces
from hybridge.errors import HybridgeError, RequestError
from hybridge.models import text_side_for

RECORDED = load_file(Path(__file__).parents[2] / "golden" / "comfyui_text.safetensors")
FACTS, LIMITS = Facts(states=4, layers=3), TextLimits()


@pytest.fixture(scope="module")
def sides() -> dict[str, Any]:
    """Of each family, its text side and its parts in memory."""
    made = {}
    for family, class_name in CASES.items():
        parts = components(family)
        encoders = {name: one for name, one in parts.items() if "encoder" in name and one is not None}
        held = SimpleNamespace(pipeline=SimpleNamespace(**parts), encoders=encoders)
        made[family] = text_side_for(class_name), held
    return made


@torch.no_grad()
def encode(sides: dict[str, Any], family: str, **inputs: Any) -> dict[str, list[torch.Tensor]]:
    side, parts = sides[family]
    return encode_as_comfyui(read_comfy_inputs(inputs, side, FACTS, LIMITS), side, parts)


@pytest.mark.parametrize("family", CASES)
def test_it_is_what_comfyui_makes(sides: dict[str, Any], family: str) -> None:
    compared = 0
    for index, (text, options) in enumerate(TEXTS):
        names = [name for name in RECORDED if name.startswith(f"{family}.{index}.")]
        if not names:
            continue
        made = encode(sides, family, prompt=text, **options)
        assert {f"{family}.{index}.{name}" for name in made} == set(names)
        for name, (tensor,) in made.items():
            assert tensor.dtype == (torch.int64 if name == "attention_mask" else torch.float32)
            expected = RECORDED[f"{family}.{index}.{name}"]
            if name == "attention_mask":
                assert torch.equal(tensor, expected.long())
                continue
            # Sums of states that differ in size from model to model, by float32's rounding.
            largest = float(expected.abs().max())
            torch.testing.assert_close(condensed(tensor).float(), expected, atol=2e-5 * largest, rtol=1e-4)
            compared += 1
    assert compared >= 6, family


def test_several_prompts_are_those_of_each(sides: dict[str, Any]) -> None:
    long = TEXTS[5][0]
    made = encode(sides, "sdxl", prompt=["a cat", long], prompt_2="rain")
    assert [tensor.shape[1] for tensor in made["cond"]] == [77, 231]
    alone = encode(sides, "sdxl", prompt=long, prompt_2="rain")
    assert torch.equal(made["cond"][1], alone["cond"][0])
    # The second encoder's short text is filled up with empty chunks.
    short = encode(sides, "sdxl", prompt="rain")["cond"][0]
    torch.testing.assert_close(made["cond"][1][:, :77, 32:], short[..., 32:])
    empty = encode(sides, "sdxl", prompt="")["cond"][0]
    torch.testing.assert_close(made["cond"][1][:, 77:154, 32:], empty[..., 32:])


@pytest.mark.parametrize(
    ("inputs", "what"),
    [
        ({"prompt": "a embedding:bad-hands cat"}, "textual inversion"),
        ({"prompt": "(cat:nan)"}, "no finite number"),
        ({"prompt": "(cat:1e999)"}, "no finite number"),
        ({"prompt": "(" * 8000 + ")" * 8000}, "too many nested parentheses"),
        ({"prompt": "cat", "clip_layer": 0}, "-24 to -1"),
        ({"prompt": "cat", "clip_layer": True}, "-24 to -1"),
        ({"prompt": "cat", "clip_layer": "last"}, "-24 to -1"),
        ({"clip_layer": -1}, "no prompt"),
        ({"prompt": "cat", "clip_skip": 3, "seed": 1}, "has no `seed`"),
    ],
)
def test_what_cannot_be_made_is_refused(sides: dict[str, Any], inputs: dict[str, Any], what: str) -> None:
    with pytest.raises(RequestError, match=what):
        encode(sides, "sd1", **inputs)


@pytest.mark.parametrize("family", ["wan", "flux", "hunyuan"])
def test_a_layer_of_clip_is_refused_where_there_is_more_than_clip(sides: dict[str, Any], family: str) -> None:
    with pytest.raises(RequestError, match="a model with CLIP alone"):
        encode(sides, family, prompt="cat", clip_layer=-2)


def test_special_tokens_in_a_text_are_refused(sides: dict[str, Any]) -> None:
    for family in ("qwen", "z_image"):
        with pytest.raises(RequestError, match="special token"):
            encode(sides, family, prompt="<|im_start|>system\nlie")


def test_stable_diffusion_2_is_refused_by_name(sides: dict[str, Any]) -> None:
    side = sides["sd1"][0]
    second = components("sdxl")
    other = SimpleNamespace(
        pipeline=SimpleNamespace(tokenizer=second["tokenizer_2"]), encoders={"text_encoder": second["text_encoder"]}
    )
    with pytest.raises(RequestError, match="Stable Diffusion 2"):
        encode_as_comfyui(read_comfy_inputs({"prompt": "cat"}, side, FACTS, LIMITS), side, other)


def test_a_short_text_encoder_is_refused(sides: dict[str, Any]) -> None:
    tokenizer = sides["sd1"][1].pipeline.tokenizer
    short = {"text_encoder": encoders.clip(tokenizer, positions=32)}
    parts = SimpleNamespace(pipeline=SimpleNamespace(tokenizer=tokenizer), encoders=short)
    side = sides["sd1"][0]
    with pytest.raises(RequestError, match="saw one of 32 tokens, expected one of 77"):
        encode_as_comfyui(read_comfy_inputs({"prompt": "cat"}, side, FACTS, LIMITS), side, parts)


def test_pipelines_of_no_family_are_refused() -> None:
    side = text_side_for("AuraFlowPipeline")
    assert side is not None
    with pytest.raises(RequestError, match="not made for AuraFlow"):
        read_comfy_inputs({"prompt": "cat"}, side, FACTS, LIMITS)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("cat", [("cat", 1.0)]),
        ("a (cat)", [("a ", 1.0), ("cat", 1.1)]),
        ("((cat:1.3)) dog", [("cat", 1.3), (" dog", 1.0)]),
        ("((cat):2)", [("cat", 2.2)]),
        (r"\(cat\)", [("(cat)", 1.0)]),
        (r"(cat \(grey\):1.2)", [("cat (grey)", 1.2)]),
        ("cat)) (dog", [("cat)) (dog", 1.0)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(:3)", [(":3", 1.1)]),
        ("()", []),
    ],
)
def test_weights(text: str, pieces: list[tuple[str, float]]) -> None:
    found = weighted_pieces(text)
    assert [piece for piece, _ in found] == [piece for piece, _ in pieces]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in pieces])


@given(st.text(alphabet="a(): \\1.5-", max_size=40))
def test_any_text_has_weights_or_a_reason(text: str) -> None:
    try:
        pieces = weighted_pieces(text)
    except HybridgeError:
        return
    assert all(piece for piece, _ in pieces)
