"""Real proxies in front of a real server, with the very blocks that docs/operations.md shows.

nginx and Caddy are programs, so each test of them starts a process; it ends with the module.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from raw import AMBIGUOUS, BODY, CHUNKS, SMUGGLED, UPGRADES, Echo, Peer, post

from hybridge.server.process.server import ListenOptions, running

GUIDE = Path(__file__).parents[3] / "docs/operations.md"

#: Directories that Debian's nginx otherwise takes from the system.
_NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/log;
events {{ worker_connections 256; }}
http {{
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {block}
}}
"""


def block_of(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert found, f"docs/operations.md shows no {language}"
    return found[1]


def replaced(block: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in block, f"docs/operations.md no longer says {old}"
        block = block.replace(old, new)
    return block


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@contextmanager
def proxy(name: str, server: str, folder: Path) -> Iterator[str]:
    """The address of a proxy; plain HTTP, so that raw requests can be sent to it."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed (apt install {'nginx-light' if name == 'nginx' else name})")
    port, upstream = free_port(), urlsplit(server).netloc
    file = folder / name
    if name == "nginx":
        block = replaced(block_of("nginx"), ("127.0.0.1:8000", upstream), ("443 ssl", f"127.0.0.1:{port}"))
        block = re.sub(r"ssl_certificate.*?;", "", block)
        file.write_text(_NGINX.format(folder=folder, block=block))
        command = ["nginx", "-p", str(folder), "-e", str(folder / "log"), "-c", str(file)]
    else:
        block = replaced(
            block_of("caddy"),
            ("127.0.0.1:8000", upstream),
            ("vae.example.org {", f"http://:{port} {{\nbind 127.0.0.1"),
        )
        file.write_text("{\n admin off\n}\n" + block)
        command = ["caddy", "run", "--config", str(file), "--adapter", "caddyfile"]
    own = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(command, env={**os.environ, **own}, stdout=output, stderr=output)
        try:
            for _ in range(300):
                assert process.poll() is None, (folder / "output").read_text()
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="module")
def echo() -> Echo:
    return Echo()


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def front(request, echo, tmp_path_factory) -> Iterator[str]:
    with (
        running(echo, listening=ListenOptions(trusted_proxies=("127.0.0.1",))) as server,
        proxy(request.param, server, tmp_path_factory.mktemp(request.param)) as address,
    ):
        yield address


def attacks() -> dict[str, list[bytes]]:
    """Packets of requests in whose bodies, or behind whose ends, hides another one."""
    hidden = 3 * SMUGGLED
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(hidden), hidden)
    found = {}
    for name, headers in UPGRADES.items():
        for path in (b"/first", b"/early"):
            found[f"{name}, length, {path}"] = [post(path, headers=headers, length=len(hidden)), hidden]
            found[f"{name}, chunks, {path}"] = [post(path, headers=headers, length=None), chunked]
        found[f"{name}, GET"] = [post(headers=headers, length=len(hidden)).replace(b"POST", b"GET"), hidden]
    for name, headers in AMBIGUOUS.items():
        found[name] = [b"POST / HTTP/1.1\r\nhost: x\r\n" + headers + b"\r\n\r\n", b"0\r\n\r\n" + hidden]
    for name, chunks in CHUNKS.items():
        found[f"chunks with {name}"] = [post(length=None), chunks + hidden]
    expect = b"expect: 100-continue\r\n"
    found["100"] = [post(b"/early", headers=expect, length=len(hidden)), hidden]
    found["connect"] = [b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(hidden), hidden]
    return found


ATTACKS = attacks()


def test_nobodys_request_becomes_another_clients(front, echo) -> None:
    """A victim follows each attack, on the same upstream connection if the proxy has kept it.

    An attack sent in one request is whole, or the proxy itself would see several requests of one client.
    """
    echo.paths.clear()
    for number, (name, packets) in enumerate(ATTACKS.items()):
        if name in AMBIGUOUS or name.startswith("chunks"):
            continue  # what the proxy refuses or takes for two requests of one client
        with Peer(front) as attacker:
            for packet in packets:
                attacker.send(packet)
                time.sleep(0.02)  # so that the packets stay apart behind the proxy, too
            for _ in range(3):
                with Peer(front) as victim:
                    victim.send(b"POST /victim%d HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nme" % number)
                    status, said = victim.answer()
                    assert (status, said["path"], said["body"]) == (200, f"/victim{number}", "me"), name
        assert "/smuggled" not in echo.paths, name


def test_what_is_ambiguous_reaches_no_other_client(front, echo) -> None:
    """What the proxy takes for a request of its own client may be answered, but to that client."""
    for name, packets in ATTACKS.items():
        if name not in AMBIGUOUS and not name.startswith("chunks"):
            continue
        with Peer(front) as attacker:
            for packet in packets:
                attacker.send(packet)
            for _ in range(2):
                with Peer(front) as victim:
                    victim.send(b"GET /victim HTTP/1.1\r\nhost: x\r\n\r\n")
                    status, said = victim.answer()
                    assert (status, said["path"]) == (200, "/victim"), name


def test_headers_behind_the_body_name_no_other_client(front, echo) -> None:
    with Peer(front) as peer:
        trailer = b"trailer: x-forwarded-for\r\n"
        peer.send(post(headers=trailer, length=None) + b"5\r\nhello\r\n0\r\nx-forwarded-for: 6.6.6.6\r\n\r\n")
        _, said = peer.answer()
        assert [line for line in said["headers"] if line.startswith("x-forwarded-for")] == [
            "x-forwarded-for: 127.0.0.1"
        ]


def test_ordinary_requests_share_a_connection(front) -> None:
    with Peer(front) as peer:
        for _ in range(3):
            peer.send(post() + BODY)
            assert peer.answer()[1]["body"] == BODY.decode()
