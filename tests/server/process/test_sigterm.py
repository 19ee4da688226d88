"""SIGTERM to a real process that is at a picture file, or serves HTTPS: it ends within its grace, and says so."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from processes import serving_process

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM, and no named pipes")

WAIT_S = 60
QUERY = {"shape": [1, 4, 8, 8], "dtype": "float32"}
BINARY = {"content-type": "tensor/binary"}

#: A thread that reads a picture says so through one pipe, and is done when somebody opens the other one.
HELD_PICTURE = """
from hybridge.server.scheduling import vae_job
read = vae_job.read_file
def read_file(*given, **named):
    open({begun!r}, "wb").close()
    open({go!r}, "rb").close()
    return read(*given, **named)
vae_job.read_file = read_file
"""

#: The same for a decode.
HELD_DECODE = """
from hybridge.engine import Engine
decode = Engine.decode
def held(*given, **named):
    open({begun!r}, "wb").close()
    open({go!r}, "rb").close()
    return decode(*given, **named)
Engine.decode = held
"""


@pytest.fixture
def pipes(tmp_path: Path) -> dict[str, str]:
    paths = {name: str(tmp_path / name) for name in ("begun", "go")}
    for path in paths.values():
        os.mkfifo(path)
    return paths


def wait_for(pipe: str) -> None:
    """Until the other side opens it."""
    with open(pipe, "rb"):
        pass


def wait_until_not_ready(client: httpx.Client, address: str) -> None:
    while client.get(f"{address}/ready").status_code == 200:
        pass


def test_a_picture_thread_that_does_not_end(pipes, photograph: Path) -> None:
    """The grace period holds for it, too: before, the process joined the thread for ever."""
    picture = photograph.read_bytes()
    with (
        serving_process("--device", "cpu", "--grace-s", 0.5, before=HELD_PICTURE.format(**pipes)) as served,
        ThreadPoolExecutor(1) as pool,
    ):
        process, address, log = served
        headers = {"content-type": "image/jpeg"}
        asked = pool.submit(
            httpx.post, f"{address}/v1/starter/encode", content=picture, headers=headers, timeout=WAIT_S
        )
        wait_for(pipes["begun"])
        process.send_signal(signal.SIGTERM)
        answer = asked.result()
        assert (answer.status_code, answer.json()["code"]) == (503, "ShuttingDown")
        assert process.wait(WAIT_S) == 0
        assert any("a picture file that does not end is cut off" in line for line in log())


def test_a_picture_thread_that_ends_in_time(pipes, photograph: Path) -> None:
    picture = photograph.read_bytes()
    with (
        serving_process("--device", "cpu", before=HELD_PICTURE.format(**pipes)) as served,
        ThreadPoolExecutor(1) as pool,
        httpx.Client() as client,
    ):
        process, address, log = served
        headers = {"content-type": "image/jpeg"}
        asked = pool.submit(
            httpx.post, f"{address}/v1/starter/encode", content=picture, headers=headers, timeout=WAIT_S
        )
        wait_for(pipes["begun"])
        process.send_signal(signal.SIGTERM)
        wait_until_not_ready(client, address)
        with open(pipes["go"], "wb"):
            assert asked.result().status_code == 200
        client.close()
        assert process.wait(WAIT_S) == 0
        assert not any("cut off" in line for line in log())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    command += " -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


def test_over_tls(pipes, certificate: tuple[Path, Path]) -> None:
    """What was accepted is answered, who comes late is told, and a handshake that never comes holds nothing up."""
    cert, key = certificate
    arguments = ["--device", "cpu", "--tls-cert", cert, "--tls-key", key, "--grace-s", WAIT_S]
    trusting = ssl.create_default_context(cafile=str(cert))
    with (
        serving_process(*arguments, before=HELD_DECODE.format(**pipes)) as (process, address, log),
        httpx.Client(verify=trusting, timeout=WAIT_S) as client,
        httpx.Client(verify=trusting, timeout=WAIT_S) as late,
        ThreadPoolExecutor(1) as pool,
    ):
        url = urlsplit(address)

        def decode(client: httpx.Client) -> httpx.Response:
            target = f"{address}/v1/starter/decode"
            return client.post(target, params=QUERY, content=bytes(1024), headers=BINARY)

        asked = pool.submit(decode, client)
        wait_for(pipes["begun"])
        with socket.create_connection((url.hostname, url.port), timeout=WAIT_S) as silent:
            silent.sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a handshake
            process.send_signal(signal.SIGTERM)
            wait_until_not_ready(late, address)
            refused = decode(late)
            assert (refused.status_code, refused.json()["code"]) == (503, "ShuttingDown")
            with open(pipes["go"], "wb"):
                answer = asked.result()
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
            assert process.wait(WAIT_S) == 0
        assert not any("Traceback" in line for line in log())
