"""Deadlines and progress, on real sockets."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hybridge.client import AsyncClient, Client, Retry
from hybridge.errors import Overloaded, ServerRefused, ServerTimeout
from hybridge.protocol import TensorAnswer, WireTensor, write_answer, write_failure

LATENTS = np.ones((1, 4, 256, 256), np.float32)
PIXELS = write_answer(TensorAnswer(WireTensor("uint8", (1, 512, 512, 3), bytes(512 * 512 * 3))))

Handler = http.server.BaseHTTPRequestHandler
Serve = Callable[[Callable[[Handler, bytes], None]], str]


def say(handler: Handler, response: Any, *, trickle: threading.Event | None = None) -> None:
    handler.send_response(response.status)
    for name, value in {**response.headers, "content-length": str(len(response.body))}.items():
        handler.send_header(name, value)
    handler.end_headers()
    if trickle is None:
        handler.wfile.write(response.body)
        return
    for index in range(len(response.body)):  # a byte at a time: no single read is ever late
        if trickle.wait(0.01):
            break
        handler.wfile.write(response.body[index : index + 1])
    handler.close_connection = True


def test_servers_are_told_how_long_somebody_waits(serve: Serve) -> None:
    heard: list[str] = []

    def talk(handler: Handler, body: bytes) -> None:
        heard.append(handler.headers.get("request-timeout", "nothing"))
        say(handler, PIXELS)

    url = serve(talk)
    with Client(url, timeout=7) as client:
        client.decode(LATENTS, output="pixels")
        client.decode(LATENTS, output="pixels", deadline_s=3)
    with Client(url, timeout=None, deadline_s=4) as client:
        client.decode(LATENTS, output="pixels")
    with Client(url, timeout=None) as client:
        client.decode(LATENTS, output="pixels")
    assert (heard[0], heard[3]) == ("7.000", "nothing")
    assert 2.5 < float(heard[1]) <= 3
    assert 3.5 < float(heard[2]) <= 4


def test_a_server_that_trickles_does_not_pass_the_deadline(serve: Serve) -> None:
    done = threading.Event()
    url = serve(lambda handler, body: say(handler, PIXELS, trickle=done))
    with Client(url) as client, pytest.raises(ServerTimeout, match=url):
        client.decode(LATENTS, output="pixels", deadline_s=0.2)
    done.set()


def test_no_wait_goes_beyond_the_deadline(serve: Serve) -> None:
    full = write_failure(Overloaded("the waiting line is full", retry_after_s=3))
    waits: list[float] = []
    url = serve(lambda handler, body: say(handler, full))
    client = Client(url, sleep=waits.append, retries=Retry(random=lambda: 0.0))
    with client, pytest.raises(ServerRefused, match="waiting line"):
        client.decode(LATENTS, deadline_s=2)
    assert waits == []


def test_a_batch_shares_one_deadline(serve: Serve) -> None:
    done, turns = threading.Event(), []

    def talk(handler: Handler, body: bytes) -> None:
        turns.append(body)
        done.wait(5)
        handler.close_connection = True

    with Client(serve(talk)) as client, pytest.raises(ServerTimeout):
        client.decode(np.concatenate([LATENTS[..., :4, :4]] * 3), deadline_s=0.1)
    done.set()
    assert len(turns) == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_progress_counts_every_byte_both_ways(serve: Serve, is_async: bool) -> None:
    bodies: list[bytes] = []

    def talk(handler: Handler, body: bytes) -> None:
        bodies.append(body)
        say(handler, PIXELS)

    seen: list[tuple[str, int, int | None]] = []

    def progress(way: str, done: int, total: int | None) -> None:
        seen.append((way, done, total))

    url = serve(talk)

    async def awaited() -> Any:
        async with AsyncClient(url) as client:
            return await client.decode(LATENTS, output="pixels", progress=progress)

    if is_async:
        asyncio.run(awaited())
    else:
        with Client(url) as client:
            client.decode(LATENTS, output="pixels", progress=progress)
    assert bodies == [LATENTS.tobytes()]
    for way, total in (("up", LATENTS.nbytes), ("down", len(PIXELS.body))):
        steps = [(done, whole) for name, done, whole in seen if name == way]
        assert len(steps) > 1
        assert steps == sorted(steps)
        assert steps[-1] == (total, total)
