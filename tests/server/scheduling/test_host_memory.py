"""Models that leave an accelerator wait in the host's memory, and come back without being loaded again.

The server's tests have a CPU in the part of the accelerator: weights that move are copied.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import transformers
from safetensors.torch import load
from text_servers import case_of, saved, serving

from hybridge.engine import EngineOptions, offload_memory, options
from hybridge.engine.text import TextEngine
from hybridge.errors import OutOfMemory
from hybridge.server.scheduling.model_cache import ModelCache
from hybridge.server.scheduling.model_slot import Offload, Source
from hybridge.server.settings import Settings

WAIT_S = 30
CPU = EngineOptions(device="cpu")


class Weights:
    def __init__(self, weights_bytes: int) -> None:
        self.weights_bytes, self.is_on_host = weights_bytes, False


class Shop:
    """A cache with an accelerator of 15 bytes and a host of ``host_bytes``; a test can hold and break moves."""

    def __init__(self, host_bytes: int, **sizes: int) -> None:
        self.loads: list[str] = []
        self.changed, self.failed = threading.Semaphore(0), threading.Semaphore(0)
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()
        self.error: Exception | None = None
        self.cache: ModelCache[Any] = ModelCache(
            {},
            {name: self._source(name, size) for name, size in sizes.items()},
            memory_bytes=15,
            on_change=self.changed.release,
            on_failure=lambda name, error: self.failed.release(),
            host_bytes=host_bytes,
        )

    def _source(self, name: str, size: int) -> Source[Weights]:
        def load() -> Weights:
            self.loads.append(name)
            return Weights(size)

        def can_move(model: Weights) -> bool:
            return name != "vae"

        def to_host(model: Weights) -> None:
            self._move(model, is_to_host=True)

        def to_device(model: Weights) -> None:
            self._move(model, is_to_host=False)

        offload = Offload(can_move, to_host, to_device)
        return Source(lambda: size, load, offload)

    def _move(self, model: Weights, *, is_to_host: bool) -> None:
        self.begun.set()
        assert self.go.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        assert model.is_on_host != is_to_host
        model.is_on_host = is_to_host

    def use(self, name: str) -> None:
        self.cache.request(name)
        while not self.cache.is_ready(name):
            assert self.changed.acquire(timeout=WAIT_S)
        with self.cache.claim(name) as model:
            assert not model.is_on_host
        self.cache.release(name)

    def host(self) -> dict[str, int]:
        held = {name: self.cache.state_of(name).host_bytes for name in self.cache._slots}
        assert self.cache.host_bytes == sum(held.values())
        return {name: size for name, size in held.items() if size}


def test_what_left_comes_back_without_a_load() -> None:
    shop = Shop(10, text=10, vae=10)
    for _ in range(3):
        shop.use("text")
        assert (shop.host(), shop.cache.weights_bytes) == ({}, 10)
        shop.use("vae")
        assert (shop.host(), shop.cache.weights_bytes) == ({"text": 10}, 10)
    assert shop.loads == ["text", "vae", "vae", "vae"]  # the second cannot be moved
    state = shop.cache.state_of("text")
    assert (state.state, state.loads, state.restores, state.evictions) == ("cold", 1, 2, 3)
    shop.cache.close()


def test_who_has_waited_longest_on_the_host_makes_room_there() -> None:
    shop = Shop(20, a=10, b=10, c=10, d=15)
    for name in ("a", "b", "c"):
        shop.use(name)
    assert shop.host() == {"a": 10, "b": 10}
    shop.use("a")
    assert shop.host() == {"b": 10, "c": 10}
    shop.use("d")
    assert shop.host() == {"c": 10, "a": 10}
    shop.use("b")
    assert shop.host() == {"d": 15}
    shop.cache.close()


def test_a_host_without_room_keeps_nothing() -> None:
    shop = Shop(9, text=10, vae=10)
    for name in ("text", "vae", "text"):
        shop.use(name)
    assert (shop.loads, shop.host()) == (["text", "vae", "text"], {})
    shop.cache.close()


def test_a_move_that_fails_costs_a_load() -> None:
    shop = Shop(10, text=10, vae=10)
    shop.use("text")
    shop.error = OutOfMemory("no memory on the host")
    shop.use("vae")
    assert shop.host() == {}
    shop.error = None
    shop.use("text")
    assert shop.loads == ["text", "vae", "text"]
    shop.cache.close()


def test_a_way_back_that_fails_is_told_and_then_loaded() -> None:
    shop = Shop(10, text=10, vae=10)
    shop.use("text")
    shop.use("vae")
    shop.error = OutOfMemory("no memory on the device")
    shop.cache.request("text")
    assert shop.failed.acquire(timeout=WAIT_S)
    shop.cache.release("text")
    assert shop.host() == {}
    shop.error = None
    shop.cache._slots["text"].retry_at = 0.0
    shop.use("text")
    assert shop.loads == ["text", "vae", "text"]
    shop.cache.close()


def test_others_go_on_while_weights_move() -> None:
    shop = Shop(10, text=10, vae=10, small=5)
    shop.use("text")
    shop.go.clear()
    shop.begun.clear()
    mover = threading.Thread(target=shop.use, args=("vae",))
    mover.start()
    assert shop.begun.wait(WAIT_S)
    assert shop.cache.state_of("text").state == "leaving"
    assert (shop.host(), shop.cache.weights_bytes) == ({"text": 10}, 10)  # counted on both sides
    with shop.cache.claim("text") as model:
        assert model is None
    shop.cache.request("text")  # and it is wanted again
    shop.go.set()
    mover.join(WAIT_S)
    shop.use("text")
    shop.cache.release("text")
    assert shop.loads == ["text", "vae"]
    shop.cache.close()


def test_a_run_that_needs_room_waits_for_the_move() -> None:
    shop = Shop(10, text=10, vae=4)
    shop.use("text")
    shop.use("vae")
    with shop.cache.claim("vae"), shop.cache.running(0) as grow:
        grow(11)
        assert shop.host() == {"text": 10}
        assert shop.cache.room_bytes() == 0
    shop.cache.close()


def test_a_model_in_use_does_not_move_when_the_server_closes() -> None:
    shop = Shop(10, text=10, vae=10)
    shop.use("text")
    with shop.cache.claim("text") as model:
        shop.cache.request("vae")
        with shop.cache._changed:
            assert shop.cache._changed.wait_for(lambda: shop.cache._slots["text"].state == "leaving", WAIT_S)
        shop.cache.close(WAIT_S)
        assert not model.is_on_host


# ------------------------------------------------------------------------------------------- the server


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A CPU as an accelerator; the devices to which encoders are moved."""
    made: list[str] = []

    def copied(model: Any, device: torch.device) -> Any:
        made.append(str(device))
        return model._apply(torch.clone)

    monkeypatch.setattr(TextEngine, "can_be_offloaded", property(lambda engine: True))
    monkeypatch.setattr(transformers.PreTrainedModel, "to", copied)
    return made


