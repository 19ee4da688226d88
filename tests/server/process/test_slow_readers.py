"""Clients that ask and then do not read the answer."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import urlsplit

import httpx
import pytest

from hybridge.server.process import connection_limits
from hybridge.server.process.connection_limits import ConnectionLimits
from hybridge.server.process.server import ListenOptions, running

PIECE = bytes(256 * 1024)

#: More than the kernel takes from a server before anybody reads.
LARGE = 24 * 1024**2


class Answers:
    """/stream never ends, /large is one piece, /health is short.

    Attributes:
        ended: Set when a stream was given up.
    """

    def __init__(self) -> None:
        self.streams = 0
        self.ended = threading.Semaphore(0)

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] != "/stream":
            await send({"type": "http.response.body", "body": bytes(LARGE) if scope["path"] == "/large" else b"ok"})
            return
        await receive()
        leaving = asyncio.ensure_future(receive())
        self.streams += 1
        while not leaving.done():
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            await asyncio.sleep(0)
        self.ended.release()


def ask(server: str, path: str) -> socket.socket:
    url = urlsplit(server)
    connection = socket.create_connection((url.hostname, url.port), timeout=20)
    connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    return connection


@contextmanager
def serving(**limits: float) -> Iterator[tuple[str, Answers]]:
    app = Answers()
    with running(app, listening=ListenOptions(ConnectionLimits(max_connections=20, **limits))) as server:
        yield server, app


def eventually(what: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@pytest.mark.parametrize("path", ["/stream", "/large"])
def test_who_does_not_read_is_given_up(path) -> None:
    """Before, a stream was never given up, and twenty of them closed a server of twenty connections."""
    with serving(body_pause_s=1) as (server, app), ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(ask(server, path))
        assert httpx.get(f"{server}/health").status_code == 200
        if path == "/stream":
            for _ in range(20):
                assert app.ended.acquire(timeout=20)
        eventually(lambda: httpx.get(f"{server}/else").status_code == 200)


def test_who_reads_slowly_is_not() -> None:
    with serving(body_pause_s=0.5) as (server, app), ask(server, "/stream") as connection:
        received, end = 0, time.monotonic() + 2.5
        while time.monotonic() < end:
            received += len(connection.recv(512 * 1024))
            time.sleep(0.02)
        assert received > LARGE / 4
        assert not app.ended.acquire(blocking=False)


def test_who_has_not_read_for_longest_makes_room() -> None:
    """Long before the limit on pauses, when all places are taken."""
    with serving(body_pause_s=600) as (server, app), ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(ask(server, "/stream"))
        eventually(lambda: app.streams == 20)
        eventually(lambda: httpx.get(f"{server}/else").status_code == 200)
        assert app.ended.acquire(timeout=20)


def test_unread_answers_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that has waited for longest is given up; here without the two seconds in which a client may begin."""
    monkeypatch.setattr(connection_limits, "_READING_PAUSE_S", 0.0)
    with serving(body_pause_s=600, max_unread_bytes=2 * LARGE) as (server, _), ExitStack() as stack:
        waiting = []
        for _ in range(4):  # one after another, so that it is known which has waited for longest
            waiting.append(stack.enter_context(ask(server, "/large")))
            assert waiting[-1].recv(1)
        received = 0
        with suppress(ConnectionResetError):
            received = sum(map(len, iter(lambda: waiting[0].recv(65536), b"")))
        assert received < LARGE


def test_a_connection_goes_on_after_a_large_answer() -> None:
    with serving(body_pause_s=0.5) as (server, _), httpx.Client() as client:
        for _ in range(3):
            assert len(client.get(f"{server}/large").content) == LARGE
            time.sleep(0.4)
