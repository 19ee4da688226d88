"""``POST /v1/{model}/prompt`` on a real server with a small pipeline's real text encoders."""

from __future__ import annotations

import http.client
import io
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load
from text_pipelines import Case
from text_servers import case_of, saved, serving

from hybridge.engine import EngineOptions
from hybridge.engine.text import TextEngine
from hybridge.models import TextSpec

PROMPTS = ["a cat in rain", "two trees"]


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TextSpec]:
    """By a short name each: two CLIPs, CLIP and T5, T5 with a mask, Mistral."""
    classes = {
        "sdxl": "StableDiffusionXLPipeline",
        "flux": "FluxPipeline",
        "ltx": "LTXPipeline",
        "flux2": "Flux2Pipeline",
    }
    made = {name: saved(case_of(cls), tmp_path_factory.mktemp(name)) for name, cls in classes.items()}
    return {name: TextSpec(name, spec.source, spec.class_name) for name, spec in made.items()}


@pytest.fixture(scope="module")
def server(specs: dict[str, TextSpec]) -> Iterator[str]:
    with serving(list(specs.values())) as address:
        yield address


def engine(spec: TextSpec) -> TextEngine:
    return TextEngine.load(spec.source, EngineOptions(device="cpu"))


def ask(server: str, model: str, body: Any, *, query: str = "", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    url = f"{server}/v1/{model}/prompt?{query}"
    return httpx.post(url, content=content, headers={"content-type": "application/json", **headers}, timeout=60)


def tensors(response: httpx.Response) -> dict[str, torch.Tensor]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-safetensors"
    return load(response.content)


def metadata(response: httpx.Response) -> dict[str, str]:
    length = int.from_bytes(response.content[:8], "little")
    about: dict[str, str] = json.loads(response.content[8 : 8 + length])["__metadata__"]
    return about


@pytest.mark.parametrize("model", ["sdxl", "flux", "ltx", "flux2"])
def test_embeddings_are_the_engines_to_the_last_bit(server: str, specs: dict[str, TextSpec], model: str) -> None:
    inputs: dict[str, Any] = {"prompt": PROMPTS}
    if model != "flux2":
        inputs["negative_prompt"] = ["blurry", ""]
    expected = engine(specs[model]).encode(inputs).tensors
    found = tensors(ask(server, model, inputs))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert isinstance(tensor, torch.Tensor)
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype


def test_null_empty_and_absent_negatives_are_three_things(server: str, specs: dict[str, TextSpec]) -> None:
    absent = tensors(ask(server, "sdxl", {"prompt": "a"}))
    null = tensors(ask(server, "sdxl", {"prompt": "a", "negative_prompt": None}))
    empty = tensors(ask(server, "sdxl", {"prompt": "a", "negative_prompt": ""}))
    assert "negative_prompt_embeds" not in absent
    assert not null["negative_prompt_embeds"].any()  # force_zeros_for_empty_prompt
    assert empty["negative_prompt_embeds"].any()


def test_the_answer_says_what_made_it(server: str) -> None:
    response = ask(server, "sdxl", {"prompt": "made by what?"})
    about = metadata(response)
    assert about["model"] == response.headers["hybridge-model"] == "sdxl"
    assert about["class"] == "StableDiffusionXLPipeline"
    assert about["dtype"] == "float32"
    assert json.loads(about["layouts"]) == {"prompt_embeds": "batch", "pooled_prompt_embeds": "batch"}
    assert {"revision", "weights", "torch", "transformers", "diffusers"} <= about.keys()
    assert "mode=text" in response.headers["hybridge-plan"]
    assert "device;dur=" in response.headers["server-timing"]


def test_padding_is_left_out_only_for_who_asks(server: str) -> None:
    whole = ask(server, "ltx", {"prompt": "a cat", "max_sequence_length": 100})
    short = ask(server, "ltx", {"prompt": "a cat", "max_sequence_length": 100}, query="drop_padding=True")
    mask = tensors(whole)["prompt_attention_mask"]
    assert tensors(whole)["prompt_embeds"].shape[1] == 100
    assert tensors(short)["prompt_embeds"].shape[0] == int(mask.sum()) < 100
    assert json.loads(metadata(short)["padding"])["prompt_embeds"] == [100, [[0, int(mask.sum())]]]
    assert "padding" not in metadata(whole)


def test_a_prompt_that_was_cut_is_told_without_its_words(server: str) -> None:
    response = ask(server, "sdxl", {"prompt": ["short", "a secret " * 200]})
    assert json.loads(metadata(response)["truncated"]) == {"prompt": [1]}
    assert "prompt 1" in response.headers["hybridge-warning"]
    assert "secret" not in response.headers["hybridge-warning"]


def test_other_envelopes_hold_one_tensor(server: str) -> None:
    expected = tensors(ask(server, "flux", {"prompt": "a"}))["prompt_embeds"]
    binary = ask(server, "flux", {"prompt": "a"}, query="envelope=binary&dtype=float16")
    assert (binary.headers["dtype"], binary.headers["content-type"]) == ("float16", "tensor/binary")
    read = torch.frombuffer(bytearray(binary.content), dtype=torch.float16)
    assert torch.equal(read.reshape(json.loads(binary.headers["shape"])), expected.half())
    pickled = ask(server, "flux", {"prompt": "a"}, query="envelope=torch")
    assert torch.equal(torch.load(io.BytesIO(pickled.content), weights_only=True), expected)
    half = tensors(ask(server, "flux", {"prompt": "a"}, query="dtype=bfloat16"))
    assert torch.equal(half["prompt_embeds"], expected.bfloat16())


# ------------------------------------------------------------------------------------------- the cache


def test_what_was_made_before_comes_from_memory(server: str) -> None:
    first = ask(server, "sdxl", {"prompt": "a lighthouse", "clip_skip": 1})
    again = ask(server, "sdxl", {"clip_skip": 1, "prompt": "a lighthouse"})
    assert (first.headers["hybridge-cache"], again.headers["hybridge-cache"]) == ("miss", "hit")
    assert first.content == again.content
    for other in ({"prompt": "a lighthouse"}, {"prompt": ["a lighthouse"], "clip_skip": 1}):
        assert ask(server, "sdxl", other).headers["hybridge-cache"] == "miss"
    assert ask(server, "flux", {"prompt": "a lighthouse"}).headers["hybridge-cache"] == "miss"
    shown = httpx.get(f"{server}/metrics").text
    assert 'hybridge_prompt_cache_total{model="sdxl",result="hit"}' in shown
    assert "lighthouse" not in shown


def test_without_room_nothing_is_kept(specs: dict[str, TextSpec]) -> None:
    with serving([specs["flux"]], cache_bytes=0) as address:
        answers = [ask(address, "flux", {"prompt": "a"}) for _ in range(2)]
    assert [answer.headers["hybridge-cache"] for answer in answers] == ["miss", "miss"]
    assert answers[0].content == answers[1].content


def test_prompts_are_in_no_log(server: str, caplog: pytest.LogCaptureFixture) -> None:
    ours = logging.getLogger("hybridge")
    ours.addHandler(caplog.handler)  # which may not pass its records on, if another test has set it up
    try:
        with caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, "hybridge"):
            ask(server, "sdxl", {"prompt": "xyzzy"})
            ask(server, "sdxl", {"prompt": "xyzzy", "clip_skipp": 1})
    finally:
        ours.removeHandler(caplog.handler)
    assert "refused: sdxl has no `clip_skipp`" in caplog.text
    assert "xyzzy" not in caplog.text


