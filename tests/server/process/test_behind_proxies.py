"""Real proxies in front of a real server, with the very blocks that docs/operations.md shows.

nginx and Caddy are programs, so each test of them starts a process; it ends with the module.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from proxies import free_port, proxy, replaced
from raw import AMBIGUOUS, BODY, CHUNKS, SMUGGLED, UPGRADES, Echo, Peer, post

from hybridge.server.process.server import ListenOptions, running

GUIDE = Path(__file__).parents[3] / "docs/operations.md"


def block_of(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert found, f"docs/operations.md shows no {language}"
    return found[1]


@contextmanager
def in_front_of(server: str, name: str, folder: Path) -> Iterator[str]:
    """The address of a proxy; plain HTTP, so that raw requests can be sent to it."""
    port, upstream = free_port(), urlsplit(server).netloc
    if name == "nginx":
        block = replaced(block_of("nginx"), ("127.0.0.1:8000", upstream), ("443 ssl", f"127.0.0.1:{port}"))
        block = re.sub(r"ssl_certificate.*?;", "", block)
    else:
        block = replaced(
            block_of("caddy"),
            ("127.0.0.1:8000", upstream),
            ("vae.example.org {", f"http://:{port} {{\nbind 127.0.0.1"),
        )
    with proxy(name, block, port, folder) as address:
        yield address


@pytest.fixture(scope="module")
def echo() -> Echo:
    return Echo()


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def front(request, echo, tmp_path_factory) -> Iterator[str]:
    with (
        running(echo, listening=ListenOptions(trusted_proxies=("127.0.0.1",))) as server,
        in_front_of(server, request.param, tmp_path_factory.mktemp(request.param)) as address,
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
