"""LoRAs of text encoders by their names: what they change, that nothing of them stays, and who is refused.

Most tests need peft, which ``make test`` keeps beside the environment; without it they are skipped.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load, load_file, save_file
from text_servers import case_of, saved, serving

from hybridge.engine import EngineOptions
from hybridge.engine.text import TextEngine
from hybridge.engine.text.lora import Adapters, is_available
from hybridge.errors import RequestError
from hybridge.models import TextSpec
from hybridge.server.local_loras import LoraFolder
from hybridge.server.scheduling.prompt_job import LoraChoice

needs_peft = pytest.mark.skipif(not is_available(), reason="peft is not installed")
without_peft = pytest.mark.skipif(is_available(), reason="peft is installed")

CASE = case_of("StableDiffusionXLPipeline")
PROMPT: dict[str, Any] = {"prompt": "a cat", "negative_prompt": "blurry"}


def lora_of(
    pipeline: Any, path: Path, *, seed: int = 0, encoders: Sequence[str] = ("text_encoder", "text_encoder_2")
) -> None:
    """A LoRA with random numbers, in the names that diffusers' training scripts write."""
    random = torch.Generator().manual_seed(seed)
    tensors = {"unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.zeros(2, 64)} if not encoders else {}
    for name in encoders:
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
    lora_of(pipeline, made / "denoiser.safetensors", encoders=())
    (made / "damaged.safetensors").write_bytes(b"no safetensors")
    (made / "pickled.bin").write_bytes(b"")
    (made / "pickle.safetensors").write_bytes(pickle.dumps(Trap(folder / "unpickled")))
    (made / os.fsdecode(b"no-text-\xff.safetensors")).write_bytes(b"")  # its name is not UTF-8
    ink = load_file(made / "ink.safetensors")
    first = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    halved = {name: tensor for name, tensor in ink.items() if name != f"{first}.lora_A.weight"}
    save_file(halved, made / "half.safetensors")
    save_file({name: tensor[..., :3].clone() for name, tensor in ink.items()}, made / "narrow.safetensors")
    lower = {name: tensor for name, tensor in ink.items() if ".layers.0." in name}
    deeper = {name.replace(".layers.0.", ".layers.30."): tensor.clone() for name, tensor in lower.items()}
    save_file({**ink, **deeper}, made / "deeper.safetensors")
    return made


class Trap:
    """What would be called if it was read as a pickle."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


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
    for number, lora in enumerate(("ink", "oil", "damaged", "denoiser", "half", "ink", "narrow", "deeper")):
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
        ("damaged", 503, "the weights of the LoRA damaged are damaged"),
        ("pickle", 503, "the weights of the LoRA pickle are damaged"),
        ("half", 400, "the LoRA half does not fit the text encoders of StableDiffusionXLPipeline"),
        ("narrow", 400, "the LoRA narrow does not fit"),
        ("deeper", 400, "layers.30.self_attn.k_proj.lora_A.weight, which text_encoder lacks"),
    ],
)
def test_a_file_that_does_not_fit_is_told(server: str, folder: Path, lora: str, status: int, said: str) -> None:
    response = ask(server, lora=lora)
    assert response.status_code == status
    assert said in response.json()["error"]
    assert str(folder) not in response.text
    assert not (folder / "unpickled").exists()


@needs_peft
def test_eight_clients_with_and_without_loras_get_what_one_gets(server: str) -> None:
    asked: list[dict[str, Any]] = [
        {"prompt": f"client {number}", **lora}
        for number in range(2)
        for lora in ({}, {"lora": "ink"}, {"lora": "oil", "lora_scale": 0.5}, {"lora": "narrow"})
    ]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda inputs: ask(server, **inputs), asked))
    alone = load_alone(server, asked)
    for inputs, response in zip(asked, found, strict=True):
        assert response.status_code == (400 if inputs.get("lora") == "narrow" else 200), response.text
        if response.status_code == 200:
            assert_same(response, alone[str(inputs)])


def load_alone(server: str, asked: list[dict[str, Any]]) -> dict[str, dict[str, torch.Tensor]]:
    """The answers one after the other, not from the cache."""
    found = {}
    for inputs in asked:
        # An option at its default is another key of the cache, and the same embeddings.
        response = ask(server, **{**inputs, "clip_skip": None})
        if response.status_code == 200:
            assert response.headers["hybridge-cache"] == "miss"
            found[str(inputs)] = load(response.content)
    return found


@needs_peft
def test_weights_of_a_lora_count(server: str, loras: Path) -> None:
    def weights_bytes() -> int:
        return int(httpx.get(f"{server}/v1/models/tiny").json()["text"]["weights_bytes"])

    ask(server, prompt="weighed")
    plain = weights_bytes()
    ask(server, prompt="weighed", lora="ink")
    assert weights_bytes() - plain == sum(tensor.nbytes for tensor in load_file(loras / "ink.safetensors").values())
    ask(server, prompt="weighed again")
    assert weights_bytes() == plain


@needs_peft
def test_a_lora_without_room_is_refused_before_it_is_read(spec: TextSpec, loras: Path) -> None:
    random = torch.Generator().manual_seed(0)
    large = {"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": (2**16, 64)}
    folder = loras.parent / "large"
    folder.mkdir()
    tensors = {name: torch.randn(shape, generator=random) for name, shape in large.items()}
    save_file(tensors, folder / "large.safetensors")
    needed = TextEngine.expected_bytes(spec.source, EngineOptions(device="cpu")) + 2**25
    with serving([spec], lora_folder=folder, memory_bytes=needed) as address:
        response = ask(address, lora="large")
        assert (response.status_code, response.json()["code"]) == (413, "TooLarge")
        assert "does not fit beside the weights in --memory" in response.json()["error"]
        assert ask(address).status_code == 200


@needs_peft
def test_a_file_that_changes_during_the_run_is_not_kept_under_its_new_name(
    spec: TextSpec, loras: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = loras.parent / "changing"
    folder.mkdir()
    path = folder / "ink.safetensors"
    path.write_bytes((loras / "ink.safetensors").read_bytes())
    encode = TextEngine.encode

    def replaced(engine: TextEngine, *args: Any, **kwargs: Any) -> Any:
        path.write_bytes((loras / "oil.safetensors").read_bytes())
        return encode(engine, *args, **kwargs)

    with serving([spec], lora_folder=folder) as address:
        with monkeypatch.context() as patch:
            patch.setattr(TextEngine, "encode", replaced)
            before = ask(address, lora="ink")
        after = ask(address, lora="ink")
    assert after.headers["hybridge-cache"] == "miss"
    assert before.content != after.content


def test_models_say_which_loras_there_are(server: str) -> None:
    names = httpx.get(f"{server}/v1/models/tiny").json()["text"]["loras"]
    assert names == sorted(names)
    assert {"ink", "oil"} < set(names)
    assert not any("no-text" in name for name in names)


def test_models_that_take_no_lora_name_none(tmp_path: Path, loras: Path) -> None:
    with serving([saved(case_of("ChromaPipeline"), tmp_path)], lora_folder=loras) as address:
        text = httpx.get(f"{address}/v1/models/tiny").json()["text"]
        response = httpx.post(f"{address}/v1/tiny/prompt", json={"prompt": "a", "lora": "ink"}, timeout=60)
    assert text["loras"] == []
    assert response.status_code == (400 if is_available() else 503)


@needs_peft
@pytest.mark.parametrize(
    ("class_name", "given", "encoders", "name", "position"),
    [
        ("StableDiffusionPipeline", ("a cat", "cpu", 1, False), ["text_encoder"], "prompt_embeds", 0),
        ("StableDiffusion3Pipeline", ("a cat", None, None), ["text_encoder", "text_encoder_2"], "prompt_embeds", 0),
        ("FluxPipeline", ("a cat", None), ["text_encoder"], "pooled_prompt_embeds", 1),
    ],
)
def test_loras_of_other_pipelines(
    class_name: str, given: tuple[Any, ...], encoders: list[str], name: str, position: int, tmp_path: Path
) -> None:
    case, inputs, made = case_of(class_name), {"prompt": "a cat"}, tmp_path / "loras"
    spec = saved(case, tmp_path / "pipeline")
    made.mkdir()
    pipeline = case.load(tmp_path / "pipeline")
    lora_of(pipeline, made / "ink.safetensors", encoders=encoders)
    with serving([spec], lora_folder=made) as address:
        answers = [
            httpx.post(f"{address}/v1/tiny/prompt", json={**inputs, **lora}, timeout=60)
            for lora in ({"lora": "ink"}, {})
        ]
    without = TextEngine.load(spec.source, EngineOptions(device="cpu")).encode(inputs).tensors
    assert_same(answers[1], without)  # type: ignore[arg-type]
    pipeline.load_lora_weights(str(made), weight_name="ink.safetensors")
    with torch.no_grad():
        expected = pipeline.encode_prompt(*given)[position]
    found, plain = (load(answer.content)[name] for answer in answers)
    assert torch.equal(found, expected)
    assert not torch.equal(found, plain)


@needs_peft
def test_encoders_of_bitsandbytes_take_none(spec: TextSpec, loras: Path) -> None:
    engine = TextEngine.load(spec.source, EngineOptions(device="cpu"))
    parts = replace(engine.parts, quantised={"text_encoder": "bitsandbytes-int8"})
    ink = LoraFolder(loras).find(LoraChoice("ink"))
    with pytest.raises(RequestError, match="no LoRA into encoders that bitsandbytes has quantised"):
        Adapters(parts, engine.side, torch.device("cpu")).use(ink)
    assert engine.weights_bytes == TextEngine.load(spec.source, EngineOptions(device="cpu")).weights_bytes


@without_peft
def test_without_peft_the_extra_is_named(server: str) -> None:
    response = ask(server, lora="ink")
    assert response.status_code == 503
    assert "pip install 'hybridge[lora]'" in response.json()["error"]
    assert ask(server).status_code == 200


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"lora": "inc"}, "expected one of damaged, deeper, denoiser, half, ink, narrow, oil, pickle. Try: ink"),
        ({"lora": "ink\0"}, "no LoRA 'ink\\x00'"),
        ({"lora": "ink.safetensors"}, "no LoRA"),
        ({"lora": "*"}, "no LoRA"),
        ({"lora": "i" * 16_000}, "no LoRA"),
        ({"lora": {"ink": 1}}, "`lora` is no name"),
        ({"lora": True}, "`lora` is no name"),
        ({"lora": ["ink", "oil"]}, "`lora` is no name: saw ['ink', 'oil'], expected one name"),
        ({"lora": "ink", "lora_scale": [1, 1]}, "`lora_scale` cannot be"),
        ({"lora": "ink", "lora_scale": True}, "`lora_scale` cannot be"),
        ({"lora": "ink", "lora_scale": -10.5}, "`lora_scale` cannot be"),
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