# ------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"prompt": []}, 400, "`prompt` is an empty list"),
        ({"prompt": ["a"] * 10_000}, 413, "saw 10000, expected at most 32"),
        ({"prompt": "a" * 2**20}, 413, "the JSON body is too large"),
        (b'{"prompt": "\\ud800"}', 400, "lone surrogate"),
        (b'{"prompt": "\xff"}', 400, "not UTF-8"),
        ({"prompt": "a", "clip_skipp": 1}, 400, "Try: clip_skip"),
        ({"prompt": "a", "max_sequence_length": 77}, 400, "sdxl has no `max_sequence_length`"),
        ({"prompt": "a", "clip_skip": 1000}, 400, "`clip_skip` cannot be"),
        ({"prompt": None}, 400, "there is no prompt"),
        ({"prompt": ["a", "b"], "negative_prompt": ["c"]}, 400, "another number of texts"),
        ({"prompt": {"a": 1}}, 400, "`prompt` is no text"),
        ({}, 400, "no object with members"),
    ],
)
def test_bad_input_is_told_and_the_server_goes_on(server: str, body: Any, status: int, said: str) -> None:
    response = ask(server, "sdxl", body)
    assert response.status_code == status
    assert said in response.json()["error"]
    assert ask(server, "sdxl", {"prompt": "a"}).status_code == 200


def test_a_length_above_the_limit_is_refused(server: str) -> None:
    response = ask(server, "flux", {"prompt": "a", "max_sequence_length": 513})
    assert response.status_code == 400
    assert "512" in response.json()["error"]


