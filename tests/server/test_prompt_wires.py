"""Text embeddings on the wires of others: diffusers' and ComfyUI's for FLUX.2, and SD.Next's for FLUX.1."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from text_servers import case_of, saved, serving

from hybridge.engine import EngineOptions
from hybridge.engine.text import TextEngine
from hybridge.models import TextSpec
from hybridge.server.middleware.key_file import KeyRing, add_key, hash_key

PROMPTS = ["a cat in rain", "two trees"]


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TextSpec]:
    """CLIP and T5, and Mistral."""
    classes = {"flux": "FluxPipeline", "flux2": "Flux2Pipeline"}
    made = {name: saved(case_of(cls), tmp_path_factory.mktemp(name)) for name, cls in classes.items()}
    return {name: TextSpec(name, spec.source, spec.class_name) for name, spec in made.items()}


@pytest.fixture(scope="module")
def server(specs: dict[str, TextSpec]) -> Iterator[str]:
    with serving(list(specs.values())) as address:
        yield address


def engine(spec: TextSpec) -> TextEngine:
    return TextEngine.load(spec.source, EngineOptions(device="cpu"))


def test_flux2_of_diffusers_gets_its_tensor(server: str, specs: dict[str, TextSpec]) -> None:
    """``Flux2RemoteTextEncoderStep`` unmodified but for its address."""
    from diffusers.modular_pipelines.flux2.encoders import Flux2RemoteTextEncoderStep
    from diffusers.modular_pipelines.modular_pipeline import PipelineState

    class Step(Flux2RemoteTextEncoderStep):  # type: ignore[misc]
        REMOTE_URL = f"{server}/predict"

    class Components:
        _execution_device = torch.device("cpu")

    for prompt in ("a cat", ["a cat", "two"], None):
        state = PipelineState()
        state.set("prompt", prompt)
        _, state = Step()(Components(), state)
        texts = [""] if prompt is None else [prompt] if isinstance(prompt, str) else prompt
        expected = engine(specs["flux2"]).encode({"prompt": texts}).tensors["prompt_embeds"]
        assert isinstance(expected, torch.Tensor)
        assert torch.equal(state.get("prompt_embeds"), expected.bfloat16())


def flux2_node(url: str, prompt: str, key: str) -> torch.Tensor:
    """What ComfyUI's node for a remote FLUX.2 encoder does with the URL of ``HF_FLUX2_REMOTE_ENCODER_URL``.

    One text, a bearer token, success is 200 alone, and the body is what ``torch.save`` wrote of one tensor.
    """
    response = httpx.post(
        url,
        json={"prompt": prompt},
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        timeout=60,
    )
    if response.status_code != 200:
        raise RuntimeError(f"{response.status_code}: {response.text}")
    tensor = torch.load(io.BytesIO(response.content), map_location="cpu", weights_only=True)
    if not isinstance(tensor, torch.Tensor) or tensor.ndim != 3:
        raise TypeError("no conditioning (1, tokens, width)")
    return tensor


def test_comfyuis_node_for_flux2_gets_its_tensor(server: str, specs: dict[str, TextSpec]) -> None:
    expected = engine(specs["flux2"]).encode({"prompt": "a cat"}).tensors["prompt_embeds"]
    assert isinstance(expected, torch.Tensor)
    found = flux2_node(f"{server}/predict", "a cat", "hf_anything")
    assert found.device.type == "cpu"
    assert torch.equal(found, expected.bfloat16())


def test_comfyuis_node_sends_its_token_as_a_key(specs: dict[str, TextSpec], tmp_path: Path) -> None:
    """The token of the Hugging Face hub stands where a key of this server does."""
    key = add_key(tmp_path / "keys", "comfy")
    with serving([specs["flux2"]], keys=KeyRing({"comfy": hash_key(key)})) as address:
        assert flux2_node(f"{address}/predict", "a cat", key).shape[0] == 1
        with pytest.raises(RuntimeError, match="401"):
            flux2_node(f"{address}/predict", "a cat", "hf_of-another-house")


def sd_next(url: str, prompt: Any, dtype: torch.dtype) -> torch.Tensor:
    """What SD.Next's client does: a bare JSON body, and of the answer the bytes and one header."""
    response = httpx.post(url, json=prompt, timeout=60)
    shape = json.loads(response.headers["shape"])
    return torch.frombuffer(bytearray(response.content), dtype=dtype).reshape(shape)


def test_sd_nexts_t5_gets_its_tensor(server: str, specs: dict[str, TextSpec]) -> None:
    expected = engine(specs["flux"]).encode({"prompt": PROMPTS}).tensors["prompt_embeds"]
    assert isinstance(expected, torch.Tensor)
    assert torch.equal(sd_next(f"{server}/te", PROMPTS, torch.bfloat16), expected.bfloat16())
    assert torch.equal(sd_next(f"{server}/te?dtype=float16", PROMPTS, torch.float16), expected.half())
    one = engine(specs["flux"]).encode({"prompt": "a cat"}).tensors["prompt_embeds"]
    assert torch.equal(sd_next(f"{server}/te?dtype=float32", "a cat", torch.float32), one)  # type: ignore[arg-type]


def test_what_sd_next_sends_can_be_answered_later(server: str) -> None:
    """Whatever media type its body is declared with: it is kept as a request of ours."""
    url, odd = f"{server}/te?dtype=float32", {"content-type": "text/plain"}
    at_once = httpx.post(url, content=b'"a dog"', headers=odd, timeout=60)
    accepted = httpx.post(url, content=b'"a dog"', headers={**odd, "prefer": "respond-async"})
    assert (at_once.status_code, accepted.status_code) == (200, 202)
    job = server + accepted.headers["location"]
    httpx.get(f"{job}/events", timeout=60)  # until it is over
    later = httpx.get(f"{job}/result")
    assert (later.status_code, later.content) == (200, at_once.content)


@pytest.mark.parametrize(
    "body", [b"1", b"null", b'{"prompt": "a"}', b"[1]", b"[]", b"", b'"' + b"a" * 2**19 + b'"']
)
def test_what_sd_next_never_sends_is_refused(server: str, body: bytes) -> None:
    response = httpx.post(f"{server}/te", content=body)
    assert response.status_code in (400, 413)
    assert response.json()["error"]


def test_wires_that_name_no_model_need_one_that_fits(specs: dict[str, TextSpec]) -> None:
    second = TextSpec("other", specs["flux"].source, "FluxPipeline")
    with serving([specs["flux"], second]) as address:
        response = httpx.post(f"{address}/te", json="a")
        flux2 = httpx.post(f"{address}/predict", json={"prompt": "a"})
    assert response.json()["code"] == "AmbiguousModel"
    assert "no model here has the text encoders of Flux2" in flux2.json()["error"]
