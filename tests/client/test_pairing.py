"""Pairing, with real TLS: who is refused, and that nothing secret was sent before."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import ssl
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from hostile import Hostile, in_json, read_request
from secure_servers import SelfSigned, secure_server

from hybridge.client import Client, Retry, pairing, profiles
from hybridge.client.tls import pinning
from hybridge.errors import ClientError, HybridgeError, RequestError, ServerRefused, ServerUnreachable
from hybridge.protocol.pairing_link import PairingLink, plain_name
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.middleware.invitations import invite, redeem
from hybridge.server.middleware.key_file import KeyRing
from hybridge.server.process.pairing_folder import PairingFolder
from hybridge.server.process.server import running
from hybridge.server.process.startup_checks import check_opening
from hybridge.server.settings import Settings


@dataclass(frozen=True)
class Pairing:
    """A server that pairs: its port, its certificate, its file of keys."""

    port: int
    own: SelfSigned
    keys: Path

    def link(self, port: int | None = None) -> PairingLink:
        der = ssl.PEM_cert_to_DER_cert(self.own.pem)
        return PairingLink(
            "127.0.0.1", port or self.port, hashlib.sha256(der).digest(), invite(self.keys), "desktop"
        )


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> SelfSigned:
    return SelfSigned(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> SelfSigned:
    return SelfSigned(tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="module")
def server(engines, own: SelfSigned, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pairing]:
    folder = PairingFolder(tmp_path_factory.mktemp("pairing"))
    shutil.copy(own.certificate, folder.certificate)
    shutil.copy(own.key, folder.private_key)
    settings = Settings(pairing=True, pairing_dir=folder.path)
    app = create_app(LocalBackend({"sd-v1": engines["sd-v1"]}), settings, keys=check_opening(settings))
    with running(app, listening=settings.listening) as address:
        yield Pairing(int(address.rpartition(":")[2]), own, folder.keys)


@pytest.fixture(autouse=True)
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in os.environ:
        if name.startswith("HYBRIDGE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HYBRIDGE_PROFILES", str(tmp_path / "profiles.json"))
    return tmp_path / "profiles.json"


def is_unused(server: Pairing, link: PairingLink) -> bool:
    """Whether the token of a link is still good; it is not afterwards."""
    redeem(server.keys, link.token, "unused")
    return True


def test_a_link_becomes_a_profile(server: Pairing, stored: Path) -> None:
    link = server.link()
    profile = pairing.join(str(link), machine="laptop")
    assert (profile.name, profile.addresses, profile.certificate) == ("desktop", (link.url,), server.own.pem)
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600
    with Client("desktop") as client:
        assert [model["name"] for model in client.models()] == ["sd-v1"]
    ring = KeyRing.read(server.keys)
    assert profile.key is not None
    assert ring.name_of(profile.key) == "laptop"
    assert not ring.admins
    assert link.token not in server.keys.read_text()
    # Another machine of the same name gets another key.
    again = pairing.join(str(server.link()), "second", machine="laptop")
    assert again.key is not None
    assert KeyRing.read(server.keys).name_of(again.key) == "laptop-2"


def test_a_token_that_was_used(server: Pairing, stored: Path) -> None:
    link = server.link()
    pairing.join(str(link))
    before = stored.read_bytes()
    with pytest.raises(ServerRefused, match=r"did not accept.*was used, or is over") as refused:
        pairing.join(str(link), "again")
    assert refused.value.status == 403
    assert stored.read_bytes() == before


@pytest.mark.parametrize("until_s", [-1, 0, 3600])
def test_a_token_that_is_over(server: Pairing, stored: Path, until_s: int) -> None:
    """Also one from before the clock was set back, which seems to be good for an hour."""
    link = server.link()
    text = server.keys.read_text()
    line = text.splitlines()[-1]
    server.keys.write_text(text.replace(line, f"{line.rpartition('=')[0]}={int(time.time()) + until_s}"))
    with pytest.raises(ServerRefused, match=r"did not accept.*is over"):
        pairing.join(str(link))
    assert not stored.exists()
    invite(server.keys)
    assert line.split()[0] not in KeyRing.read(server.keys).invitations  # what is over does not stay


def test_another_certificate_than_the_links(server: Pairing, other: SelfSigned, stored: Path) -> None:
    with secure_server(other, in_json({"key": "k"})) as impostor:
        link = server.link(int(impostor.url.rpartition(":")[2]))
        with pytest.raises(ServerUnreachable, match=r"is not the server that made this link.*nothing was sent"):
            pairing.join(str(link))
        assert not impostor.requests
    assert not stored.exists()
    assert is_unused(server, link)


def test_a_relay_that_shows_the_right_certificate_first(server: Pairing, other: SelfSigned, stored: Path) -> None:
    """It passes the first connection on, so that the certificate is right, and reads the second one itself."""
    context, read, connections = other.context(), [], []

    def relay(connection: socket.socket, stop: threading.Event) -> None:
        connections.append(connection)
        if len(connections) == 1:
            with socket.create_connection(("127.0.0.1", server.port)) as real:
                back = threading.Thread(target=copy, args=(real, connection))
                back.start()
                copy(connection, real)
                real.shutdown(socket.SHUT_RDWR)
                back.join()
            return
        with context.wrap_socket(connection, server_side=True) as wrapped:
            read.append(read_request(wrapped))

    with Hostile(relay, reads=False) as between:
        link = server.link(int(between.url.rpartition(":")[2]))
        with pytest.raises(ServerUnreachable, match="shows another certificate"):
            pairing.join(str(link))
    assert len(connections) == 2
    assert not read
    assert not stored.exists()
    assert is_unused(server, link)


def copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)


def test_a_certificate_that_was_replaced(server: Pairing, other: SelfSigned) -> None:
    profile = pairing.join(str(server.link()))
    with secure_server(other, in_json({})) as impostor:
        profiles.save(replace(profile, addresses=(impostor.url,)))
        with (
            Client("desktop", retries=Retry(attempts=1)) as client,
            pytest.raises(ServerUnreachable, match="shows another certificate"),
        ):
            client.models()
        assert not impostor.requests


def test_the_name_of_another_server(server: Pairing, other: SelfSigned) -> None:
    profiles.save(profiles.Profile("desktop", ("https://10.0.0.1",), "k", other.pem))
    link = server.link()
    with pytest.raises(ClientError, match=r"is another server's.*--name.*hybridge profiles remove desktop"):
        pairing.join(str(link))
    with pytest.raises(ClientError, match="not a profile's name"):
        pairing.join(str(link), "a b")
    assert pairing.join(str(link), "other-one").name == "other-one"  # none of these took the token


def test_profiles_that_others_may_read_are_found_before_the_token_is_sent(server: Pairing, stored: Path) -> None:
    stored.write_text("{}")
    stored.chmod(0o644)
    link = server.link()
    with pytest.raises(ClientError, match="chmod 600"):
        pairing.join(str(link))
    assert is_unused(server, link)


def test_a_folder_that_cannot_be_written_is_found_before_the_token_is_sent(
    server: Pairing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYBRIDGE_PROFILES", "/proc/nowhere/profiles.json")
    link = server.link()
    with pytest.raises(ClientError, match="the profiles cannot be written"):
        pairing.join(str(link))
    assert is_unused(server, link)


def test_one_token_and_many_at_once(server: Pairing) -> None:
    link = server.link()

    def ask(number: int) -> int:
        body = {"token": link.token, "name": f"racer-{number}"}
        return httpx.post(f"{link.url}/v1/pair", json=body, verify=pinning(server.own.pem)).status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(ask, range(8))) == [201] + [403] * 7
    assert sum(name.startswith("racer-") for name in KeyRing.read(server.keys).hashes) == 1


def test_the_name_of_another_invitation(tmp_path: Path) -> None:
    """Two lines of one name made a file of keys that no server could read."""
    file = tmp_path / "keys"
    token = invite(file)
    invite(file)
    taken = list(KeyRing.read(file).invitations)[1]
    name, key = redeem(file, token, taken)
    ring = KeyRing.read(file)
    assert (name, ring.name_of(key), list(ring.invitations)) == (f"{taken}-2", name, [taken])


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"token": "x" * 22, "name": "a"}, 403, "PairingRefused"),
        ({"token": "x" * 4000, "name": "a"}, 403, "PairingRefused"),
        ({"token": "\udcff", "name": "a"}, 403, "PairingRefused"),
        ({"token": "x", "name": "a b"}, 400, "RequestError"),
        ({"token": 5, "name": "a"}, 400, "RequestError"),
        ({"token": "x"}, 400, "RequestError"),
        ({"token": "x", "name": "a", "admin": True}, 400, "UnknownParameter"),
        ([], 400, "RequestError"),
    ],
)
def test_strangers(server: Pairing, body: object, status: int, code: str) -> None:
    before = server.keys.read_bytes()
    url = f"https://127.0.0.1:{server.port}/v1/pair"
    refused = httpx.post(url, content=json.dumps(body), verify=pinning(server.own.pem))
    assert (refused.status_code, refused.json()["code"]) == (status, code)
    assert server.keys.read_bytes() == before


def test_servers_that_do_not_pair(engines, server: Pairing) -> None:
    for keys, status in ((None, 404), (KeyRing({}), 404)):
        with running(create_app(LocalBackend({"sd-v1": engines["sd-v1"]}), keys=keys)) as address:
            assert httpx.post(f"{address}/v1/pair", json={"token": "x", "name": "a"}).status_code == status
            link = replace(server.link(), port=int(address.rpartition(":")[2]))
            with pytest.raises(ServerUnreachable, match=r"cannot be reached.*--public --pairing"):
                pairing.join(str(link))
    with (
        secure_server(server.own, in_json({"error": "no such path"}, status=404)) as elsewhere,
        pytest.raises(ServerRefused, match=r"did not accept.*Try: a server that runs with --pairing"),
    ):
        pairing.join(str(server.link(int(elsewhere.url.rpartition(":")[2]))))


@pytest.mark.parametrize("answer", [{}, [], {"key": ""}, {"key": 5}, {"key": "a\nb"}, {"key": "x" * 100_000}])
def test_answers_without_a_key(server: Pairing, stored: Path, answer: object) -> None:
    with (
        secure_server(server.own, in_json(answer)) as strange,
        pytest.raises(ClientError, match=r"without a usable key|answered with too much"),
    ):
        pairing.join(str(server.link(int(strange.url.rpartition(":")[2]))))
    assert not stored.exists()


def test_a_link_that_was_pasted_in_part(server: Pairing) -> None:
    link = replace(server.link(), name=None)
    for length in range(len(str(link))):
        with pytest.raises(RequestError, match=r"not a pairing link|not whole.*copying all of it") as refused:
            PairingLink.parse(str(link)[:length])
        assert link.token not in str(refused.value)
    named = str(replace(link, name="desktop"))
    for text in (named, f"  {named[:50]}\n  {named[50:]}\n", named.replace(",", "&")):
        assert PairingLink.parse(text) == replace(link, name="desktop")
    assert link.token not in repr(link)
    assert PairingLink.parse(str(replace(link, host="fd00::1"))).url == f"https://[fd00::1]:{link.port}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "desktop",
        "https://h:1/#f={f},t={t}",
        "hybridge://h/#f={f},t={t}",
        "hybridge://h:0/#f={f},t={t}",
        "hybridge://h:99999/#f={f},t={t}",
        "hybridge://[::1/#f={f},t={t}",
        "hybridge://:8000/#f={f},t={t}",
        "hybridge://h:1/?f={f}&t={t}",
        "hybridge://h:1/#f={t},t={t}",
        "hybridge://h:1/#f={f},t={f}",
        "hybridge://h:1/#f={f},t=" + "!" * 22,
        "hybridge://" + "h" * 300 + ":1/#f={f},t={t}",
    ],
)
def test_what_is_no_link(text: str) -> None:
    with pytest.raises(RequestError, match=r"not a pairing link|not whole"):
        PairingLink.parse(text.format(f="A" * 43, t="A" * 22))


def test_names_of_machines() -> None:
    names = ["gpu-box.local", "Jane's PC", "..", "ÄÖ", "x" * 80]
    assert [plain_name(name) for name in names] == ["gpu-box", "jane-s-pc", None, None, "x" * 63]


class TestFolder:
    def test_a_certificate_is_made_once(self, tmp_path: Path) -> None:
        pytest.importorskip("cryptography")
        folder = PairingFolder(tmp_path / "new" / "folder")
        folder.prepare()
        before = folder.certificate.read_bytes(), folder.private_key.read_bytes()
        folder.prepare()
        assert (folder.certificate.read_bytes(), folder.private_key.read_bytes()) == before
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in folder.path.iterdir()} == {0o600}
        made = SelfSigned.of(folder.certificate, folder.private_key)
        with secure_server(made, in_json({"models": []})) as server:
            profiles.save(profiles.Profile("made", (server.url,), None, made.pem))
            with Client("made") as client:
                assert client.models() == []

    def test_a_clock_that_is_wrong_locks_nobody_out(self, tmp_path: Path, monkeypatch) -> None:
        """A certificate that is not valid yet, by the client's clock."""
        pytest.importorskip("cryptography")
        from datetime import timedelta

        from hybridge.server.process import pairing_folder

        monkeypatch.setattr(pairing_folder, "_BEFORE", timedelta(days=-300))
        folder = PairingFolder(tmp_path)
        folder.prepare()
        made = SelfSigned.of(folder.certificate, folder.private_key)
        with secure_server(made, in_json({"models": []})) as server:
            with (
                pytest.raises(ServerUnreachable),
                Client(server.url, verify=folder.certificate, retries=Retry(attempts=1)) as client,
            ):
                client.models()
            profiles.save(profiles.Profile("made", (server.url,), None, made.pem))
            with Client("made") as client:
                assert client.models() == []

    def test_a_certificate_of_ones_own(self, tmp_path: Path, own: SelfSigned) -> None:
        folder = tmp_path / "folder"
        settings = Settings(pairing=True, pairing_dir=folder, tls_cert=own.certificate, tls_key=own.key)
        keys = check_opening(settings)
        assert keys is not None
        assert settings.certificate == (own.certificate, own.key)
        assert [file.name for file in folder.iterdir()] == ["keys"]

    def test_half_of_a_certificate(self, tmp_path: Path) -> None:
        (tmp_path / "certificate.pem").write_text("x")
        with pytest.raises(HybridgeError, match="half of a certificate"):
            PairingFolder(tmp_path).prepare()
        with pytest.raises(HybridgeError, match=r"cannot be written.*--pairing-dir"):
            PairingFolder(Path("/proc/nowhere")).prepare()
