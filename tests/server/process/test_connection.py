"""Connections before and around requests: slow ones, idle ones, too many, too much, and TLS."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from hybridge.errors import HybridgeError
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.middleware.request_record import RequestRecord
from hybridge.server.process.connection_limits import ConnectionLimits
from hybridge.server.process.server import ListenOptions, bind, raise_file_limit, running
from hybridge.server.process.startup_checks import check_opening
from hybridge.server.settings import Settings

QUERY = {"shape": [1, 4, 8, 8], "dtype": "float32"}
BODY = bytes(1024)
BINARY = {"content-type": "tensor/binary"}
HOST = b"host: localhost\r\n"
POST = (
    b"POST /v1/sd-v1/decode?shape=1,4,8,8&dtype=float32 HTTP/1.1\r\nhost: localhost\r\n"
    b"content-type: tensor/binary\r\ncontent-length: 1024\r\n\r\n"
)


@contextmanager
def serving(engines, listening: ListenOptions | None = None, **settings: object) -> Iterator[str]:
    chosen = Settings(**settings)
    app = create_app(LocalBackend({"sd-v1": engines["sd-v1"]}), chosen)
    with running(app, listening=listening or chosen.listening) as address:
        yield address


@pytest.fixture(scope="module")
def server(engines) -> Iterator[str]:
    with serving(engines, head_timeout_s=0.3, body_pause_s=0.3) as address:
        yield address


def connect(server: str) -> socket.socket:
    url = urlsplit(server)
    return socket.create_connection((url.hostname, url.port), timeout=20)


def answer_of(connection: socket.socket) -> tuple[int | None, bytes]:
    """Status and body of all that comes until the server hangs up; None if it says nothing."""
    try:
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    except ConnectionResetError:
        return None, b""
    if not answer:
        return None, b""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def assert_refused(connection: socket.socket, status: int, word: str) -> None:
    found, body = answer_of(connection)
    assert found == status
    assert word in json.loads(body)["error"]


def serves(server: str) -> bool:
    return httpx.post(f"{server}/v1/sd-v1/decode", params=QUERY, content=BODY, headers=BINARY).status_code == 200


@contextmanager
def dripping(connection: socket.socket, drop: bytes = b"x") -> Iterator[None]:
    """Sends a drop twenty times a second, as long as it can."""
    stop = threading.Event()

    def drip() -> None:
        with suppress(OSError):
            while not stop.wait(0.05):
                connection.sendall(drop)

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class TestSlowSenders:
    def test_headers_that_never_end(self, server) -> None:
        with connect(server) as connection:
            connection.sendall(b"POST / HTTP/1.1\r\nhost: localhost\r\nx-slow: ")
            assert_refused(connection, 408, "did not end within 0.3 s")

    def test_headers_in_drops_get_no_more_time(self, server) -> None:
        """A byte now and then does not start the clock again."""
        with connect(server) as connection:
            connection.sendall(b"POST / HTTP/1.1\r\nhost: localhost\r\nx-slow: ")
            with dripping(connection):
                status, _ = answer_of(connection)
            assert status in (408, None)  # a drip that meets a closed door may cost the answer

    @pytest.mark.parametrize("first", [b"", b"\r\n"])
    def test_silence(self, server, first) -> None:
        with connect(server) as connection:
            connection.sendall(first)
            assert answer_of(connection) == (None, b"")

    def test_a_second_request_that_never_ends(self, server) -> None:
        with connect(server) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert b"200 OK" in connection.recv(65536)
            connection.sendall(b"GET /health HT")
            assert_refused(connection, 408, "did not end")

    def test_a_body_that_stops(self, server) -> None:
        with connect(server) as connection:
            connection.sendall(POST.replace(HOST, HOST + b"connection: close\r\n") + b"only this")
            assert_refused(connection, 408, "the body stopped coming")

    def test_a_body_in_drops(self, server) -> None:
        """Less than 4 KiB a second is no better than nothing, however small the pauses are."""
        with connect(server) as connection:
            connection.sendall(POST.replace(HOST, HOST + b"connection: close\r\n").replace(b": 1024", b": 100000"))
            with dripping(connection):
                status, _ = answer_of(connection)
            assert status in (408, None)  # a drip that meets a closed door may cost the answer

    def test_a_body_in_drops_after_much_at_once(self, server) -> None:
        """Before, what had come quickly was as good as seconds: two minutes here, and hours for a large body."""
        with connect(server) as connection:
            connection.sendall(POST.replace(b": 1024", b": 1000000") + bytes(500_000))
            with dripping(connection):
                status, _ = answer_of(connection)
            assert status in (408, None)

    def test_a_body_that_would_take_all_day(self, server) -> None:
        """Never slow enough to be given up on for a pause."""
        with connect(server) as connection:
            connection.sendall(POST.replace(b": 1024", b": 10000000"))
            with dripping(connection, bytes(512)):
                status, _ = answer_of(connection)
            assert status in (408, None)

    def test_hundreds_of_them_hold_nobody_up(self, server) -> None:
        with ExitStack() as stack:
            slow = [stack.enter_context(connect(server)) for _ in range(300)]
            for connection in slow:
                connection.sendall(POST[:-20])
            assert serves(server)


class TestTooMuch:
    @pytest.mark.parametrize(
        "head",
        [
            b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 40_000 + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\nx: " + b"y" * 400_000,
            b"GET / HTTP/1.1\r\n" + b"".join(b"h%d: x\r\n" % number for number in range(101)) + b"\r\n",
        ],
        ids=["address", "one header", "a header without an end", "many headers"],
    )
    def test_heads(self, server, head) -> None:
        with connect(server) as connection:
            connection.sendall(head)
            status, body = answer_of(connection)
            assert status in (431, None)  # None where the answer was lost to what was still being sent
            if status:
                assert "belong in the body" in json.loads(body)["error"]
        assert serves(server)

    def test_what_frames_a_body(self, server) -> None:
        """Extensions of chunks and headers behind the last one are bounded like headers in front."""
        chunked = POST.replace(b"content-length: 1024", b"connection: close\r\ntransfer-encoding: chunked")
        for endless in (b"400;" + b"x" * 70_000, b"0\r\nx: " + b"y" * 70_000, b"0\r\n" + b"x: y\r\n" * 200):
            with connect(server) as connection:
                connection.sendall(chunked)
                connection.sendall(endless)
                assert answer_of(connection)[0] in (400, 408, 431, None)
        assert serves(server)

    def test_ordinary_large_requests_pass(self, server) -> None:
        headers = {f"x-{number}": "y" * 200 for number in range(80)}
        assert httpx.get(f"{server}/health", headers=headers).status_code == 200
        with httpx.Client() as client:
            for _ in range(3):
                body = bytes(4 * 4 * 256 * 256)
                large = client.post(f"{server}/v1/sd-v1/decode", params={**QUERY, "shape": "x"}, content=body)
                assert large.status_code == 400

    def test_bodies_of_all_requests_together(self, engines) -> None:
        with serving(engines, max_body_mib=1, max_inflight_mib=1) as server, connect(server) as first:
            first.sendall(POST.replace(b": 1024", b": 1000000") + bytes(900_000))
            metrics = f"{server}/metrics"
            # The server has read all of it when its own number says so.
            while "hybridge_inflight_bytes 900000.0" not in httpx.get(metrics).text:
                pass
            refused = httpx.post(f"{server}/v1/sd-v1/decode", params=QUERY, content=bytes(200_000), headers=BINARY)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert "--max-inflight-mib" in refused.json()["error"]
            parts = (bytes(100_000) for _ in range(2))
            uncounted = httpx.post(f"{server}/v1/sd-v1/decode", params=QUERY, content=parts, headers=BINARY)
            assert uncounted.status_code == 429
            assert serves(server)
            first.close()
            while "hybridge_inflight_bytes 0.0" not in httpx.get(metrics).text:
                pass
            assert serves(server)

    def test_who_holds_most_makes_room_for_others(self, engines) -> None:
        """Before, two slow senders of much kept everybody out."""
        limits = {"max_body_mib": 1, "max_inflight_mib": 1, "trusted_proxies": "127.0.0.1"}
        with serving(engines, **limits) as server, ExitStack() as stack:
            slow = [stack.enter_context(connect(server)) for _ in range(2)]
            for number, connection in enumerate(slow):
                head = b"connection: close\r\nx-forwarded-for: 192.0.2.%d\r\n" % number
                connection.sendall(POST.replace(HOST, HOST + head).replace(b": 1024", b": 540000"))
                connection.sendall(bytes(500_000))
            end = time.monotonic() + 20
            while "hybridge_inflight_bytes 1e+06" not in httpx.get(f"{server}/metrics").text:
                assert time.monotonic() < end
            for parts in (BODY, bytes(300_000), (bytes(100_000) for _ in range(2))):
                honest = httpx.post(
                    f"{server}/v1/sd-v1/decode",
                    params=QUERY,
                    content=parts,
                    headers={**BINARY, "x-forwarded-for": "192.0.2.77"},
                )
                assert honest.status_code == (200 if parts is BODY else 400)
            assert_refused(slow[0], 429, "--max-inflight-mib")
            # Nobody else holds more than this one would.
            greedy = httpx.post(
                f"{server}/v1/sd-v1/decode",
                params=QUERY,
                content=bytes(600_000),
                headers={"x-forwarded-for": "192.0.2.5"},
            )
            assert greedy.status_code == 429


class TestTooMany:
    def test_who_is_silent_longest_makes_room(self, engines) -> None:
        listening = ListenOptions(ConnectionLimits(max_connections=20))
        with serving(engines, listening) as server, ExitStack() as stack:
            idle = [stack.enter_context(connect(server)) for _ in range(20)]
            assert serves(server)
            assert answer_of(idle[0]) == (None, b"")
            late = [stack.enter_context(connect(server)) for _ in range(100)]
            assert serves(server)
            assert answer_of(idle[-1]) == (None, b"")
            late[-1].sendall(b"GET /health HTTP/1.0\r\n\r\n")
            assert answer_of(late[-1])[0] == 200

    def test_a_request_is_not_sent_away_for_a_newcomer(self, engines) -> None:
        listening = ListenOptions(ConnectionLimits(max_connections=2))
        with serving(engines, listening) as server, ExitStack() as stack:
            busy = [stack.enter_context(connect(server)) for _ in range(2)]
            for connection in busy:
                connection.sendall(POST.replace(HOST, HOST + b"expect: 100-continue\r\n"))
                assert connection.recv(65536).startswith(b"HTTP/1.1 100")  # so the server waits for its body
            with connect(server) as newcomer:
                newcomer.sendall(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n")
                assert_refused(newcomer, 503, "2 connections are busy")
            for path in ("/health", "/ready", "/metrics"):
                assert httpx.get(f"{server}{path}").status_code == 200
            for connection in busy:
                connection.sendall(bytes(1024))
                assert connection.recv(65536).startswith(b"HTTP/1.1 200")

    def test_probes_are_let_in_beside_strangers_who_never_ask(self, engines) -> None:
        """However many come while every connection has a request."""
        with serving(engines, ListenOptions(ConnectionLimits(max_connections=2))) as server, ExitStack() as stack:
            busy = [stack.enter_context(connect(server)) for _ in range(2)]
            for connection in busy:
                connection.sendall(POST.replace(HOST, HOST + b"expect: 100-continue\r\n"))
                assert connection.recv(65536).startswith(b"HTTP/1.1 100")
            for _ in range(100):
                stack.enter_context(connect(server))
            assert httpx.get(f"{server}/health").status_code == 200
            for connection in busy:
                connection.sendall(bytes(1024))
                assert connection.recv(65536).startswith(b"HTTP/1.1 200")

    def test_as_many_as_there_are_files(self) -> None:
        import resource

        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
            assert raise_file_limit(2000) == 2000
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 2256
            assert raise_file_limit(before[1] + 1) == before[1] - 256
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)


class TestTls:
    @pytest.fixture(scope="class")
    @classmethod
    def files(cls, tmp_path_factory) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("tls")
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        command += " -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
        return folder / "cert.pem", folder / "key.pem"

    def test_https(self, engines, files) -> None:
        cert, key = files
        settings = Settings(tls_cert=cert, tls_key=key)
        check_opening(settings)
        with serving(engines, tls_cert=cert, tls_key=key) as server:
            assert server.startswith("https://")
            trusting = ssl.create_default_context(cafile=cert)
            with httpx.Client(verify=trusting) as client:
                response = client.post(f"{server}/v1/sd-v1/decode", params=QUERY, content=BODY, headers=BINARY)
            assert response.status_code == 200

    def test_a_handshake_that_never_comes_counts_and_ends(self, engines, files) -> None:
        """Before, it counted nowhere and lasted a minute."""
        cert, key = files
        with serving(engines, tls_cert=cert, tls_key=key, head_timeout_s=0.5) as server:
            hello = b"\x16\x03\x01\x02\x00\x01"
            for said in (b"", hello, b"GET / HTTP/1.1\r\n\r\n"):
                with connect(server) as connection:
                    connection.sendall(said)
                    with suppress(ConnectionResetError):
                        while connection.recv(65536):
                            pass
            with connect(server) as connection, dripping(connection), suppress(ConnectionResetError):
                while connection.recv(65536):
                    pass

    def test_handshakes_make_room_for_others(self, engines, files) -> None:
        cert, key = files
        with (
            serving(engines, tls_cert=cert, tls_key=key, head_timeout_s=600, max_connections=20) as server,
            ExitStack() as stack,
        ):
            silent = [stack.enter_context(connect(server)) for _ in range(60)]
            trusting = ssl.create_default_context(cafile=cert)
            assert httpx.get(f"{server}/health", verify=trusting).status_code == 200
            assert answer_of(silent[0]) == (None, b"")

    def test_requests_right_behind_the_handshake(self, engines, files) -> None:
        cert, key = files
        trusting = ssl.create_default_context(cafile=cert)
        with serving(engines, tls_cert=cert, tls_key=key) as server:
            for _ in range(20):
                # Nothing between the end of the handshake and the request, in one packet with it.
                into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
                tls = trusting.wrap_bio(into, out, server_hostname="127.0.0.1")
                with connect(server) as connection:
                    while True:
                        try:
                            tls.do_handshake()
                            break
                        except ssl.SSLWantReadError:
                            connection.sendall(out.read())
                            into.write(connection.recv(65536))
                    tls.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                    connection.sendall(out.read())
                    answer = b""
                    while b"}" not in answer:
                        into.write(connection.recv(65536))
                        with suppress(ssl.SSLWantReadError):
                            while data := tls.read(65536):
                                answer += data
                    assert answer.startswith(b"HTTP/1.1 200")

    def test_what_cannot_be_used_is_refused_at_the_start(self, files, tmp_path) -> None:
        cert, _ = files
        with pytest.raises(ValueError, match="go together"):
            Settings(tls_cert=cert)
        (tmp_path / "key.pem").write_text("no key")
        for wrong in (tmp_path / "key.pem", tmp_path / "missing.pem"):
            with pytest.raises(HybridgeError, match="this certificate cannot be used"):
                check_opening(Settings(tls_cert=cert, tls_key=wrong))


class TestProxies:
    """Whom the server takes a client for, which decides who shares a place in the waiting line."""

    @staticmethod
    def seen(engines, forwarded: Sequence[str], host: str = "127.0.0.1", **about) -> list[str]:
        records: list[RequestRecord] = []
        app = create_app(LocalBackend({"sd-v1": engines["sd-v1"]}), Settings(**about), observers=[records.append])
        with running(app, host=host, listening=Settings(**about).listening) as address:
            here = f"http://127.0.0.1:{urlsplit(address).port}"
            for value in forwarded:
                httpx.get(f"{here}/v1/models", headers={"x-forwarded-for": value} if value else {})
        return [record.client_id for record in records]

    CLIENTS = ("203.0.113.7", "203.0.113.8", "6.6.6.6, 203.0.113.7", "2001:db8:1:2:3::4", "nonsense", "")

    def test_nobody_is_believed_unless_named(self, engines) -> None:
        assert set(self.seen(engines, self.CLIENTS)) == {"address:127.0.0.1"}
        assert set(self.seen(engines, self.CLIENTS, trusted_proxies="192.0.2.0/24")) == {"address:127.0.0.1"}

    @pytest.mark.parametrize("named", ["127.0.0.1", "192.0.2.1,127.0.0.0/8"])
    def test_behind_a_proxy_each_client_has_its_own_address(self, engines, named) -> None:
        assert self.seen(engines, self.CLIENTS, trusted_proxies=named) == [
            "address:203.0.113.7",
            "address:203.0.113.8",
            "address:203.0.113.7",  # what the proxy wrote, not what its client claims
            "address:2001:db8:1:2::/64",
            "address:unknown",
            "address:127.0.0.1",
        ]

    def test_a_socket_for_both_versions(self, engines) -> None:
        """It shows IPv4 as a part of IPv6, all of it in one /64."""
        try:
            bind("::", 0).close()
        except OSError:
            pytest.skip("no IPv6 here")
        assert self.seen(engines, [""], "::") == ["address:127.0.0.1"]
        assert self.seen(engines, ["::ffff:203.0.113.7"], "::", trusted_proxies="127.0.0.1") == [
            "address:203.0.113.7"
        ]

    @pytest.mark.parametrize("named", ["*", "proxy.example", "10.0.0.0/33", "0.0.0.0/0"])
    def test_what_names_nobody_or_everybody(self, named) -> None:
        with pytest.raises(ValueError, match="address"):
            Settings(trusted_proxies=(named,))


def test_a_refused_preflight_is_json(engines) -> None:
    with serving(engines, cors=("https://example.org",)) as server:
        url = f"{server}/v1/sd-v1/decode"
        asking = {"origin": "https://other.example", "access-control-request-method": "POST"}
        refused = httpx.options(url, headers=asking)
        assert refused.status_code == 400
        assert refused.json() == {"error": "Disallowed CORS origin", "code": "http-400"}
        assert "access-control-allow-origin" not in refused.headers
    with serving(engines) as server:
        off = httpx.options(f"{server}/v1/sd-v1/decode", headers=asking)
        assert off.status_code == 405
        assert "error" in off.json()


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="room for one body"):
        Settings(max_inflight_mib=1)
    assert replace(Settings(grace_s=1).listening, grace_s=60) == ListenOptions()