def test_a_model_without_text_encoders_says_who_has_some(specs: dict[str, TextSpec], starter: Any) -> None:
    with serving([specs["flux"]], cold=[starter]) as address:
        response = ask(address, "starter", {"prompt": "a"})
        decoded = httpx.post(f"{address}/v1/flux/decode?shape=1,4,8,8&dtype=float32", content=bytes(1024))
        models = {model["name"]: model for model in httpx.get(f"{address}/v1/models").json()["models"]}
    assert (response.status_code, decoded.status_code) == (400, 400)
    assert "starter has no text encoders on this server" in response.json()["error"]
    assert "flux has no VAE on this server" in decoded.json()["error"]
    assert (models["starter"]["tasks"], models["flux"]["tasks"]) == (["decode", "encode"], ["prompt"])
    assert models["flux"]["text"]["class"] == "FluxPipeline"


@pytest.fixture(scope="module")
def starter() -> Any:
    from hybridge.models import look_up

    return look_up("starter")


def test_a_missing_tokenizer_is_told(tmp_path: Path) -> None:
    case: Case = case_of("FluxPipeline")
    spec = saved(case, tmp_path)
    for file in (tmp_path / "text" / "tokenizer_2").iterdir():
        file.unlink()
    with serving([spec]) as address:
        response = ask(address, "tiny", {"prompt": "a"})
        health = httpx.get(f"{address}/health")
    assert response.status_code == 503
    assert response.json()["code"] == "ModelUnavailable"
    assert str(tmp_path) not in response.text
    assert health.status_code == 200


