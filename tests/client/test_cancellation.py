"""Cancelling a call of AsyncClient: the server frees its place, and no connection is used again in the middle."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hybridge.client import AsyncClient
from hybridge.engine import Engine
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

WAIT_S = 60


class HeldEngine:
    """An engine that holds every decode until it is let go."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.begun, self.go = threading.Semaphore(0), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def decode(self, *given: Any, **named: Any) -> Any:
        self.begun.release()
        assert self.go.wait(WAIT_S)
        return self._engine.decode(*given, **named)


async def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def latents(seed: int) -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_the_server_frees_the_place(engines: dict[str, Engine]) -> None:
    engine = HeldEngine(engines["sd-v1"])
    backend = LocalBackend({"sd-v1": engine})  # type: ignore[dict-item]

    async def scene(address: str) -> torch.Tensor:
        async with AsyncClient(address) as client:
            # The first alone: of calls that are begun together, any may be the one that runs.
            calls = [asyncio.create_task(client.decode(latents(0), output="signed"))]
            assert await asyncio.to_thread(engine.begun.acquire, timeout=WAIT_S)
            calls += [asyncio.create_task(client.decode(latents(seed), output="signed")) for seed in (1, 2)]
            await until(lambda: backend.load().waiting == 2)
            for call in calls[1:]:  # those that wait
                call.cancel()
            await until(lambda: backend.load().waiting == 0)
            calls[0].cancel()  # and the one that runs, which cannot be stopped before its next strip
            for call in calls:
                with pytest.raises(asyncio.CancelledError):
                    await call
            engine.go.set()
            await until(lambda: backend.load().running == 0)
            picture: torch.Tensor = await client.decode(latents(7), output="signed")
            return picture

    with running(create_app(backend)) as address:
        try:
            picture = asyncio.run(scene(address))
        finally:
            engine.go.set()
    assert torch.equal(picture, engines["sd-v1"].decode(latents(7)))


@pytest.mark.parametrize("sent", ["nothing", "half of the head", "the head", "half of the body"])
def test_a_connection_is_not_used_again_in_the_middle(serve: Callable[..., str], sent: str) -> None:
    """Else the rest of the first answer would be read as the second one."""
    is_sent, is_over = threading.Event(), threading.Event()
    peers: list[Any] = []
    body = np.full((1, 3, 64, 64), 0.5, "<f4").tobytes()
    wrong = np.full((1, 3, 64, 64), -0.5, "<f4").tobytes()

    def talk(handler: Any, _: bytes) -> None:
        peers.append(handler.client_address)
        is_first = len(peers) == 1
        head = "HTTP/1.1 200 OK\r\ncontent-type: tensor/binary\r\nshape: [1,3,64,64]\r\ndtype: float32\r\n"
        whole = f"{head}content-length: {len(body)}\r\n\r\n".encode()
        if not is_first:
            handler.wfile.write(whole + body)
            return
        ends = {"nothing": 0, "half of the head": 40, "the head": len(whole), "half of the body": len(whole) + 999}
        answer = whole + wrong
        handler.wfile.write(answer[: ends[sent]])
        handler.wfile.flush()
        is_sent.set()
        assert is_over.wait(WAIT_S)
        try:
            handler.wfile.write(answer[ends[sent] :])
        except OSError:  # the client hung up, as it should
            handler.close_connection = True

    async def scene(address: str) -> torch.Tensor:
        async with AsyncClient(address) as client:
            call = asyncio.create_task(client.decode(latents(0), model="x", output="signed"))
            assert await asyncio.to_thread(is_sent.wait, WAIT_S)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            is_over.set()
            picture: torch.Tensor = await client.decode(latents(0), model="x", output="signed")
            return picture

    picture = asyncio.run(scene(serve(talk)))
    assert torch.equal(picture, torch.full((1, 3, 64, 64), 0.5))
    assert len(set(peers)) == 2
