"""Keys of a running server: added and revoked by admins, and by whoever changes the file."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from hybridge.errors import HybridgeError
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.middleware.key_file import KeyFile, KeyRing, add_key, remove_key
from hybridge.server.process.server import running


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys"


@pytest.fixture(scope="module")
def admin(file: Path) -> str:
    return add_key(file, "boss", is_admin=True)


@pytest.fixture(scope="module")
def server(engines, file: Path, admin: str) -> Iterator[str]:
    with running(create_app(LocalBackend({"sd-v1": engines["sd-v1"]}), keys=KeyFile(file))) as address:
        yield address


@pytest.fixture
def boss(server: str, admin: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, headers={"authorization": f"Bearer {admin}"}) as client:
        yield client


def opens(server: str, key: str) -> bool:
    return httpx.get(f"{server}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200


def test_an_admin_adds_lists_and_revokes(boss: httpx.Client, server: str, file: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    made = boss.post("/v1/keys", json={"name": "alice"})
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    key = made.json()["key"]
    assert made.json() == {"name": "alice", "admin": False, "key": key}
    assert opens(server, key)
    listed = boss.get("/v1/keys")
    assert listed.json() == {"keys": [{"name": "boss", "admin": True}, {"name": "alice", "admin": False}]}
    assert "sha256" not in listed.text
    assert key not in file.read_text()
    assert boss.delete("/v1/keys/alice").status_code == 204
    assert not opens(server, key)
    assert "alice" not in KeyRing.read(file).hashes
    assert "key:boss has added the key alice" in caplog.text
    assert "key:boss has revoked the key alice" in caplog.text
    assert key not in caplog.text


def test_an_admin_makes_another_one(boss: httpx.Client, server: str) -> None:
    second = boss.post("/v1/keys", json={"name": "second", "admin": True}).json()["key"]
    headers = {"authorization": f"Bearer {second}"}
    assert httpx.delete(f"{server}/v1/keys/second", headers=headers).status_code == 204
    assert httpx.get(f"{server}/v1/keys", headers=headers).status_code == 401


def test_the_file_is_the_truth(server: str, file: Path, boss: httpx.Client, caplog) -> None:
    key = add_key(file, "by-hand")
    assert opens(server, key)
    remove_key(file, "by-hand")
    assert not opens(server, key)
    text = file.read_text()
    try:
        for broken in ("what is this\n", None):
            if broken is None:
                file.unlink()
            else:
                file.write_text(broken)
            for _ in range(2):
                assert boss.get("/v1/keys").status_code == 200
        assert caplog.text.count("the keys stay as they were") == 2
    finally:
        file.write_text(text)


def test_a_file_that_could_not_be_read_for_a_while(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, a key that was revoked while the process had no file left to open stayed valid."""
    key = add_key(file, "revoked")
    keys, now, read = KeyFile(file), [0.0], KeyRing.read

    def fail(_: Path) -> KeyRing:
        raise HybridgeError("the key file cannot be read", saw="Too many open files")

    monkeypatch.setattr("hybridge.server.middleware.key_file.time.monotonic", lambda: now[0])
    remove_key(file, "revoked")
    monkeypatch.setattr(KeyRing, "read", fail)
    assert keys.current.name_of(key) == "revoked"
    monkeypatch.setattr(KeyRing, "read", read)
    assert keys.current.name_of(key) == "revoked"
    now[0] = 1.0
    assert keys.current.name_of(key) is None


def test_other_keys_may_not(server: str, file: Path, boss: httpx.Client) -> None:
    headers = {"authorization": f"Bearer {add_key(file, 'guest')}"}
    for method, path in (("GET", "/v1/keys"), ("POST", "/v1/keys"), ("DELETE", "/v1/keys/boss")):
        refused = httpx.request(method, server + path, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (403, "AdminNeeded")
        assert httpx.request(method, server + path).status_code == 401
    assert boss.delete("/v1/keys/guest").status_code == 204


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ('{"name": "boss"}', 409, "a key is named boss already"),
        ('{"name": "a b"}', 400, "not a key's name"),
        ('{"name": "' + "x" * 65 + '"}', 400, "not a key's name"),
        ('{"name": 5}', 400, "this describes no key"),
        ('{"name": "x", "admin": "yes"}', 400, "this describes no key"),
        ("{}", 400, "this describes no key"),
        ('{"name": "x", "admn": true}', 400, "Try: admin"),
        ("[]", 400, "the body is not an object"),
        ("[" * 4000, 400, "the body is not JSON"),
        ("", 400, "the body is not JSON"),
        ("\xff", 400, "the body is not JSON"),
        ('{"name": "' + "x" * 5000, 413, "at most 4096"),
    ],
)
def test_what_describes_no_key(boss: httpx.Client, file: Path, body: str, status: int, words: str) -> None:
    before = file.read_bytes()
    refused = boss.post("/v1/keys", content=body.encode("latin-1"))
    assert refused.status_code == status
    assert words in refused.json()["error"]
    assert file.read_bytes() == before


def test_a_key_that_is_not_there(boss: httpx.Client) -> None:
    refused = boss.delete("/v1/keys/nobody")
    assert (refused.status_code, refused.json()["code"]) == (404, "UnknownKey")
    assert boss.delete("/v1/keys/" + "x" * 1000).status_code == 404


def test_a_server_without_a_file_of_keys(engines) -> None:
    with running(create_app(LocalBackend({"sd-v1": engines["sd-v1"]}))) as address:
        for method, path in (("GET", "/v1/keys"), ("POST", "/v1/keys"), ("DELETE", "/v1/keys/a")):
            refused = httpx.request(method, address + path)
            assert (refused.status_code, refused.json()["try"]) == (404, "hybridge serve --keys FILE")
