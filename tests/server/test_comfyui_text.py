"""Text in ComfyUI's convention over the wire."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from text_servers import case_of, saved, serving

from hybridge.client import Client, ServerWarning
from hybridge.engine import EngineOptions
from hybridge.engine.text import TextEngine
from hybridge.errors import ServerRefused
from hybridge.models import TextSpec

TEXT = "a (cat:1.3) in rain, " * 8


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TextSpec]:
    root: Path = tmp_path_factory.mktemp("models")
    made = {}
    for name, case in (("sdxl", "StableDiffusionXLPipeline"), ("ltx", "LTXPipeline")):
        spec = saved(case_of(case), root / name)
        made[name] = TextSpec(name, spec.source, spec.class_name)
    return made


@pytest.fixture(scope="module")
def address(specs: dict[str, TextSpec]) -> Iterator[str]:
    with serving(list(specs.values())) as address:
        yield address


def test_the_entries_of_a_conditioning_come_back(address: str, specs: dict[str, TextSpec]) -> None:
    engine = TextEngine.load(specs["sdxl"].source, EngineOptions(device="cpu"))
    expected = engine.encode_as_comfyui({"prompt": [TEXT, "cat"], "prompt_2": "dog"}).tensors
    with Client(address) as client:
        for _ in range(2):  # the second comes from the cache
            made = client.encode_prompt([TEXT, "cat"], model="sdxl", convention="comfyui", prompt_2="dog")
            assert set(made) == {"cond", "pooled_output"}
            assert made.metadata["convention"] == "comfyui"
            for name, tensors in made.items():
                assert len(tensors) == 2
                assert all(torch.equal(*pair) for pair in zip(tensors, expected[name], strict=True))
        # The same prompt for a pipeline is another answer, in whichever order they come.
        with pytest.warns(ServerWarning, match="longer than the text encoder reads"):
            usual = client.encode_prompt([TEXT, "cat"], model="sdxl", prompt_2="dog")
        assert usual["prompt_embeds"].shape[1] == 77
        assert made["cond"][0].shape[1] > 77


def test_models_tell_their_conventions(address: str) -> None:
    with Client(address) as client:
        told = {entry["name"]: entry["text"]["conventions"] for entry in client.models()}
    assert told == {"sdxl": ["diffusers", "comfyui"], "ltx": ["diffusers"]}


@pytest.mark.parametrize(
    ("model", "inputs", "what"),
    [
        ("ltx", {}, "ltx makes no text for ComfyUI"),
        ("sdxl", {"clip_skip": 1}, "sdxl has no `clip_skip`"),
        ("sdxl", {"negative_prompt": None}, "sdxl has no `negative_prompt`"),
        ("sdxl", {"clip_layer": -99}, "`clip_layer` cannot be"),
    ],
)
def test_what_cannot_be_made_is_refused(address: str, model: str, inputs: dict[str, object], what: str) -> None:
    with Client(address) as client, pytest.raises(ServerRefused, match=what) as error:
        client.encode_prompt("cat", model=model, convention="comfyui", **inputs)
    assert error.value.status == 400


def test_another_convention_is_refused(address: str) -> None:
    answer = httpx.post(f"{address}/v1/sdxl/prompt?convention=a1111", json={"prompt": "cat"})
    assert answer.status_code == 400
    assert "diffusers" in answer.json()["error"]
