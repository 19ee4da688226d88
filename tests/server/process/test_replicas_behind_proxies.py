"""Several servers behind real proxies, with the files of deploy/: what is repeated, and a restart of one by one."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from forks import Forked
from hostile import Hostile, in_json, sends
from proxies import free_port, proxy, replaced

from hybridge.models import ModelSpec

DEPLOY = Path(__file__).parents[3] / "deploy"

#: As deploy/ names the servers.
NAMES = ("10.0.0.11:8000", "10.0.0.12:8000")

_SERVER = """
import sys
from hybridge.engine import Engine, EngineOptions
from hybridge.engine.loading import resolve
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.middleware.draining import Drain
from hybridge.server.process.server import ListenOptions, bind, run
engine = Engine.load(resolve("sd-v1=" + sys.argv[1]), EngineOptions(device="cpu"))
listener = bind("127.0.0.1", int(sys.argv[2]))
listener.listen()
print("ready", flush=True)
drain = Drain()
app = create_app(LocalBackend({"sd-v1": engine}), drain=drain)
run(app, [listener], ListenOptions(), drain, log_level="warning")
"""


@contextmanager
def in_front_of(servers: list[str], name: str, folder: Path, *pairs: tuple[str, str]) -> Iterator[str]:
    """The address of a proxy with its file in deploy/, without TLS."""
    port = free_port()
    upstreams = [(old, urlsplit(server).netloc) for old, server in zip(NAMES, servers, strict=True)]
    if name == "nginx":
        block = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
        block = replaced(block, *upstreams, ("443 ssl", f"127.0.0.1:{port}"), *pairs)
        block = re.sub(r"ssl_certificate.*?;", "", block)
    else:
        block = (DEPLOY / "Caddyfile").read_text(encoding="utf-8")
        block = replaced(block, *upstreams, ("vae.example.org {", f"http://:{port} {{\nbind 127.0.0.1"), *pairs)
    with proxy(name, block, port, folder) as address:
        yield address


def times_sent(servers: list[Hostile]) -> Counter[str]:
    """How often each request, by its number, has reached a server."""
    heads = [head.decode().lower() for server in servers for head in server.requests]
    return Counter(number for head in heads for number in re.findall(r"x-number: (\w+)", head))


@pytest.mark.parametrize("name", ["nginx", "caddy"])
def test_only_what_is_safe_is_sent_again(name: str, tmp_path: Path) -> None:
    """One of two servers reads each request and hangs up, as one that was killed does."""
    pairs = [("health_uri /ready", ""), ("fail_duration 5s", "")]
    if name == "nginx":
        pairs = [("max_fails=1", "max_fails=0")]
    with (
        Hostile(sends(b"")) as lost,
        Hostile(in_json({"done": True})) as good,
        in_front_of([lost.url, good.url], name, tmp_path, *pairs) as front,
        httpx.Client() as client,
    ):
        statuses: dict[str, list[int]] = {"/v1/sdxl/decode": [], "/v1/keys": []}
        for path, found in statuses.items():
            for number in range(6):
                answer = client.post(front + path, headers={"x-number": f"{path[4:6]}{number}"})
                found.append(answer.status_code)
    if name == "nginx":
        assert statuses["/v1/sdxl/decode"] == [200] * 6
    assert set(statuses["/v1/keys"]) == {200, 502}
    sent = times_sent([lost, good])
    decodes = {number: count for number, count in sent.items() if number.startswith("sd")}
    assert max(decodes.values()) == (2 if name == "nginx" else 1)
    assert all(count == 1 for number, count in sent.items() if number not in decodes)
    assert len(sent) == 12


def start(source: str, port: int) -> Forked:
    server = Forked(_SERVER, source, port, stderr=subprocess.STDOUT)
    assert server.stdout.readline().strip() == "ready"
    return server


def wait_for_work(port: int) -> None:
    """Return once a server that was restarted gets requests again."""
    for _ in range(300):
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        if 'status="200",task="decode"' in metrics:
            return
        time.sleep(0.2)
    pytest.fail("nginx does not ask it again")


def test_servers_that_restart_one_by_one_lose_nothing(specs: dict[str, ModelSpec], tmp_path: Path) -> None:
    """Under load, by a client that never tries again."""
    source = specs["sd-v1"].source
    ports = [free_port(), free_port()]
    servers = [start(source, port) for port in ports]
    answers: list[tuple[int, int]] = []
    stop = threading.Event()

    def ask(front: str) -> None:
        query = {"shape": "1,4,8,8", "dtype": "float32", "output_type": "pt", "partial_postprocess": "true"}
        headers = {"content-type": "tensor/binary"}
        with httpx.Client(timeout=60) as client:
            while not stop.wait(0.02):
                answer = client.post(f"{front}/v1/sd-v1/decode", params=query, content=bytes(1024), headers=headers)
                answers.append((answer.status_code, hash(answer.content)))

    try:
        with in_front_of([f"http://127.0.0.1:{port}" for port in ports], "nginx", tmp_path) as front:
            threads = [threading.Thread(target=ask, args=(front,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            try:
                for number, port in enumerate(ports):
                    before = len(answers)
                    servers[number].send_signal(signal.SIGTERM)
                    assert servers[number].wait(60) == 0
                    with pytest.raises(OSError, match="refused"):
                        socket.create_connection(("127.0.0.1", port), 5)
                    servers[number].stdout.close()
                    servers[number] = start(source, port)
                    wait_for_work(port)
                    assert len(answers) > before
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
    finally:
        for server in servers:
            server.kill()
            server.wait()
            server.stdout.close()
    assert len(answers) > 20
    assert {status for status, _ in answers} == {200}
    assert len({content for _, content in answers}) == 1
