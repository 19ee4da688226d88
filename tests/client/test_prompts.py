"""``encode_prompt``: what is sent for which arguments, and what a pipeline is given for the answer."""

from __future__ import annotations

import json
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from hybridge.client import AsyncClient, Client, Embeddings, ServerWarning, repeat_for_images
from hybridge.errors import BadAnswer, RequestError, ServerRefused
from hybridge.protocol import (
    PROMPT_ITEM_BYTES,
    PromptAnswer,
    PromptRequest,
    WireTensor,
    padding_of,
    read_prompt_request,
    write_prompt_answer,
)
from hybridge.protocol.torch import from_torch


def wire(tensor: torch.Tensor) -> WireTensor:
    return from_torch(tensor, PROMPT_ITEM_BYTES)


EMBEDS = torch.arange(1, 25, dtype=torch.bfloat16).reshape(2, 4, 3)
MASK = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
LLAMA = torch.arange(12.0).reshape(3, 2, 2)
ANSWER = PromptAnswer(
    {
        "prompt_embeds": wire(EMBEDS),
        "prompt_attention_mask": wire(MASK),
        "prompt_embeds_llama3": wire(LLAMA),
        "ragged": (wire(torch.ones(2, 3)), wire(torch.zeros(4, 3))),
        "prompt_cu_seqlens": wire(torch.tensor([0, 2, 5], dtype=torch.int32)),
    },
    {
        "prompt_embeds": "batch",
        "prompt_attention_mask": "batch",
        "prompt_embeds_llama3": "batch-axis-1",
        "ragged": "list",
        "prompt_cu_seqlens": "cu_seqlens",
    },
    {"model": "tiny", "dtype": "bfloat16"},
    {"prompt": (1,)},
)


class Server:
    """Answers every prompt with :data:`ANSWER`, and remembers what it was asked."""

    def __init__(self, models: list[Any] | None = None) -> None:
        self.asked: list[tuple[str, PromptRequest]] = []
        self.models = [{"name": "sdxl", "tasks": ["decode", "prompt"]}] if models is None else models
        self.headers: dict[str, str] = {}
        self.body: bytes | None = None
        self.status = 200

    def handle(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"models": self.models})
        headers = {name.lower(): value for name, value in request.headers.items()}
        asked = read_prompt_request(request.url.query.decode(), headers, request.read())
        self.asked.append((request.url.path, asked))
        padding = padding_of(ANSWER, {"prompt_embeds": "prompt_attention_mask"}) if asked.drop_padding else {}
        body = write_prompt_answer(ANSWER, padding) if self.body is None else self.body
        return httpx.Response(self.status, headers=self.headers, content=body)

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self.handle)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def client(server: Server) -> Client:
    return Client("http://box:8000", transport=server.transport)


def test_what_is_left_out_is_not_sent_and_none_is(client: Client, server: Server) -> None:
    client.encode_prompt(("a", "b"), model="my sdxl", negative_prompt=None, max_sequence_length=77)
    ((path, asked),) = server.asked
    assert path == "/v1/my%20sdxl/prompt" or path == "/v1/my sdxl/prompt"
    assert asked.inputs == {"prompt": ["a", "b"], "negative_prompt": None, "max_sequence_length": 77}
    assert asked.drop_padding


def test_the_answer_is_keyword_arguments(client: Client) -> None:
    embeddings = client.encode_prompt(["a", "b"], model="sdxl", drop_padding=False)
    assert dict(embeddings).keys() == ANSWER.tensors.keys()
    assert torch.equal(embeddings["prompt_embeds"], EMBEDS)
    assert torch.equal(embeddings["prompt_attention_mask"], MASK)
    assert [tuple(one.shape) for one in embeddings["ragged"]] == [(2, 3), (4, 3)]
    assert embeddings.metadata == {"model": "tiny", "dtype": "bfloat16"}
    assert embeddings.truncated == {"prompt": (1,)}


def test_padding_comes_back_as_zeros(client: Client) -> None:
    embeds = client.encode_prompt(["a", "b"], model="sdxl")["prompt_embeds"]
    assert torch.equal(embeds, EMBEDS * MASK.unsqueeze(-1))


