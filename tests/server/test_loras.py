"""LoRAs of text encoders by their names: what they change, that nothing of them stays, and who is refused.

Most tests need peft, which ``make test`` keeps beside the environment; without it they are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load, save_file
from text_servers import case_of, saved, serving

from hybridge.engine import EngineOptions
from hybridge.engine.text import TextEngine
from hybridge.engine.text.lora import is_available
from hybridge.models import TextSpec

needs_peft = pytest.mark.skipif(not is_available(), reason="peft is not installed")
without_peft = pytest.mark.skipif(is_available(), reason="peft is installed")

CASE = case_of("StableDiffusionXLPipeline")
PROMPT: dict[str, Any] = {"prompt": "a cat", "negative_prompt": "blurry"}


def lora_of(pipeline: Any, path: Path, *, seed: int = 0, encoders: bool = True) -> None:
    """A LoRA with random numbers, in the names that diffusers' training scripts write."""
    random = torch.Generator().manual_seed(seed)
    tensors = {"unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.zeros(2, 64)} if not encoders else {}
    for name in ("text_encoder", "text_encoder_2") if encoders else ():
        for layer, module in getattr(pipeline, name).named_modules():
            if layer.endswith(("q_proj", "k_proj", "v_proj", "out_proj")):
                key = f"{name}.text_model.{layer.removeprefix('text_model.')}"
                tensors[f"{key}.lora_A.weight"] = torch.randn(4, module.in_features, generator=random)
                tensors[f"{key}.lora_B.weight"] = torch.randn(module.out_features, 4, generator=random)
    save_file(tensors, path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sdxl")


@pytest.fixture(scope="module")
def spec(folder: Path) -> TextSpec:
    return saved(CASE, folder)


@pytest.fixture(scope="module")
def loras(folder: Path, spec: TextSpec) -> Path:
    """A folder of them: ``ink``, ``oil``, one of the denoiser alone, and one that is damaged."""
    made = folder / "loras"
    made.mkdir()
    pipeline = TextEngine.load(spec.source, EngineOptions(device="cpu")).parts.pipeline
    lora_of(pipeline, made / "ink.safetensors")
    lora_of(pipeline, made / "oil.safetensors", seed=1)
    lora_of(pipeline, made / "denoiser.safetensors", encoders=False)
    (made / "damaged.safetensors").write_bytes(b"no safetensors")
    (made / "pickled.bin").write_bytes(b"")
    return made


@pytest.fixture(scope="module")
def server(spec: TextSpec, loras: Path) -> Iterator[str]:
    with serving([spec], lora_folder=loras) as address:
        yield address


def ask(server: str, **inputs: Any) -> httpx.Response:
    return httpx.post(f"{server}/v1/tiny/prompt", json={**PROMPT, **inputs}, timeout=60)


def assert_same(response: httpx.Response, expected: dict[str, torch.Tensor]) -> None:
    found = load(response.content)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@needs_peft
def test_embeddings_are_those_of_the_whole_pipeline_with_the_lora(
    server: str, folder: Path, loras: Path, spec: TextSpec
) -> None:
    plain = load(ask(server).content)
    inked = ask(server, lora="ink", lora_scale=0.5)
    pipeline = CASE.load(folder)
    pipeline.load_lora_weights(str(loras), weight_name="ink.safetensors")
    for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
        for module in encoder.modules():
            if hasattr(module, "set_scale"):
                module.set_scale("default_0", 0.5)
    with torch.no_grad():
        made = pipeline.encode_prompt("a cat", negative_prompt="blurry")
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    assert_same(inked, dict(zip(names, made, strict=True)))
    assert not torch.equal(load(inked.content)["prompt_embeds"], plain["prompt_embeds"])


@needs_peft
def test_nothing_of_a_lora_stays(server: str, spec: TextSpec) -> None:
    expected = TextEngine.load(spec.source, EngineOptions(device="cpu"))
    for number, lora in enumerate(("ink", "oil", "damaged", "denoiser")):
        ask(server, lora=lora)
        inputs = {**PROMPT, "prompt": f"plain {number}"}  # which is in no cache
        assert_same(ask(server, **inputs), expected.encode(inputs).tensors)  # type: ignore[arg-type]


@needs_peft
def test_answers_are_kept_for_each_lora_and_scale(server: str, loras: Path) -> None:
    def cache(**inputs: Any) -> str:
        return ask(server, prompt="kept?", **inputs).headers["hybridge-cache"]

    different: list[dict[str, Any]] = [{}, {"lora": "oil"}, {"lora": "ink"}, {"lora": "ink", "lora_scale": 0.25}]
    assert [cache(**inputs) for inputs in different] == ["miss"] * 4
    assert [cache(**inputs) for inputs in different] == ["hit"] * 4
    about = (loras / "oil.safetensors").stat()
    os.utime(loras / "oil.safetensors", ns=(about.st_atime_ns, about.st_mtime_ns + 1))  # as if it was written again
    assert cache(lora="oil") == "miss"


@needs_peft
@pytest.mark.parametrize(
    ("lora", "status", "said"),
    [
        ("denoiser", 400, "holds nothing for the text encoders"),
        ("damaged", 503, "the LoRA damaged cannot be loaded"),
    ],
)
def test_a_file_that_does_not_fit_is_told(server: str, lora: str, status: int, said: str) -> None:
    response = ask(server, lora=lora)
    assert response.status_code == status
    assert said in response.json()["error"]


@without_peft
def test_without_peft_the_extra_is_named(server: str) -> None:
    response = ask(server, lora="ink")
    assert response.status_code == 503
    assert "pip install 'hybridge[lora]'" in response.json()["error"]
    assert ask(server).status_code == 200


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"lora": "inc"}, "expected one of damaged, denoiser, ink, oil. Try: ink"),
        ({"lora": "../loras/ink"}, "no LoRA '../loras/ink'"),
        ({"lora": "/etc/passwd"}, "no LoRA"),
        ({"lora": "pickled"}, "no LoRA"),
        ({"lora": ""}, "no LoRA"),
        ({"lora": ["ink"]}, "`lora` is no name"),
        ({"lora": "ink", "lora_scale": "much"}, "`lora_scale` cannot be"),
        ({"lora": "ink", "lora_scale": 1000}, "`lora_scale` cannot be"),
        ({"lora_scale": 1}, "`lora_scale` without `lora`"),
    ],
)
def test_what_is_no_name_is_refused(server: str, inputs: dict[str, Any], said: str) -> None:
    response = ask(server, **inputs)
    assert response.status_code == 400
    assert said in response.json()["error"]


def test_a_server_without_a_folder_offers_none(spec: TextSpec) -> None:
    with serving([spec]) as address:
        response = ask(address, lora="ink")
    assert response.status_code == 400
    assert "this server has no LoRAs. Try: a server with --lora-dir" in response.json()["error"]
