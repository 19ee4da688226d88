"""Prompts on the device: they stop between layers, tell how far they are, and run in gaps."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from text_servers import case_of, saved, serving

from hybridge.engine import Engine, EngineOptions
from hybridge.engine.text import TextEngine
from hybridge.models import ModelSpec, TextSpec
from hybridge.protocol import DecodeRequest, PromptRequest, WireTensor
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.middleware.request_record import HUNG_UP, RequestRecord
from hybridge.server.process.server import running
from hybridge.server.scheduling.limits import PictureSize
from hybridge.server.scheduling.prompt_job import PromptJob
from hybridge.server.scheduling.vae_job import VaeJob

WAIT_S = 60
LAYERS, HELD = 31, 16  # of FLUX.2's encoder that are loaded, and the one before which runs are held


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> TextSpec:
    """FLUX.2's, which has the most layers."""
    return saved(case_of("Flux2Pipeline"), tmp_path_factory.mktemp("flux2"))


@pytest.fixture(scope="module")
def backend(spec: TextSpec, specs: dict[str, ModelSpec]) -> Iterator[LocalBackend]:
    made = LocalBackend({}, texts=[spec], cold=[specs["sd-v1"]], options=EngineOptions(device="cpu"))
    made.preload("tiny:text")
    made.preload("sd-v1")
    yield made
    made.close()


@pytest.fixture(scope="module")
def ended() -> queue.Queue[RequestRecord]:
    """The records of requests that have ended."""
    return queue.Queue()


@pytest.fixture(scope="module")
def server(backend: LocalBackend, ended: queue.Queue[RequestRecord]) -> Iterator[str]:
    with running(create_app(backend, observers=[ended.put])) as address:
        yield address


def layers_of(backend: LocalBackend) -> Any:
    engine = backend._models.peek("tiny:text")
    assert isinstance(engine, TextEngine)
    return engine.parts.encoders["text_encoder"].model.language_model.layers


class Held:
    """Holds whatever runs in its middle until it is let go, and counts the layers."""

    def __init__(self, layers: Any) -> None:
        self.begun, self.go, self.ran = threading.Event(), threading.Event(), 0
        self._handles = [layer.register_forward_pre_hook(self._count) for layer in layers]
        self._handles.append(layers[HELD].register_forward_pre_hook(self._hold))

    def _count(self, *_: Any) -> None:
        self.ran += 1

    def _hold(self, *_: Any) -> None:
        self.begun.set()
        assert self.go.wait(WAIT_S)

    def end(self) -> None:
        self.go.set()
        for handle in self._handles:
            handle.remove()


@pytest.fixture
def held(backend: LocalBackend) -> Iterator[Held]:
    made = Held(layers_of(backend))
    yield made
    made.end()


def is_answered(server: str) -> bool:
    """Whether the device is free again: it answers the next prompt only then."""
    return httpx.post(f"{server}/v1/tiny/prompt", json={"prompt": "next"}, timeout=WAIT_S).status_code == 200


def test_a_prompt_stops_when_its_client_leaves(
    server: str, backend: LocalBackend, held: Held, ended: queue.Queue[RequestRecord]
) -> None:
    async def leave() -> None:
        async with httpx.AsyncClient() as client:
            asking = asyncio.create_task(client.post(f"{server}/v1/tiny/prompt", json={"prompt": "a"}))
            assert await asyncio.to_thread(held.begun.wait, WAIT_S)
            asking.cancel()

    asyncio.run(leave())
    while ended.get(timeout=WAIT_S).status != HUNG_UP:
        pass
    assert held.ran == HELD + 1
    held.go.set()
    assert is_answered(server)
    assert held.ran == HELD + 1 + LAYERS


def test_a_prompt_stops_when_its_deadline_passes(server: str, held: Held) -> None:
    for deadline in ("0.5", "5", "50"):  # on a busy machine it may pass before the run begins
        late = httpx.post(
            f"{server}/v1/tiny/prompt", json={"prompt": "b"}, headers={"request-timeout": deadline}, timeout=WAIT_S
        )
        assert late.status_code == 504
        if held.begun.is_set():
            break
    held.go.set()
    assert is_answered(server)
    assert held.ran == HELD + 1 + LAYERS


def test_a_prompt_for_later_stops_when_it_is_cancelled(server: str, held: Held) -> None:
    accepted = httpx.post(f"{server}/v1/tiny/prompt", json={"prompt": "c"}, headers={"prefer": "respond-async"})
    assert held.begun.wait(WAIT_S)
    cancelled = httpx.delete(server + accepted.headers["location"])
    assert cancelled.status_code in (200, 204), cancelled.text
    held.go.set()
    assert is_answered(server)
    assert held.ran == HELD + 1 + LAYERS