NESTED = 50_000


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"prompt": ' + b"[" * NESTED + b"]" * NESTED + b"}", "nested too deeply"),
        (b'{"prompt": "a", "prompt": "b"}', "a key twice: saw 'prompt'"),
        (b'{"prompt": "a", "max_sequence_length": NaN}', "saw NaN"),
        (b'{"prompt": "a", "max_sequence_length": 1e400}', "no finite number"),
        (b'{"prompt": "a", "max_sequence_length": ' + b"9" * 5000 + b"}", "a number of 5000 digits"),
        ({"prompt": "a", "max_sequence_length": 0}, "a whole number from 1 to "),
        ({"prompt": "a", "max_sequence_length": -1}, "a whole number from 1 to "),
        ({"prompt": "a", "max_sequence_length": 10**9}, "a whole number from 1 to "),
        ({"prompt": "a", "max_sequence_length": True}, "a whole number from 1 to "),
        ({"prompt": "a", "max_sequence_length": 8.0}, "a whole number from 1 to "),
        ({"prompt": ["a", None]}, "no list of texts"),
        ({"prompt": ["a", ["b"]]}, "nested too deeply"),
    ],
)
def test_strange_json_is_refused_on_every_wire(server: str, body: Any, said: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    for path in ("/v1/flux/prompt", "/v1/flux2/prompt", "/predict"):
        response = httpx.post(
            server + path, content=content, headers={"content-type": "application/json"}, timeout=60
        )
        assert response.status_code in (400, 413), path
        assert said in response.json()["error"], path


def test_pictures_where_none_are_read_are_refused(server: str) -> None:
    files = [("request", (None, b'{"prompt": "a"}', "application/json"))]
    files.append(("image", ("a.png", b"\x89PNG\r\n\x1a\n", "image/png")))
    response = httpx.post(f"{server}/v1/sdxl/prompt", files=files)  # type: ignore[arg-type]
    assert response.status_code == 400
    assert "sdxl reads no picture" in response.json()["error"]


# -------------------------------------------------------------------------------- line, jobs and memory


def test_prompts_can_be_done_later(server: str) -> None:
    accepted = ask(server, "flux", {"prompt": "later"}, prefer="respond-async")
    assert accepted.status_code == 202
    here = server + accepted.headers["location"]
    with httpx.stream("GET", here + "/events", timeout=60) as events:
        assert "done" in "".join(events.iter_text())
    now = ask(server, "flux", {"prompt": "later"})
    assert httpx.get(here + "/result").content == now.content


def test_a_deadline_holds_for_prompts(server: str) -> None:
    response = ask(server, "flux", {"prompt": "in time?"}, **{"request-timeout": "0.000001"})
    assert response.status_code == 504


def needed_bytes(engine: TextEngine, inputs: dict[str, Any]) -> int:
    """What weights and a run take together."""
    peaks: list[int] = []
    engine.encode(inputs, reserve=peaks.append)
    return engine.weights_bytes + max(peaks)


def test_models_leave_for_each_other(specs: dict[str, TextSpec]) -> None:
    """Two that do not fit together: each is loaded when it is asked for, and the other leaves."""
    pair = {"flux": {"prompt": "a", "max_sequence_length": 8}, "sdxl": {"prompt": "a"}}
    room = max(needed_bytes(engine(specs[name]), inputs) for name, inputs in pair.items())
    other = {**pair["flux"], "prompt": "b"}
    expected = engine(specs["flux"]).encode(other).tensors["prompt_embeds"]
    with serving([specs[name] for name in pair], memory_bytes=room) as address:
        for name, inputs in pair.items():
            assert ask(address, name, inputs).status_code == 200
        again = ask(address, "flux", other)
        shown = httpx.get(f"{address}/metrics").text
    assert torch.equal(tensors(again)["prompt_embeds"], expected)
    assert 'hybridge_model_evictions_total{model="flux:text"} 1.0' in shown


def test_eight_threads_get_what_one_would(specs: dict[str, TextSpec]) -> None:
    """A thousand requests of mixed lengths and options, none answered from memory.

    A fast tokenizer that two threads use at a time raises "Already borrowed", and its lengths are state.
    """
    one = engine(specs["ltx"])
    assert one.parts.pipeline.tokenizer.is_fast
    negatives = [{}, {"negative_prompt": None}, {"negative_prompt": "blurry"}]
    requests = [
        {
            "prompt": ["cat " * (n % 7 + 1)] * (n % 5 // 4 + 1),
            "max_sequence_length": 8 + 8 * (n % 3),
            **negatives[n % 3],
        }
        for n in range(40)
    ]
    expected = [one.encode(request).tensors for request in requests]
    wrong: list[Any] = []

    def work(worker: int) -> None:
        # Not httpx, which takes more of the processor than the encoder does.
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=120)
        for turn in range(125):
            n = (worker * 5 + turn) % len(requests)
            headers = {"content-type": "application/json"}
            connection.request("POST", "/v1/ltx/prompt", json.dumps(requests[n]), headers)
            response = connection.getresponse()
            content = response.read()
            found = load(content) if response.status == 200 else {}
            same = found.keys() == expected[n].keys() and all(
                torch.equal(found[name], tensor)  # type: ignore[arg-type]
                for name, tensor in expected[n].items()
            )
            if not same or response.getheader("hybridge-cache") != "miss":
                wrong.append((n, response.status, content[:200]))
        connection.close()

    with serving([specs["ltx"]], cache_bytes=0) as address:
        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_hit_does_not_ask_the_device(server: str) -> None:
    ask(server, "flux", {"prompt": "once"})
    hit = ask(server, "flux", {"prompt": "once"})
    assert hit.headers["hybridge-cache"] == "hit"
    assert "device" not in hit.headers["server-timing"]


# --------------------------------------------------------------------------------- what is told of it


def test_the_document_describes_prompts_where_there_are_text_encoders(
    server: str, specs: dict[str, TextSpec], starter: Any
) -> None:
    document = httpx.get(f"{server}/openapi.json").json()
    assert "/v1/{model}/decode" not in document["paths"]
    operation = document["paths"]["/v1/{model}/prompt"]
    assert operation["parameters"][0]["schema"]["enum"] == list(specs)
    named = {parameter["name"] for parameter in operation["post"]["parameters"] if parameter["in"] == "query"}
    assert named == {"convention", "drop_padding", "envelope", "dtype"}
    assert {"application/json", "multipart/form-data"} == operation["post"]["requestBody"]["content"].keys()
    with serving([], cold=[starter]) as address:
        assert "/v1/{model}/prompt" not in httpx.get(f"{address}/openapi.json").json()["paths"]


def test_models_say_their_options_and_what_they_were_made_with(server: str) -> None:
    assert ask(server, "flux", {"prompt": "a"}).status_code == 200
    model = httpx.get(f"{server}/v1/models/flux").json()
    assert (model["tasks"], model["prompt"]) == (["prompt"], "/v1/flux/prompt")
    assert "latent_channels" not in model
    assert {"prompt", "prompt_2", "negative_prompt", "max_sequence_length"} <= set(model["text"]["options"])
    assert model["text"]["dtype"] == model["text"]["made_with"]["dtype"] == "float32"
    assert model["text"]["weights_bytes"] > 0


def test_one_name_can_have_a_vae_and_text_encoders(specs: dict[str, TextSpec], starter: Any) -> None:
    both = TextSpec("starter", specs["flux"].source, specs["flux"].class_name)
    with serving([both], cold=[starter]) as address:
        (model,) = httpx.get(f"{address}/v1/models").json()["models"]
        decoded = httpx.post(f"{address}/v1/starter/decode?shape=1,4,8,8&dtype=float32", content=bytes(1024))
        assert ask(address, "starter", {"prompt": "a"}).status_code == decoded.status_code == 200
    assert model["tasks"] == ["decode", "encode", "prompt"]
    assert (model["class"], model["text"]["class"]) == ("AutoencoderKL", "FluxPipeline")
