"""Networks as people have them: proxies of the environment, certificates of one's own, the wrong scheme or port."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hostile import Hostile, in_json, says, sends
from secure_servers import SelfSigned, secure_server

from hybridge.client import AsyncClient, Client, Retry
from hybridge.client.proxies import Proxies
from hybridge.errors import BadAnswer, ClientError, ServerUnreachable

NEVER = Retry(attempts=1)
HEALTH = in_json({"status": "ok"})

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("HYBRIDGE_CA", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)


# -------------------------------------------------------------------------------------------- proxies

ENVIRONMENT = {"http": "http://me:s3cret@proxy:3128", "https": "proxy:3129", "all": "http://all:1"}


def proxy_of(url: str, choice: Any = None, **environment: str) -> str | None:
    proxy = Proxies(choice, lambda: environment or ENVIRONMENT).of(httpx.URL(url))
    return None if proxy is None else str(proxy.url)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost.",
        "api.localhost",
        "127.0.0.1",
        "127.9.9.9",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::]",
    ],
)
def test_this_machine_is_never_called_through_a_proxy(host: str) -> None:
    for choice in (None, True, False, "http://mine:1"):
        assert proxy_of(f"http://{host}:8000", choice) is None


@pytest.mark.parametrize(
    "host",
    [
        *(
            "gpu-box",
            "gpu-box.local",
            "gpu-box.lan",
            "gpu-box.home.arpa",
            "host.docker.internal",
            "hybridge.ml.svc",
        ),
        *("10.1.2.3", "172.31.0.1", "192.168.1.5", "169.254.1.1", "100.101.102.103", "[fe80::1]", "[fd00::1]"),
    ],
)
def test_the_local_network_is_called_through_a_proxy_only_where_that_was_asked(host: str) -> None:
    assert proxy_of(f"http://{host}") is None
    assert proxy_of(f"http://{host}", True) == "http://proxy:3128"
    assert proxy_of(f"http://{host}", "http://mine:1") == "http://mine:1"


def test_public_addresses_are_called_as_the_environment_says() -> None:
    for host in ("gpu.example", "8.8.8.8", "172.32.0.1", "[2001:4860::1]"):
        assert proxy_of(f"http://{host}") == "http://proxy:3128"
        assert proxy_of(f"https://{host}") == "http://proxy:3129"
        assert proxy_of(f"http://{host}", False) is None
    assert proxy_of("https://gpu.example", all="all:1", http="http://x") == "http://all:1"
    assert "s3cret" not in repr(Proxies(None, lambda: ENVIRONMENT).of(httpx.URL("http://gpu.example")))


@pytest.mark.parametrize(
    ("no_proxy", "url", "is_direct"),
    [
        ("*", "http://gpu.example", True),
        ("gpu.example", "http://gpu.example", True),
        (".example", "http://gpu.example", True),
        ("*.example", "http://gpu.example:8000", True),
        ("example", "http://gpu-example", True),
        ("u.example", "http://gpu.example", False),
        ("gpu.example:8000", "http://gpu.example:8000", True),
        ("gpu.example:8000", "http://gpu.example", False),
        ("gpu.example:80", "http://gpu.example", True),
        ("8.8.0.0/16", "http://8.8.8.8", True),
        ("8.8.0.0/16, 9.0.0.0/8", "http://9.9.9.9", True),
        ("8.8.0.0/16", "http://8.9.8.8", False),
        ("8.8.8.8:53", "http://8.8.8.8:53", True),
        ("[::1]", "http://[2001:4860::1]", False),
        ("[2001:4860::1]", "http://[2001:4860::1]", True),
        ("[2001:4860::1]:80", "http://[2001:4860::1]", True),
        ("2001:4860::/32", "http://[2001:4860::1]", True),
        ("http://gpu.example", "http://gpu.example", True),
        ("[::1,,[,:::,/,10.0.0.0/99,\u20ac", "http://gpu.example", False),
    ],
)
def test_no_proxy(no_proxy: str, url: str, is_direct: bool) -> None:
    expected = None if is_direct or "-" in url else "http://proxy:1"
    assert proxy_of(url, http="http://proxy:1", no=no_proxy) == expected


@pytest.mark.parametrize("scheme", ["socks", "socks5", "socks5h"])
def test_socks_needs_a_package(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://me:s3cret@proxy:1080")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for kind in (Client, AsyncClient):
        with pytest.raises(
            ClientError, match=r"ALL_PROXY names a SOCKS proxy.*pip install 'httpx\[socks\]'"
        ) as caught:
            kind("https://gpu.example")
        assert "s3cret" not in str(caught.value)
        kind("http://127.0.0.1:8000")
        kind("http://gpu-box:8000")


@pytest.mark.parametrize(
    "text",
    [
        *("http://", "://x", "ftp://proxy:1", "socks4://proxy:1"),
        *("http://proxy:port", "http://proxy:99999", "http://[::1"),
    ],
)
def test_a_proxy_that_cannot_be_one_is_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", text)
    for kind in (Client, AsyncClient):
        with pytest.raises(ClientError, match="the environment's HTTPS_PROXY is not a proxy's address"):
            kind("https://gpu.example")
        kind("https://10.0.0.1")
        with pytest.raises(ClientError, match="proxy= is not a proxy's address"):
            kind("http://gpu.example", proxy=text)


def test_a_call_through_a_proxy_and_one_past_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with Hostile(HEALTH) as proxy, Hostile(HEALTH) as server:
        monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//me:s3cret@"))
        with Client(server.url) as client:
            assert client.health() == {"status": "ok"}
        assert (len(proxy.requests), len(server.requests)) == (0, 1)
        with Client("http://gpu.example:81/p") as client:
            assert client.health() == {"status": "ok"}

        async def ask() -> Any:
            async with AsyncClient("http://gpu.example:81/p") as client:
                return await client.health()

        assert asyncio.run(ask()) == {"status": "ok"}
        assert len(proxy.requests) == 2
        assert all(b"GET http://gpu.example:81/p/health HTTP/1.1" in request for request in proxy.requests)
        assert all(b"proxy-authorization: basic" in request.lower() for request in proxy.requests)


def test_a_proxy_that_refuses() -> None:
    with (
        Hostile(sends(b"HTTP/1.1 407 Authenticate\r\ncontent-length: 0\r\n\r\n")) as proxy,
        Client("https://gpu.example", proxy=proxy.url, retries=NEVER) as client,
        pytest.raises(ServerUnreachable, match=r"through the proxy.*407.*user:password@"),
    ):
        client.health()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_not_there_is_named(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{placeholder.getsockname()[1]}"
        monkeypatch.setenv("ALL_PROXY", proxy.replace("//", "//me:s3cret@"))
        for kind in (Client, AsyncClient):
            said = rf"gpu.example cannot be reached through the proxy.*{proxy} of the environment's ALL_PROXY"
            with pytest.raises(ServerUnreachable, match=said) as caught:
                health(kind, f"{scheme}://gpu.example", verify=False)
            assert "hybridge serve" not in str(caught.value)
            assert "s3cret" not in str(caught.value)


# --------------------------------------------------------------------------------------------- pages

PAGE = {"content-type": "text/html"}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (413, ["client_max_body_size"]),
        (502, ["`hybridge serve` behind that proxy"]),
        (504, ["proxy_read_timeout", "respond-async"]),
        (524, ["100 seconds", "respond-async"]),
    ],
)
def test_a_page_of_a_proxy_says_what_to_change_there(status: int, words: list[str]) -> None:
    body = b"<html><center><h1>%d</h1></center><hr><center>nginx</center></html>" % status
    with (
        Hostile(says(status, PAGE, body)) as server,
        Client(server.url, retries=NEVER) as client,
        pytest.raises(BadAnswer, match=f"HTTP {status}") as caught,
    ):
        client.decode(np.ones((1, 4, 8, 8), np.float32))
    assert all(word in str(caught.value) for word in words)


# ----------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> SelfSigned:
    return SelfSigned(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secure(own: SelfSigned) -> Iterator[str]:
    """A server with TLS that says that it lives."""
    with secure_server(own, HEALTH) as server:
        yield server.url


def health(kind: Any, url: str, **arguments: Any) -> Any:
    if kind is Client:
        with Client(url, retries=NEVER, **arguments) as client:
            return client.health()

    async def ask() -> Any:
        async with AsyncClient(url, retries=NEVER, **arguments) as client:
            return await client.health()

    return asyncio.run(ask())


both = pytest.mark.parametrize("kind", [Client, AsyncClient])


@both
def test_a_self_signed_certificate(
    kind: Any, secure: str, own: SelfSigned, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ServerUnreachable, match=r"certificate of .* is not trusted.*verify=.*--ca.*HYBRIDGE_CA"):
        health(kind, secure)
    context = ssl.create_default_context(cafile=own.certificate)
    for verify in (own.certificate, str(own.certificate), context, False):
        assert health(kind, secure, verify=verify) == {"status": "ok"}
    for variable in ("SSL_CERT_FILE", "HYBRIDGE_CA"):
        monkeypatch.setenv(variable, str(own.certificate))
        assert health(kind, secure) == {"status": "ok"}
        monkeypatch.delenv(variable)


@both
def test_a_file_without_certificates_is_named(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    for path in (empty, tmp_path / "nowhere.pem"):
        with pytest.raises(ClientError, match=f"verify= holds no certificates: saw {path}"):
            kind("https://gpu-box", verify=path)
        monkeypatch.setenv("HYBRIDGE_CA", str(path))
        with pytest.raises(ClientError, match=f"HYBRIDGE_CA holds no certificates: saw {path}"):
            kind("https://gpu-box")
        kind("http://gpu-box")


@both
def test_the_wrong_scheme(kind: Any, secure: str, stub_url: str) -> None:
    with pytest.raises(ServerUnreachable, match="https:// in the address"):
        health(kind, secure.replace("https:", "http:"))
    with pytest.raises(ServerUnreachable, match=r"does not speak TLS.*http:// in the address"):
        health(kind, stub_url.replace("http:", "https:"), verify=False)
    page = b"<html>The plain HTTP request was sent to HTTPS port</html>"
    with Hostile(says(400, PAGE, page)) as server, pytest.raises(BadAnswer, match="Try: https:// in the address"):
        health(kind, server.url)
    tls = sends(b"\x15\x03\x01\x00\x02\x02\x46")
    with Hostile(tls) as server, pytest.raises(ServerUnreachable, match="Try: https:// in the address"):
        health(kind, server.url)


@both
def test_nobody_there(kind: Any) -> None:
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{placeholder.getsockname()[1]}"
        with pytest.raises(ServerUnreachable, match=rf"{url} cannot be reached.*`hybridge serve`.*port"):
            health(kind, url)
    with pytest.raises(ServerUnreachable, match=r"http://no-such-host.invalid .*name is not known.*spelling of"):
        health(kind, "http://no-such-host.invalid", deadline_s=60)


@pytest.mark.parametrize("verb", ["encode", "decode", "models"])
def test_the_command_line_takes_certificates(verb: str) -> None:
    from typer.main import get_command

    from hybridge.cli.application import application

    options = {name for option in get_command(application).commands[verb].params for name in option.opts}
    assert "--ca" in options
