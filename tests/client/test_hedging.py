"""A client of two servers that asks the second one when the first takes long."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from hybridge.client import AsyncClient, Client
from hybridge.engine import Engine
from hybridge.errors import ClientError
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

WAIT_S = 60


class Held:
    """A server whose device is held by a decode that does not end before :attr:`go` is set."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.begun, self.go = threading.Event(), threading.Event()
        self.backend = LocalBackend({"sd-v1": self})  # type: ignore[dict-item]
        self.address = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def decode(self, *given: Any, **named: Any) -> Any:
        self.begun.set()
        assert self.go.wait(WAIT_S)
        return self._engine.decode(*given, **named)


@pytest.fixture
def held(engines: dict[str, Engine]) -> Iterator[Held]:
    held = Held(engines["sd-v1"])
    with running(create_app(held.backend)) as held.address, Client(held.address) as client:
        occupying = threading.Thread(target=client.decode, args=(latents(0),), kwargs={"output": "signed"})
        occupying.start()
        assert held.begun.wait(WAIT_S)
        try:
            yield held
        finally:
            held.go.set()
            occupying.join()


def latents(seed: int) -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def decode(kind: str, servers: list[str], **options: Any) -> Any:
    if kind == "blocking":
        with Client(servers, **options) as client:
            return client.decode(latents(7), model="sd-v1", output="signed")

    async def scene() -> Any:
        async with AsyncClient(servers, **options) as client:
            return await client.decode(latents(7), model="sd-v1", output="signed")

    return asyncio.run(scene())


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_the_sooner_answer_counts_and_the_other_server_drops_the_job(
    held: Held, server: str, engines: dict[str, Engine], kind: str
) -> None:
    picture = decode(kind, [held.address, server], hedge_after_s=0.2)
    assert torch.equal(picture, engines["sd-v1"].decode(latents(7)))
    until(lambda: held.backend.load().waiting == 0)


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_without_it_the_first_server_is_waited_for(held: Held, server: str, kind: str) -> None:
    with pytest.raises(ClientError):
        decode(kind, [held.address, server], deadline_s=0.7)
    with pytest.raises(ClientError):  # and one server is never asked twice at the same time
        decode(kind, [held.address], deadline_s=0.7, hedge_after_s=0.1)


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_a_second_server_that_refuses_does_not_end_the_first_call(
    held: Held, serve: Callable[..., str], kind: str
) -> None:
    asked = threading.Event()

    def refuse(handler: Any, _: bytes) -> None:
        handler.wfile.write(b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n")
        asked.set()
        held.go.set()

    picture = decode(kind, [held.address, serve(refuse)], hedge_after_s=0.1)
    assert picture.shape == (1, 3, 64, 64)
    assert asked.is_set()


def test_sampling_without_a_seed_is_sent_once(server: str) -> None:
    from hybridge.client.hedging import is_repeatable
    from hybridge.protocol import DecodeRequest, EncodeRequest
    from hybridge.protocol.torch import from_torch

    pixels = from_torch(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    assert is_repeatable(DecodeRequest(from_torch(latents(0))))
    assert is_repeatable(EncodeRequest(pixels))
    assert is_repeatable(EncodeRequest(pixels, sample=True, seed=1))
    assert not is_repeatable(EncodeRequest(pixels, sample=True))


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_time_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ClientError, match="hedge_after_s is no time"):
        Client(["http://a", "http://b"], hedge_after_s=seconds)
