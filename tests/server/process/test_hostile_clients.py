"""What strangers, bad lines and broken programs do to a server: others are served all the while.

``pytest tests/server/process/test_hostile_clients.py --malformed 20000 --hang-up-s 300`` is the long form.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import malformed
import psutil
import pytest
from malformed import Answered, Malformed, ask

from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running
from hybridge.server.settings import Settings

QUERY = {"shape": [1, 4, 8, 8], "dtype": "float32"}
BODY = bytes(4 * 4 * 8 * 8)
BINARY = {"content-type": "tensor/binary"}

#: Connections at one time.
CROWD = 32


@pytest.fixture(scope="module")
def backend(engines) -> LocalBackend:
    return LocalBackend({"sd-v1": engines["sd-v1"]}, queue_limit=64)


@pytest.fixture(scope="module")
def server(backend) -> Iterator[str]:
    settings = Settings(max_pixels=128 * 128, max_batch=2, head_timeout_s=0.4, body_pause_s=0.4)
    with running(create_app(backend, settings), listening=settings.listening) as address:
        yield address


def serves(server: str) -> bool:
    response = httpx.post(f"{server}/v1/sd-v1/decode", params=QUERY, content=BODY, headers=BINARY, timeout=60)
    return response.status_code == 200 and response.headers["content-type"] == "image/jpeg"


def complaint(raw: bytes, answer: Answered) -> str | None:
    """What is wrong with an answer, if anything is."""
    if answer.hung:
        return "no answer and no end"
    if answer.status is None:
        # Nothing that looks like a request, or one whose sender is not owed a word: blank lines.
        return None if not raw.strip(b"\r\n") else "hung up on without a word"
    if answer.status >= 500 and answer.status != 503:
        return f"status {answer.status}"
    if answer.status >= 400 and not raw.startswith(b"HEAD "):
        try:
            if "error" not in json.loads(answer.body):
                return "JSON without error"
        except ValueError:
            return f"not JSON: {answer.body[:80]!r}"
    return None


def test_malformed_requests_are_each_answered_in_json(server, request) -> None:
    makes = Malformed()
    url = urlsplit(server)
    seeds = iter([*malformed.KEPT, *range(request.config.getoption("--malformed"))])
    statuses: Counter[int | None] = Counter()
    complaints: dict[int, str] = {}

    async def send_all() -> None:
        async def one_after_the_other() -> None:
            for seed in seeds:
                raw = makes.request(seed)
                answer = await ask(url.hostname, url.port, raw, patience_s=30)
                statuses[answer.status] += 1
                if (wrong := complaint(raw, answer)) is not None:
                    complaints[seed] = f"{wrong}: {raw[:120]!r}"

        await asyncio.gather(*(one_after_the_other() for _ in range(CROWD)))

    asyncio.run(send_all())
    print(dict(statuses))  # noqa: T201 - shown by -rP and on failure
    assert not complaints
    assert {200, 400, 404, 405, 408, 413, 415, 431} & set(statuses) >= {200, 400, 404, 408, 431}
    assert serves(server)


def test_clients_that_hang_up_at_random(server, backend, request) -> None:
    """Memory stays flat and the line ends up empty."""
    url = urlsplit(server)
    head = (
        "POST /v1/sd-v1/decode?shape=1&shape=4&shape=8&shape=8&dtype=float32&output_type=pt HTTP/1.1\r\n"
        f"host: localhost\r\ncontent-type: tensor/binary\r\ncontent-length: {len(BODY)}\r\n\r\n"
    )
    raw = head.encode() + BODY
    process = psutil.Process()

    async def hang_up(chance: random.Random) -> None:
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        try:
            writer.write(raw[: chance.randrange(1, len(raw))] if chance.random() < 0.3 else raw)
            await writer.drain()
            if chance.random() < 0.7:
                with_answer = chance.random() < 0.5
                await asyncio.wait_for(reader.read(64 if with_answer else 0), 10)
        except (ConnectionError, TimeoutError):
            pass
        finally:
            writer.transport.abort()

    async def for_seconds(seconds: float, seed: int) -> int:
        end, count = time.monotonic() + seconds, 0

        async def again_and_again(number: int) -> None:
            nonlocal count
            chance = random.Random(seed + number)
            while time.monotonic() < end:
                await hang_up(chance)
                count += 1

        await asyncio.gather(*(again_and_again(number) for number in range(CROWD)))
        return count

    seconds = request.config.getoption("--hang-up-s")
    asyncio.run(for_seconds(seconds / 3, 0))
    gc.collect()
    before = process.memory_info().rss
    count = asyncio.run(for_seconds(seconds, 100))
    assert count > CROWD
    assert serves(server)
    gc.collect()
    grown = process.memory_info().rss - before
    assert grown < 24 * 2**20, f"{grown / 2**20:.1f} MiB more after {count} clients"
    assert backend.load().waiting == 0
    metrics = httpx.get(f"{server}/metrics").text
    assert "hybridge_inflight_bytes 0.0" in metrics