def test_numpy_and_wire_are_kinds(client: Client) -> None:
    embeddings = client.encode_prompt("a", model="sdxl", kind="numpy", drop_padding=False, num_images_per_prompt=2)
    assert np.array_equal(embeddings["prompt_embeds"], EMBEDS.float().numpy().repeat(2, axis=0))
    assert embeddings["prompt_cu_seqlens"].tolist() == [0, 2, 4, 7, 10]
    assert embeddings["prompt_cu_seqlens"].dtype == np.int32
    assert client.encode_prompt("a", model="sdxl", kind="wire")["prompt_attention_mask"].dtype == "int64"
    with pytest.raises(RequestError, match="kind='torch'"):
        client.encode_prompt("a", model="sdxl", kind="wire", num_images_per_prompt=2)


def test_the_embeddings_of_one_prompt_stand_side_by_side(client: Client) -> None:
    one = client.encode_prompt(["a", "b"], model="sdxl", drop_padding=False)
    two = repeat_for_images(one, 2)
    assert torch.equal(two["prompt_embeds"], EMBEDS[[0, 0, 1, 1]])
    assert torch.equal(two["prompt_attention_mask"], MASK[[0, 0, 1, 1]])
    assert torch.equal(two["prompt_embeds_llama3"], LLAMA[:, [0, 0, 1, 1]])
    assert [len(part) for part in two["ragged"]] == [2, 2, 4, 4]
    assert two["prompt_cu_seqlens"].tolist() == [0, 2, 4, 7, 10]
    assert two["prompt_cu_seqlens"].dtype == torch.int32
    assert repeat_for_images(one, 1) is one
    assert isinstance(two, Embeddings)
    for wrong in (0, True, 1.5, None):
        with pytest.raises(RequestError, match="num_images_per_prompt"):
            repeat_for_images(one, wrong)  # type: ignore[arg-type]


def test_pictures_go_along(client: Client, server: Server, tmp_path: Any) -> None:
    picture = Image.new("RGB", (8, 8), "red")
    picture.save(tmp_path / "a.png")
    client.encode_prompt("a", model="edit", images=[picture, tmp_path / "a.png"])
    client.encode_prompt("a", model="edit", images=picture)
    assert [len(asked.images) for _, asked in server.asked] == [2, 1]
    with pytest.raises(RequestError, match="a picture: saw a tensor"):
        client.encode_prompt("a", model="edit", images=torch.zeros(1, 3, 8, 8))


