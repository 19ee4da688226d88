"""Web pages that a browser on the server's machine has open."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest

from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.middleware.key_file import KeyRing, hash_key
from hybridge.server.process.server import running
from hybridge.server.settings import Settings

DECODE = "/v1/sd-v1/decode?shape=1,4,8,8&dtype=float32"
BODY = bytes(1024)
BINARY = {"content-type": "tensor/binary"}


@contextmanager
def serving(engines, keys: KeyRing | None = None, **settings: object) -> Iterator[str]:
    chosen = Settings(**settings)
    with running(create_app(LocalBackend({"sd-v1": engines["sd-v1"]}), chosen, keys=keys)) as address:
        yield address


@pytest.fixture(scope="module")
def server(engines) -> Iterator[str]:
    with serving(engines, cors="https://friend.example", allowed_hosts="vae.example.org") as address:
        yield address


def post(server: str, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(server + DECODE, content=BODY, headers={**BINARY, **named})


class TestOtherSites:
    @pytest.mark.parametrize(
        "headers",
        [
            {"origin": "https://evil.example", "sec_fetch_site": "cross-site"},
            {"origin": "http://localhost:3000", "sec_fetch_site": "same-site"},
            {"origin": "http://127.0.0.1"},
            {"origin": "null"},
            {"origin": ""},
            {"origin": "https://[nonsense"},
            {"sec_fetch_site": "cross-site"},
            {"sec_fetch_site": "same-site"},
        ],
    )
    def test_what_their_pages_post_is_refused(self, server, headers) -> None:
        refused = post(server, **headers)
        assert refused.status_code == 403
        assert "--cors" in refused.json()["error"]

    def test_programs_and_friends_may_post(self, server) -> None:
        own = {"origin": server, "sec_fetch_site": "same-origin"}
        friend = {"origin": "https://friend.example", "sec_fetch_site": "cross-site"}
        for headers in ({}, own, friend, {"sec_fetch_site": "none"}):
            assert post(server, **headers).status_code == 200

    def test_a_browser_may_look(self, server) -> None:
        for headers in (
            {"sec-fetch-site": "none"},
            {"sec-fetch-site": "cross-site"},
            {"origin": "https://x.example"},
        ):
            assert httpx.get(server, headers=headers).status_code == 200

    def test_keys_are_enough(self, engines) -> None:
        with serving(engines, KeyRing({"a": hash_key("secret")})) as server:
            evil = {"origin": "https://evil.example", "host": "evil.example"}
            assert post(server, **evil).status_code == 401
            assert post(server, **evil, authorization="Bearer secret").status_code == 200


class TestNames:
    @pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/v1/models"])
    def test_a_name_of_somebody_elses_is_refused(self, server, path) -> None:
        port = urlsplit(server).port
        for name in (
            "evil.example",
            f"evil.example:{port}",
            "localhost.evil.example",
            "x",
            "127.0.0.1.evil.example",
        ):
            refused = httpx.get(server + path, headers={"host": name})
            assert refused.status_code == 421
            assert "--allowed-host" in refused.json()["error"]
        # After rebinding a page is of the server's own origin.
        assert post(server, host="evil.example", origin="http://evil.example").status_code == 421

    def test_its_own_names(self, server) -> None:
        here = socket.gethostname()
        for name in (
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1",
            "127.9.9.9",
            "[::1]:8000",
            "192.0.2.1",
            "a.localhost.",
        ):
            assert httpx.get(server, headers={"host": name}).status_code == 200
        for name in (here, here.upper(), f"{here}.local:8000", "vae.example.org", "VAE.example.org:443"):
            assert httpx.get(server, headers={"host": name}).status_code == 200

    def test_no_name_at_all(self, server) -> None:
        url = urlsplit(server)
        with socket.create_connection((url.hostname, url.port), timeout=20) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")

    def test_any_name_where_others_reach_it(self, engines) -> None:
        with serving(engines, host="0.0.0.0") as server:  # noqa: S104 - what is set, not what listens
            assert httpx.get(server, headers={"host": "vae.lan"}).status_code == 200
            assert post(server, host="vae.lan", origin="http://vae.lan").status_code == 200
            assert post(server, origin="https://evil.example").status_code == 403

    def test_pages_may_not_post_under_a_public_name_without_tls(self, engines) -> None:
        with serving(engines, host="0.0.0.0", allowed_hosts="vae.example.org") as server:  # noqa: S104 - as above
            refused = post(server, host="evil.example", origin="http://evil.example")
            assert refused.status_code == 421
            assert "--allowed-host" in refused.json()["error"]
            assert post(server, host="evil.example").status_code == 200  # a program
            for name in ("gpu-box:8000", "gpu-box.local", "192.0.2.1:8000", "vae.example.org"):
                assert post(server, host=name, origin=f"http://{name}").status_code == 200
            # A proxy with a certificate of that name.
            assert post(server, host="vae.example.com", origin="https://vae.example.com").status_code == 200
