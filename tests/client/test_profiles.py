"""Servers under a name: where they are stored, who may read them, and which certificate they have to show."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hostile import Hostile, in_json
from secure_servers import SelfSigned, secure_server

from hybridge.client import AsyncClient, Client, Retry
from hybridge.client import profiles as store
from hybridge.client.profiles import Profile
from hybridge.errors import ClientError, ServerUnreachable

NEVER = Retry(attempts=1)
HEALTH = in_json({"status": "ok"})
SECRETS = ("s3cret", "k3y")


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in os.environ:
        if name.startswith("HYBRIDGE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HYBRIDGE_PROFILES", str(tmp_path / "profiles.json"))
    return tmp_path / "profiles.json"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> SelfSigned:
    return SelfSigned(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> SelfSigned:
    return SelfSigned(tmp_path_factory.mktemp("other"))


def health(kind: Any, servers: Any, **arguments: Any) -> Any:
    if kind is Client:
        with Client(servers, retries=NEVER, **arguments) as client:
            return client.health()

    async def ask() -> Any:
        async with AsyncClient(servers, retries=NEVER, **arguments) as client:
            return await client.health()

    return asyncio.run(ask())


both = pytest.mark.parametrize("kind", [Client, AsyncClient])


@both
def test_a_client_takes_the_name_of_a_profile(kind: Any) -> None:
    with Hostile(HEALTH) as server:
        store.save(Profile("desktop", (server.url,), "k3y"))
        assert health(kind, "desktop") == {"status": "ok"}
        assert b"authorization: bearer k3y" in server.requests[-1].lower()
        assert health(kind, ["desktop", server.url], api_key=None) == {"status": "ok"}


def test_a_file_that_only_its_owner_may_read(file: Path) -> None:
    store.save(Profile("laptop", ("http://10.0.0.2:8000",)))
    store.save(Profile("desktop", ("https://10.0.0.1", "https://gpu.local"), "k3y"))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [one.name for one in store.load_all()] == ["desktop", "laptop"]
    assert store.load("desktop").addresses == ("https://10.0.0.1", "https://gpu.local")
    assert not any(secret in repr(store.load("desktop")) for secret in SECRETS)
    file.chmod(0o640)
    with pytest.raises(ClientError, match=rf"others.*mode 0640.*0600.*chmod 600 {file}"):
        Client("desktop")
    file.chmod(0o600)
    store.remove("desktop")
    with pytest.raises(ClientError, match=r"no profile of this name: .*expected laptop"):
        store.remove("desktop")
    assert list(file.parent.iterdir()) == [file]


def test_where_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYBRIDGE_PROFILES")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert store.file_path() == tmp_path / "hybridge" / "profiles.json"
    path = store.save(Profile("desktop", ("http://10.0.0.1",)))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert store.file_path() == tmp_path / ".config" / "hybridge" / "profiles.json"


@both
def test_profiles_of_the_environment(
    kind: Any, own: SelfSigned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with secure_server(own, HEALTH) as server:
        monkeypatch.setenv("HYBRIDGE_PROFILE_GPU_BOX_KEY", "k3y")
        with pytest.raises(ClientError, match="HYBRIDGE_PROFILE_GPU_BOX_URL is not set"):
            kind("gpu-box")
        monkeypatch.setenv("HYBRIDGE_PROFILE_GPU_BOX_URL", server.url)
        for certificate in (own.pem, str(own.certificate)):
            monkeypatch.setenv("HYBRIDGE_PROFILE_GPU_BOX_CERTIFICATE", certificate)
            assert health(kind, "gpu-box") == {"status": "ok"}
        store.save(Profile("gpu-box", ("http://127.0.0.1:1",)))
        assert health(kind, "gpu-box") == {"status": "ok"}
        assert [one.addresses for one in store.load_all()] == [(server.url,)]
        monkeypatch.setenv("HYBRIDGE_PROFILE_GPU_BOX_CERTIFICATE", str(tmp_path / "nowhere.pem"))
        with pytest.raises(ClientError, match="HYBRIDGE_PROFILE_GPU_BOX_CERTIFICATE names cannot be read"):
            kind("gpu-box")


@both
def test_only_the_profiles_own_certificate_is_accepted(kind: Any, own: SelfSigned, other: SelfSigned) -> None:
    with secure_server(own, HEALTH) as server, secure_server(other, HEALTH) as replaced:
        store.save(Profile("desktop", (server.url,), "k3y", own.pem))
        store.save(Profile("another", (replaced.url,), "k3y", other.pem))
        for name in ("desktop", "another", ["desktop", "another"]):
            assert health(kind, name) == {"status": "ok"}
        seen = len(replaced.requests)
        # Each server's certificate is good for that server alone, even in one client that knows both.
        store.save(Profile("desktop", (replaced.url,), "k3y", own.pem))
        for arguments in ({}, {"verify": other.certificate}, {"verify": False}):
            with pytest.raises(
                ServerUnreachable, match=r"shows another certificate.*nothing was sent.*hybridge join"
            ):
                health(kind, "desktop", **arguments)
        assert len(replaced.requests) == seen


def test_two_servers_do_not_vouch_for_each_other(own: SelfSigned, other: SelfSigned) -> None:
    with secure_server(own, HEALTH) as server, secure_server(own, HEALTH) as impostor:
        store.save(Profile("desktop", (server.url,), "k3y", own.pem))
        store.save(Profile("another", (impostor.url,), "k3y", other.pem))
        for _ in range(3):
            assert health(Client, ["desktop", "another"]) == {"status": "ok"}
        assert not impostor.requests


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ClientError, match=r"no profile has this name.*hybridge join.*Try: http://"):
        Client("desktop")
    store.save(Profile("desktop", ("http://10.0.0.1",), "s3cret"))
    store.save(Profile("laptop", ("http://10.0.0.2",)))
    with pytest.raises(ClientError, match=r"expected desktop, laptop\. Try: desktop, or http://"):
        Client("destop")
    with pytest.raises(ClientError) as caught:
        Client("k3y0123456789abcdefghijklmnopqrstuvwxyz")
    assert "k3y" not in str(caught.value)
    for address in ("gpu.local", "10.0.0.1:8000", "gpu:8000", ""):
        with pytest.raises(ClientError, match="this is not a server's address"):
            Client(address)


def test_two_keys_are_refused() -> None:
    store.save(Profile("desktop", ("http://10.0.0.1",), "s3cret"))
    with pytest.raises(ClientError, match=r"two keys for desktop.*HYBRIDGE_KEY") as caught:
        Client("desktop", api_key="k3y")
    assert not any(secret in str(caught.value) for secret in SECRETS)
    store.save(Profile("desktop", ("http://10.0.0.1",)))
    assert store.addresses_of("desktop", "k3y")[0].headers() == {"authorization": "Bearer k3y"}


ENTRY = {"addresses": ["https://10.0.0.1"], "key": "s3cret"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON: saw line 1"),
        ("\xff", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "expected an object of profiles"),
        (" " * (1 << 20) + "{}", "more than 1 MiB"),
        ({"a b": ENTRY}, "an entry that is no profile"),
        ({"desktop": []}, "an entry that is no profile"),
        ({"desktop": {}}, "`addresses`, a list"),
        ({"desktop": {"addresses": "https://10.0.0.1"}}, "`addresses`, a list"),
        ({"desktop": {"addresses": []}}, "has no address"),
        ({"desktop": {**ENTRY, "adresses": []}}, "does not know.*Try: addresses"),
        ({"desktop": {**ENTRY, "key": 5}}, "`key`, texts"),
        ({"desktop": {**ENTRY, "key": "s3cret\n\x00"}}, "desktop is wrong: this api_key cannot be sent"),
        ({"desktop": {**ENTRY, "certificate": "s3cret"}}, "unusable certificate"),
        ({"desktop": {"addresses": ["10.0.0.1"]}}, "desktop is wrong: this is not a server's address"),
        ({"desktop": {"addresses": ["http://me:s3cret@h"]}}, "has a key in its address"),
        ({"desktop": {"addresses": ["http://me:s3cret@h"], "key": "k3y"}}, "desktop is wrong: two credentials"),
    ],
)
def test_a_file_that_is_none(file: Path, content: Any, words: str) -> None:
    file.write_bytes((content if isinstance(content, str) else json.dumps(content)).encode("latin-1"))
    file.chmod(0o600)
    with pytest.raises(ClientError, match=words) as caught:
        Client("desktop")
    assert not any(secret in str(caught.value) for secret in SECRETS)


def test_profiles_that_cannot_be(own: SelfSigned, other: SelfSigned) -> None:
    for name in ("", "a.b", "a b", "-a", "x" * 64, "ü"):
        with pytest.raises(ClientError, match="not a profile's name"):
            Profile(name, ("http://h",))
    with pytest.raises(ClientError, match="an address without TLS"):
        Profile("desktop", ("http://h",), None, own.pem)
    with pytest.raises(ClientError, match="one certificate"):
        Profile("desktop", ("https://h",), None, own.pem + other.pem)


def test_many_that_are_stored_at_once() -> None:
    names = [f"box-{number}" for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.save(Profile(name, ("http://h",))), names))
    assert [one.name for one in store.load_all()] == sorted(names)


def test_a_file_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDGE_PROFILES", "/proc/nowhere/profiles.json")
    with pytest.raises(ClientError, match="cannot be written"):
        store.save(Profile("desktop", ("http://h",)))
    with pytest.raises(ClientError, match="cannot be written"):
        store.check_writable()
    with pytest.raises(ClientError, match="no profile is stored"):
        store.remove("desktop")
