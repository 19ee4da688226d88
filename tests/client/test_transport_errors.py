"""Servers that are down, slow, busy or something else, on real sockets: clear errors, and none of the secrets."""

from __future__ import annotations

import http.server
import itertools
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from hybridge.client import Client, Retry
from hybridge.errors import (
    BadAnswer,
    ClientError,
    ModelUnavailable,
    Overloaded,
    ServerRefused,
    ServerTimeout,
    ServerUnreachable,
    UnknownModel,
)
from hybridge.protocol import HttpResponse, TensorAnswer, WireTensor, write_answer, write_failure

LATENTS = np.ones((1, 4, 2, 2), np.float32)
PIXELS = write_answer(TensorAnswer(WireTensor("uint8", (1, 16, 16, 3), bytes(16 * 16 * 3))))

Handler = http.server.BaseHTTPRequestHandler
Serve = Callable[[Callable[[Handler, bytes], None]], str]


def say(handler: Handler, response: HttpResponse, *, promised: int | None = None) -> None:
    """Sends ``response``, whose length may be a lie."""
    handler.send_response(response.status)
    for name, value in response.headers.items():
        handler.send_header(name, value)
    handler.send_header("content-length", str(len(response.body) if promised is None else promised))
    handler.end_headers()
    handler.wfile.write(response.body)


