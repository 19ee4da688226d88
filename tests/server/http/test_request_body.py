"""Requests whose bodies are being read: those whose senders leave or run out of time give up their place."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running
from hybridge.server.scheduling import vae_job

#: Threads for pictures.
THREADS = 4
PATIENCE_S = 60


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(file, "PNG")
    return file.getvalue()


PICTURE = picture()


@pytest.fixture(scope="module")
def server(engines) -> Iterator[str]:
    with running(create_app(LocalBackend({"sd-v1": engines["sd-v1"]}))) as address:
        yield address


class Busy:
    """Pictures that take as long to read as the test wants."""

    def __init__(self, read: Callable[..., object]) -> None:
        self.begun = threading.Semaphore(0)
        self.count = 0
        self.release = threading.Event()
        self._read = read

    def __call__(self, *args: object, **options: object) -> object:
        self.count += 1
        self.begun.release()
        assert self.release.wait(PATIENCE_S)
        return self._read(*args, **options)


@pytest.fixture
def busy(server, monkeypatch) -> Iterator[Busy]:
    """Every thread for pictures has one, and its sender waits."""
    busy = Busy(vae_job.read_file)
    monkeypatch.setattr(vae_job, "read_file", busy)
    with ThreadPoolExecutor(THREADS) as pool:
        answers = [pool.submit(encode, server) for _ in range(THREADS)]
        try:
            for _ in range(THREADS):
                assert busy.begun.acquire(timeout=PATIENCE_S)
            yield busy
        finally:
            busy.release.set()
        assert [answer.result().status_code for answer in answers] == [200] * THREADS


def encode(server: str, **headers: str) -> httpx.Response:
    return httpx.post(f"{server}/v1/sd-v1/encode", content=PICTURE, headers=headers, timeout=PATIENCE_S)


def inflight_bytes(server: str) -> float:
    lines = httpx.get(f"{server}/metrics", timeout=PATIENCE_S).text.splitlines()
    return float(next(line for line in lines if line.startswith("hybridge_inflight_bytes ")).split()[1])


def wait_for(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_deadline_holds_while_a_picture_waits_for_a_thread(server, busy) -> None:
    response = encode(server, **{"request-timeout": "0.2"})
    assert response.status_code == 504
    assert response.json()["code"] == "DeadlinePassed"
    assert "0.2 s since it was sent" in response.json()["error"]
    assert inflight_bytes(server) == THREADS * len(PICTURE)
    busy.release.set()
    assert encode(server).status_code == 200
    assert busy.count == THREADS + 1  # the one that ran out of time was never begun


def test_a_sender_who_leaves_while_a_picture_waits_frees_its_place(server, busy) -> None:
    url = urlsplit(server)
    head = f"POST /v1/sd-v1/encode HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(PICTURE)}\r\n\r\n".encode()
    with socket.create_connection((url.hostname, url.port), timeout=PATIENCE_S) as connection:
        connection.sendall(head + PICTURE)
        wait_for(lambda: inflight_bytes(server) == (THREADS + 1) * len(PICTURE))
    wait_for(lambda: inflight_bytes(server) == THREADS * len(PICTURE))
    busy.release.set()
    assert encode(server).status_code == 200
    assert busy.count == THREADS + 1


def test_a_deadline_holds_while_the_body_comes(server) -> None:
    url = urlsplit(server)
    headers = f"host: localhost\r\nrequest-timeout: 0.2\r\ncontent-length: {len(PICTURE)}\r\n"
    with socket.create_connection((url.hostname, url.port), timeout=PATIENCE_S) as connection:
        connection.sendall(f"POST /v1/sd-v1/encode HTTP/1.1\r\n{headers}\r\n".encode() + PICTURE[:-1])
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 504")
    wait_for(lambda: inflight_bytes(server) == 0)


def test_others_are_answered_while_a_large_json_body_is_read(server) -> None:
    """20 MiB of objects beside `inputs` are refused, and so large a text is decoded in pieces."""
    sent = b'{"inputs": "YQ==", "parameters": {"x": [' + b"{}," * (20 * 2**20 // 3) + b"{}]}}"
    json_type = {"content-type": "application/json"}
    response = httpx.post(f"{server}/v1/sd-v1/decode", content=sent, headers=json_type, timeout=PATIENCE_S)
    assert response.status_code == 413
    assert "beside `inputs`" in response.json()["error"]
    inputs = "data:image/png;base64," + base64.b64encode(PICTURE).decode().rstrip("=")
    sent = json.dumps({"inputs": inputs}).encode()
    response = httpx.post(f"{server}/v1/sd-v1/encode", content=sent, headers=json_type, timeout=PATIENCE_S)
    assert response.status_code == 200