def test_without_a_name_the_only_model_that_takes_prompts_is_meant(client: Client, server: Server) -> None:
    client.encode_prompt("a")
    assert server.asked[0][0] == "/v1/sdxl/prompt"


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([{"name": "a", "tasks": ["prompt"]}, {"name": "b", "tasks": ["prompt"]}], "saw a, b. Try: model='a'"),
        ([{"name": "a", "tasks": ["decode"]}, {"name": "older"}], "no model there takes prompts"),
    ],
)
def test_several_models_or_none_are_not_guessed_at(models: list[Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Client("http://box:8000", transport=Server(models).transport).encode_prompt("a")


def test_a_remark_of_the_server_is_passed_on(client: Client, server: Server) -> None:
    server.headers["hybridge-warning"] = "the prompt was cut to 77 tokens"
    with pytest.warns(ServerWarning, match="cut to 77 tokens") as caught:
        client.encode_prompt("a", model="sdxl")
    assert caught[0].filename == __file__


def test_a_refusal_says_what_the_server_said(client: Client, server: Server) -> None:
    server.status, server.body = 400, json.dumps({"error": "no such option", "code": "UnknownParameter"}).encode()
    with pytest.raises(ServerRefused, match="no such option"):
        client.encode_prompt("a", model="sdxl", clip_skipp=1)


def test_an_answer_of_somebody_else_is_refused(client: Client, server: Server) -> None:
    server.body = b"<html>"
    with pytest.raises(BadAnswer, match="safetensors"):
        client.encode_prompt("a", model="sdxl")


@pytest.mark.parametrize("prompt", [[], "\ud800", {"a": {"b": "c"}}, object()])
def test_what_cannot_be_sent_is_refused_here(client: Client, server: Server, prompt: Any) -> None:
    with pytest.raises(RequestError):
        client.encode_prompt(prompt, model="sdxl")
    assert not server.asked


def test_awaited_it_is_the_same(server: Server) -> None:
    async def main() -> Any:
        async with AsyncClient("http://box:8000", transport=server.transport) as client:
            return await client.encode_prompt(["a", "b"], num_images_per_prompt=2, drop_padding=False)

    assert torch.equal(anyio.run(main)["prompt_embeds"], EMBEDS[[0, 0, 1, 1]])


def _of_many(request: httpx.Request) -> httpx.Response:
    """A server that takes two prompts at once, and counts the letters of each."""
    if request.method == "GET":
        return httpx.Response(200, json={"models": [], "limits": {"max_batch": 2}})
    asked = read_prompt_request("", {"content-type": "application/json"}, request.read())
    texts = asked.inputs["prompt"]
    assert isinstance(texts, list)
    if len(texts) > 2:
        return httpx.Response(413, json={"error": "`prompt` has too many items", "code": "TooLarge"})
    lengths = torch.tensor([len(str(text)) for text in texts])
    sums = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(torch.int32)
    negative = torch.full((len(texts), 1), float(len(str(asked.inputs["negative_prompt"]))))
    tensors = {
        "prompt_embeds": wire(lengths.to(torch.bfloat16)[:, None]),
        "llama": wire(torch.stack([lengths, -lengths]).float()),
        "ragged": tuple(wire(torch.ones(int(length), 1)) for length in lengths),
        "cu_seqlens": wire(sums),
        "negative_prompt_embeds": wire(negative),
    }
    layouts = dict(zip(tensors, ("batch", "batch-axis-1", "list", "cu_seqlens", "batch"), strict=True))
    weights = "changed" if "changed" in texts else "same"
    cut = {"prompt": (len(texts) - 1,), "negative_prompt": (0,)}
    return httpx.Response(
        200, content=write_prompt_answer(PromptAnswer(tensors, layouts, {"weights": weights}, cut), {})
    )


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_too_many_prompts_go_in_several_requests(kind: Any) -> None:
    with Client("http://box:8000", transport=httpx.MockTransport(_of_many)) as client:
        prompts = ["a", "bbb", "cc", "dddd", "e"]
        found = client.encode_prompt(
            prompts, negative_prompt="no", model="sdxl", kind=kind, num_images_per_prompt=2
        )
    assert found["prompt_embeds"][:, 0].tolist() == [1, 1, 3, 3, 2, 2, 4, 4, 1, 1]
    assert found["llama"].tolist() == [[1, 1, 3, 3, 2, 2, 4, 4, 1, 1], [-1, -1, -3, -3, -2, -2, -4, -4, -1, -1]]
    assert [len(one) for one in found["ragged"]] == [1, 1, 3, 3, 2, 2, 4, 4, 1, 1]
    assert found["cu_seqlens"].tolist() == [0, 1, 2, 5, 8, 10, 12, 16, 20, 21, 22]
    assert found["cu_seqlens"].dtype == (torch.int32 if kind == "torch" else np.int32)
    assert found["negative_prompt_embeds"].tolist() == [[2.0]] * 10
    assert found.truncated == {"prompt": (1, 3, 4), "negative_prompt": (0,)}


def test_prompts_that_cannot_be_parted_are_refused_with_a_reason() -> None:
    with Client("http://box:8000", transport=httpx.MockTransport(_of_many)) as client:
        with pytest.raises(RequestError, match="kind='torch'"):
            client.encode_prompt(["a", "b", "c"], negative_prompt="", model="sdxl", kind="wire")
        with pytest.raises(BadAnswer, match="the text encoders changed between two requests: saw weights"):
            client.encode_prompt(["a", "b", "changed"], negative_prompt="", model="sdxl")
        with pytest.raises(ServerRefused, match="too many items"):
            client.encode_prompt(["a", "b", "c"], negative_prompt=["", ""], model="sdxl")


def test_embeddings_of_different_lengths_are_not_joined() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"models": [], "limits": {"max_batch": 1}})
        texts = read_prompt_request("", {"content-type": "application/json"}, request.read()).inputs["prompt"]
        assert isinstance(texts, list)
        if len(texts) > 1:
            return httpx.Response(413, json={"error": "too many"})
        answer = PromptAnswer(
            {"prompt_embeds": wire(torch.ones(1, len(str(texts[0])), 4))}, {"prompt_embeds": "batch"}
        )
        return httpx.Response(200, content=write_prompt_answer(answer, {}))

    with Client("http://box:8000", transport=httpx.MockTransport(handle)) as client:
        assert client.encode_prompt(["ab", "cd"], model="qwen")["prompt_embeds"].shape == (2, 2, 4)
        with pytest.raises(RequestError, match="pad to the longest prompt"):
            client.encode_prompt(["ab", "abc"], model="qwen")