def hang_up(handler: Handler) -> None:
    """Resets the connection."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()


class Calls:
    """A client whose waits are written down instead of waited for."""

    def __init__(self, url: str, **arguments: Any) -> None:
        self.waits: list[float] = []
        self.client = Client(
            url, retries=Retry(random=lambda: 0.0), sleep=self.waits.append, timeout=5, **arguments
        )

    def decode(self) -> Any:
        with self.client:
            return self.client.decode(LATENTS, output="pixels")

    def error(self) -> ClientError:
        with pytest.raises(ClientError) as caught:
            self.decode()
        assert caught.value.__cause__ is None
        return caught.value


def test_nobody_listens() -> None:
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        port = placeholder.getsockname()[1]
        calls = Calls(f"http://me:s3cret@127.0.0.1:{port}/p?key=k3y")
        error = calls.error()
    assert isinstance(error, ServerUnreachable)
    assert f"http://127.0.0.1:{port}/p cannot be reached" in str(error)
    assert "hybridge serve" in str(error)
    assert "s3cret" not in repr(error)
    assert "k3y" not in repr(error)
    assert calls.waits == [0.25, 0.5, 1.0]


def test_a_lost_connection_is_tried_again(serve: Serve) -> None:
    turns = itertools.count()

    def talk(handler: Handler, body: bytes) -> None:
        turn = next(turns)
        if turn == 0:
            hang_up(handler)
        elif turn == 1:  # closes half-way through its answer
            say(handler, PIXELS, promised=len(PIXELS.body) + 1)
            handler.close_connection = True
        else:
            say(handler, PIXELS)

    calls = Calls(serve(talk))
    assert calls.decode().shape == (1, 16, 16, 3)
    assert calls.waits == [0.25, 0.5]


def test_a_connection_that_is_always_lost(serve: Serve) -> None:
    url = serve(lambda handler, body: hang_up(handler))
    error = Calls(url).error()
    assert isinstance(error, ServerUnreachable)
    assert f"{url} broke off the connection" in str(error)


def test_no_answer_in_time_is_not_asked_for_twice(serve: Serve) -> None:
    turns, done = [], threading.Event()

    def talk(handler: Handler, body: bytes) -> None:
        turns.append(body)
        done.wait(5)
        handler.close_connection = True

    with Client(serve(talk), timeout=0.1) as client, pytest.raises(ServerTimeout, match="did not answer in time"):
        client.decode(LATENTS)
    done.set()
    assert len(turns) == 1


def test_a_busy_server_is_asked_again_when_it_said(serve: Serve) -> None:
    turns = itertools.count()

    def talk(handler: Handler, body: bytes) -> None:
        is_first = next(turns) == 0
        say(handler, write_failure(Overloaded("the waiting line is full", retry_after_s=3)) if is_first else PIXELS)

    calls = Calls(serve(talk))
    assert calls.decode().shape == (1, 16, 16, 3)
    assert calls.waits == [3.0]


def test_a_server_that_stays_busy(serve: Serve) -> None:
    full = write_failure(Overloaded("the waiting line is full", retry_after_s=3))
    error = Calls(serve(lambda handler, body: say(handler, full))).error()
    assert isinstance(error, ServerRefused)
    assert (error.status, error.code, error.retry_after_s) == (429, "Overloaded", 3)


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (UnknownModel("no model sd-9", hint="sd-v1"), 404, "UnknownModel"),
        (ModelUnavailable("the weights are gated"), 503, "ModelUnavailable"),
    ],
)
def test_a_lasting_refusal_is_final_and_explained(serve: Serve, failure: Any, status: int, code: str) -> None:
    url = serve(lambda handler, body: say(handler, write_failure(failure)))
    calls = Calls(url)
    error = calls.error()
    assert isinstance(error, ServerRefused)
    assert (error.status, error.code, calls.waits) == (status, code, [])
    assert str(error) == f"{url} answered {status}: {failure}"


def page(status: int) -> HttpResponse:
    return HttpResponse(status, {"content-type": "text/html"}, b"<html>It works!</html>")


@pytest.mark.parametrize(("status", "waits"), [(200, 0), (404, 0), (502, 0), (503, 3)])
def test_a_web_page_is_named_as_one(serve: Serve, status: int, waits: int) -> None:
    url = serve(lambda handler, body: say(handler, page(status)))
    calls = Calls(url)
    error = calls.error()
    assert isinstance(error, BadAnswer)
    assert str(error).startswith(f"{url}: ")
    assert "It works!" in str(error)
    assert len(calls.waits) == waits


def test_an_answer_cut_short_by_a_proxy(serve: Serve) -> None:
    short = HttpResponse(200, PIXELS.headers, PIXELS.body[:-1])
    error = Calls(serve(lambda handler, body: say(handler, short))).error()
    assert isinstance(error, BadAnswer)
    assert "767 bytes" in str(error)


def test_broken_compression(serve: Serve) -> None:
    broken = HttpResponse(200, {**PIXELS.headers, "content-encoding": "gzip"}, PIXELS.body)
    error = Calls(serve(lambda handler, body: say(handler, broken))).error()
    assert isinstance(error, BadAnswer)
    assert "compression" in str(error)


def test_a_redirect_is_not_followed_but_named(serve: Serve) -> None:
    moved = HttpResponse(301, {"location": "https://elsewhere/v1?key=k3y"}, b"")
    error = Calls(serve(lambda handler, body: say(handler, moved))).error()
    assert isinstance(error, BadAnswer)
    assert "HTTP 301 to https://elsewhere/v1. Try" in str(error)


def test_a_header_that_cannot_be_sent_is_not_quoted(serve: Serve) -> None:
    calls = Calls(serve(lambda handler, body: None), headers={"authorization": "Bearer s3cret\n"})
    error = calls.error()
    assert "headers" in str(error)
    assert "s3cret" not in repr(error)
    assert calls.waits == []


def test_connections_are_kept(serve: Serve) -> None:
    ports = set()

    def talk(handler: Handler, body: bytes) -> None:
        ports.add(handler.client_address)
        say(handler, PIXELS)

    with Client(serve(talk)) as client:
        for _ in range(3):
            client.decode(LATENTS, output="pixels")
    assert len(ports) == 1


def test_every_error_can_be_caught_as_one() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectTimeout("")

    error = Calls("http://h", transport=httpx.MockTransport(handle)).error()
    assert isinstance(error, ServerUnreachable)
    assert "saw ConnectTimeout" in str(error)