def test_prompts_have_the_same_bits_without_the_files(tmp_path: Path, moves: list[str]) -> None:
    """Two models that do not fit together, each with a CLIP and a T5 whose table has two names."""
    text = saved(case_of("FluxPipeline"), tmp_path)
    config = transformers.T5Config.from_pretrained(Path(text.source) / "text_encoder_2")
    config.update({"d_ff": 2048, "num_layers": 12})
    transformers.T5EncoderModel(config).save_pretrained(Path(text.source) / "text_encoder_2")
    own = TextEngine.load(text.source, CPU).weights_bytes

    def prompt(address: str, name: str) -> dict[str, torch.Tensor]:
        inputs = {"prompt": "a cat", "max_sequence_length": 8}
        answer = httpx.post(f"{address}/v1/{name}/prompt", json=inputs, timeout=60)
        assert answer.status_code == 200, answer.text
        return load(answer.content)

    def said(address: str, name: str) -> tuple[int, int | None]:
        about = httpx.get(f"{address}/v1/models/{name}").json()["text"]
        return about["host_bytes"], about["weights_bytes"]

    texts = [text, replace(text, name="other")]
    with serving(texts, cache_bytes=0, memory_bytes=2 * own - 1, offload_bytes=2 * own) as address:
        first = prompt(address, "tiny")
        moves.clear()  # they were loaded
        prompt(address, "other")
        assert (said(address, "tiny"), said(address, "other")) == ((own, None), (0, own))
        for weights in Path(text.source).glob("text_encoder*/*.safetensors"):
            weights.unlink()
        again = prompt(address, "tiny")
        assert (said(address, "tiny"), said(address, "other")) == ((0, own), (own, None))
        metrics = httpx.get(f"{address}/metrics").text
    assert len(moves) > 4
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert 'hybridge_model_loads_total{model="tiny:text"} 1.0' in metrics
    assert 'hybridge_model_restores_total{model="tiny:text"} 1.0' in metrics
    held = next(line for line in metrics.splitlines() if line.startswith("hybridge_host_weights_bytes "))
    assert float(held.split()[1]) == own


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    engine = TextEngine.load(saved(case_of("FluxPipeline"), tmp_path).source, EngineOptions(device="cuda"))
    before = engine.encode({"prompt": "a cat"}).tensors["prompt_embeds"]
    assert engine.can_be_offloaded
    engine.to_host()
    assert {one.device.type for model in engine.parts.encoders.values() for one in model.parameters()} == {"cpu"}
    engine.to_device()
    after = engine.encode({"prompt": "a cat"}).tensors["prompt_embeds"]
    assert isinstance(before, torch.Tensor)
    assert isinstance(after, torch.Tensor)
    assert torch.equal(before, after)


def test_weights_on_a_cpu_stay(tmp_path: Path) -> None:
    assert not TextEngine.load(saved(case_of("FluxPipeline"), tmp_path).source, CPU).can_be_offloaded


def test_half_of_the_hosts_memory_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "available_bytes", lambda: 1000)
    assert offload_memory("meta") == 500
    assert offload_memory("cpu") == 0
    monkeypatch.setattr(options, "available_bytes", lambda: None)
    assert offload_memory("meta") == 0


def test_the_setting() -> None:
    assert Settings().offload_memory is None
    assert Settings(offload_memory="24GiB").offload_memory == 24 * 2**30  # type: ignore[arg-type]
    assert Settings(offload_memory="0").offload_memory == 0  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="such as 6GB"):
        Settings(offload_memory="much")  # type: ignore[arg-type]