def test_a_prompt_for_later_tells_how_far_it_is(server: str, held: Held) -> None:
    accepted = httpx.post(f"{server}/v1/tiny/prompt", json={"prompt": "d"}, headers={"prefer": "respond-async"})
    job = server + accepted.headers["location"]
    assert held.begun.wait(WAIT_S)
    status = httpx.get(job).json()
    held.go.set()
    assert status["state"] == "running"
    assert status["progress"] == pytest.approx(HELD / LAYERS, abs=0.1)
    assert '"state": "done"' in httpx.get(f"{job}/events", timeout=WAIT_S).text


# -------------------------------------------------------------------------------------------------- gaps


def decode(spec: ModelSpec, client: str) -> VaeJob:
    latents = WireTensor("float32", (1, 4, 8, 8), torch.zeros(1, 4, 8, 8).numpy().tobytes())
    return VaeJob(spec, DecodeRequest(latents, output="signed"), PictureSize(1, 64, 64), client=client)


def prompts(spec: TextSpec, texts: list[str], client: str) -> PromptJob:
    return PromptJob(spec, PromptRequest({"prompt": texts}), client=client)


def test_a_picture_runs_between_two_layers_and_another_prompt_of_the_model_does_not(
    spec: TextSpec, specs: dict[str, ModelSpec]
) -> None:
    """A backend of its own, whose pace nothing was measured for: then costs follow from the arithmetic alone."""
    backend = LocalBackend({}, texts=[spec], cold=[specs["sd-v1"]], options=EngineOptions(device="cpu"))
    backend.preload("tiny:text")
    backend.preload("sd-v1")
    held = Held(layers_of(backend))
    long, short = prompts(spec, ["a cat"] * 32, "a"), prompts(spec, ["a dog"], "b")
    picture = decode(specs["sd-v1"], "c")
    backend.cost(picture)  # from now on its plan is known
    assert backend.cost(long) > 5 * max(backend.cost(picture), backend.cost(short))
    alone = TextEngine.load(spec.source, EngineOptions(device="cpu")).encode({"prompt": ["a cat"] * 32})
    order: list[str] = []

    async def run(name: str, job: Any) -> Any:
        result = await backend.run(job)
        order.append(name)
        return result

    async def scene() -> Any:
        tasks = [asyncio.create_task(run("long", long))]
        assert await asyncio.to_thread(held.begun.wait, WAIT_S)
        tasks += [asyncio.create_task(run("short", short)), asyncio.create_task(run("picture", picture))]
        while backend.load().waiting < 2:  # noqa: ASYNC110 - nothing tells of a put, and it takes one turn
            await asyncio.sleep(0)
        held.go.set()
        return (await asyncio.gather(*tasks))[0]

    try:
        found = asyncio.run(scene()).answer.tensors["prompt_embeds"]
    finally:
        held.go.set()
        backend.close()
    assert order == ["picture", "long", "short"]
    expected = alone.tensors["prompt_embeds"]
    assert isinstance(expected, torch.Tensor)
    assert bytes(found.data) == expected.numpy().tobytes()


# ------------------------------------------------------------------------------------------------ memory


def test_a_prompt_without_room_is_refused_and_a_shorter_one_is_answered(spec: TextSpec) -> None:
    weights = TextEngine.expected_bytes(spec.source, EngineOptions(device="cpu"))
    with serving([spec], memory_bytes=weights + 2 * 2**20) as address:
        url = f"{address}/v1/tiny/prompt"
        long = httpx.post(url, json={"prompt": ["a"] * 16}, timeout=WAIT_S)
        short = httpx.post(url, json={"prompt": "a", "max_sequence_length": 64}, timeout=WAIT_S)
    assert long.status_code == 413
    assert "does not fit beside the weights in --memory" in long.json()["error"]
    assert short.status_code == 200
    plan = dict(part.split("=") for part in short.headers["hybridge-plan"].split("; "))
    assert 0 < int(plan["peak_bytes"]) < 2 * 2**20


def test_an_idle_model_leaves_for_a_prompt(spec: TextSpec, specs: dict[str, ModelSpec]) -> None:
    options = EngineOptions(device="cpu")
    room = TextEngine.expected_bytes(spec.source, options) + Engine.expected_bytes(specs["sd-v1"], options)
    backend = LocalBackend({}, texts=[spec], cold=[specs["sd-v1"]], options=options, memory_bytes=room)
    backend.preload("sd-v1")
    backend.preload("tiny:text")
    engine = backend._models.peek("tiny:text")
    assert isinstance(engine, TextEngine)
    wanted: list[int] = [0]
    inputs: dict[str, Any] = {"prompt": [], "max_sequence_length": 64}
    while wanted[-1] <= room - backend.load().weights_bytes:  # then it has no room beside both
        inputs["prompt"].append("a")
        engine.encode(inputs, reserve=wanted.append)
    assert wanted[-1] <= room - engine.weights_bytes
    try:
        asyncio.run(backend.run(PromptJob(spec, PromptRequest(inputs))))
        assert backend.load().evictions == {"sd-v1": 1, "tiny:text": 0}
    finally:
        backend.close()
