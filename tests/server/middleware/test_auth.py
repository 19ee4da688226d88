"""Keys: the file, the ways in, and that a key is seen nowhere else."""

from __future__ import annotations

import base64
import logging
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from diffusers.utils.remote_utils import remote_decode
from torch import zeros

from hybridge.client import Client
from hybridge.engine import Engine
from hybridge.errors import HybridgeError
from hybridge.protocol import DecodeRequest, WireTensor
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.middleware.key_file import KeyRing, add_key, hash_key, remove_key
from hybridge.server.process.server import running
from hybridge.server.process.startup_checks import check_opening
from hybridge.server.settings import Settings

QUERY = {"shape": [1, 4, 8, 8], "dtype": "float32"}
BODY = bytes(1024)
BINARY = {"content-type": "tensor/binary"}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys"


@pytest.fixture(scope="module")
def key(file) -> str:
    add_key(file, "bob")
    return add_key(file, "alice@example.org")


@pytest.fixture(scope="module")
def server(engines, file, key) -> Iterator[str]:
    app = create_app(LocalBackend({"sd-v1": engines["sd-v1"]}), keys=KeyRing.read(file))
    with running(app) as address:
        yield address


class TestFile:
    def test_holds_names_and_hashes_but_no_key(self, file, key) -> None:
        text = file.read_text()
        assert key not in text
        assert f"alice@example.org {hash_key(key)}\n" in text
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert len(base64.urlsafe_b64decode(key + "=")) == 32

    def test_who_is_it(self, file, key) -> None:
        ring = KeyRing.read(file)
        assert ring.name_of(key) == "alice@example.org"
        for other in ("", key[:-1], key + "x", hash_key(key), "é", "\udcff", "x" * 10**6):
            assert ring.name_of(other) is None

    def test_remove(self, tmp_path) -> None:
        file = tmp_path / "keys"
        add_key(file, "one")
        add_key(file, "two")
        remove_key(file, "one")
        assert list(KeyRing.read(file).hashes) == ["two"]
        with pytest.raises(HybridgeError, match="no key is named one: expected two"):
            remove_key(file, "one")

    @pytest.mark.parametrize(
        ("line", "word"),
        [
            ("alice my-own-password", "line 3"),
            ("alice", "line 3"),
            ("alice sha256:" + "0" * 64 + " Admin", "line 3"),
            ("alice sha256:" + "0" * 64 + " admin admin", "line 3"),
            ("a/b sha256:" + "0" * 64, "line 3"),
            ("alice sha256:" + "0" * 63, "line 3"),
            ("here sha256:" + "1" * 64, "two keys of one name"),
        ],
    )
    def test_what_is_no_key_is_refused_and_not_shown(self, tmp_path, line, word) -> None:
        file = tmp_path / "keys"
        file.write_text(f"# a comment\nhere sha256:{'0' * 64}\n{line}\n\n")
        with pytest.raises(HybridgeError, match=word) as refused:
            KeyRing.read(file)
        assert "password" not in str(refused.value)

    @pytest.mark.parametrize("name", ["", "a b", "a\nb", "x" * 65, "ä"])
    def test_names_are_plain(self, tmp_path, name) -> None:
        with pytest.raises(HybridgeError, match="not a key's name"):
            add_key(tmp_path / "keys", name)

    def test_many_at_once_are_all_kept(self, tmp_path) -> None:
        """In processes of their own: what keeps them apart is a lock between processes."""
        file = tmp_path / "keys"
        code = (
            "import sys, pathlib; from hybridge.server.middleware.key_file import add_key; sys.stdin.read(1)\n"
            "for n in range(4): print(add_key(pathlib.Path(sys.argv[1]), f'{sys.argv[2]}-{n}'))"
        )
        adding = [
            subprocess.Popen(
                [sys.executable, "-c", code, file, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            for number in range(6)
        ]
        for one in adding:  # all of them are imported, or nearly so, before any begins
            assert one.stdin is not None
            one.stdin.write(b".")
            one.stdin.flush()
        seen = set()
        while any(one.poll() is None for one in adding):
            if file.exists():  # a reader never sees half of it
                seen.add(len(KeyRing.read(file).hashes))
        keys = [key for one in adding for key in one.communicate()[0].decode().split()]
        ring = KeyRing.read(file)
        assert len(ring.hashes) == len(keys) == 24
        assert all(ring.name_of(key) for key in keys)
        assert [path.name for path in tmp_path.iterdir()] == ["keys"]

    def test_mode_owner_links_and_comments_stay(self, tmp_path) -> None:
        real, link = tmp_path / "real", tmp_path / "link"
        link.symlink_to("real")
        add_key(link, "one")  # which makes what the link names
        assert stat.S_IMODE(real.stat().st_mode) == 0o600
        real.chmod(0o640)
        if os.geteuid() == 0:
            os.chown(real, 1, 2)
        before = real.stat()
        real.write_bytes(b"\xef\xbb\xbf# who\r\n\r\n" + real.read_bytes().rstrip())
        add_key(link, "two")
        remove_key(link, "one")
        assert link.is_symlink()
        after = real.stat()
        assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
        comment, empty, two = real.read_bytes().splitlines()
        assert (comment, empty, two[:11]) == (b"# who", b"", b"two sha256:")

    @pytest.mark.parametrize("edit", [KeyRing.read, lambda path: remove_key(path, "x")])
    def test_what_cannot_be_read_is_one_sentence_and_makes_nothing(self, tmp_path, edit) -> None:
        (tmp_path / "huge").touch()
        os.truncate(tmp_path / "huge", 2**40)
        (tmp_path / "dangling").symlink_to("nothing")
        for name, saw in (
            (".", "Is a directory"),
            ("none", "No such file"),
            ("dangling", "No such file"),
            ("huge", "more than 16 MiB"),
        ):
            with pytest.raises(HybridgeError, match=saw):
                edit(tmp_path / name)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "huge"]

    @pytest.mark.parametrize("place", [".", "none/keys", "file/keys"])
    def test_where_no_file_can_be_made(self, tmp_path, place) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(HybridgeError, match="the key file cannot be written"):
            add_key(tmp_path / place, "one")

    def test_one_key_for_each_name(self, file, key) -> None:
        with pytest.raises(HybridgeError, match="a key is named bob already"):
            add_key(file, "bob")


def basic(user: str, password: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


class TestWaysIn:
    @pytest.mark.parametrize(
        "way",
        [
            lambda key: ({"authorization": f"Bearer {key}"}, "", ""),
            lambda key: ({"authorization": f"bearer   {key}"}, "", ""),
            lambda key: (basic("anything", key), "", ""),
            lambda key: (basic(key, ""), "", ""),
            lambda key: ({}, "", f"key={key}"),
            lambda key: ({}, "", f"key={key}&key="),
            lambda key: ({}, "", f"%6bey={key}"),
            lambda key: ({}, f"/k/{key}", ""),
            lambda key: ({"authorization": "Bearer wrong"}, f"/k/{key}", "key=wrong"),
        ],
    )
    def test_each_opens(self, server, key, way) -> None:
        headers, prefix, query = way(key)
        url = f"{server}{prefix}/v1/sd-v1/decode?shape=1,4,8,8&dtype=float32&{query}"
        response = httpx.post(url, content=BODY, headers={**BINARY, **headers})
        assert response.status_code == 200, response.text
        assert httpx.get(f"{server}{prefix}/v1/models?{query}", headers=headers).status_code == 200

    def test_the_prefix_alone_is_the_index(self, server, key) -> None:
        for end in ("", "/"):
            assert httpx.get(f"{server}/k/{key}{end}").json()["models"] == ["sd-v1"]

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "Bearer"},
            {"authorization": "Basic !!!"},
            {"authorization": "Basic " + base64.b64encode(b"\xff\xff").decode()},
            {"authorization": "Digest username=x"},
            {"authorization": "Bearer " + "x" * 5000},
        ],
    )
    def test_nothing_else_does(self, server, headers) -> None:
        response = httpx.post(f"{server}/v1/sd-v1/decode", params=QUERY, content=BODY, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["code"] == "KeyNeeded"
        assert "Bearer KEY" in response.json()["try"]

    @pytest.mark.parametrize("path", ["/", "/ready", "/metrics", "/v1/models", "/openapi.json", "/nothing"])
    def test_only_health_is_open(self, server, path) -> None:
        assert httpx.get(server + path).status_code == 401
        assert httpx.get(f"{server}/health").status_code == 200

    def test_of_many_keys_a_few_are_looked_up(self, server, key) -> None:
        """Each is compared with every known one: thousands in one address took seconds of the event loop."""
        others = [("key", f"no{number}") for number in range(7)]
        ways = {200: [*others, ("key", key)], 401: [*others, ("key", "no"), ("key", key)]}
        for status, keys in ways.items():
            answer = httpx.get(f"{server}/v1/models", params=[*keys, ("key", "no1")])
            assert answer.status_code == status

    def test_diffusers_own_client_needs_only_the_address(self, server, key) -> None:
        endpoint = f"{server.replace('://', f'://me:{key}@')}/v1/sd-v1/decode"
        picture = remote_decode(endpoint, zeros(1, 4, 8, 8), scaling_factor=0.18215)
        assert picture.size == (64, 64)
        picture = remote_decode(f"{server}/k/{key}/v1/sd-v1/decode", zeros(1, 4, 8, 8), scaling_factor=0.18215)
        assert picture.size == (64, 64)

    def test_our_client(self, server, key) -> None:
        request = DecodeRequest(WireTensor("float32", (1, 4, 8, 8), BODY))
        for address, api_key in ((server, key), (f"{server}/k/{key}", None), (f"{server}?key={key}", None)):
            with Client(address, api_key=api_key) as client:
                client.send(request, model="sd-v1")


def test_a_key_is_in_no_log_and_in_no_answer(server, key, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    seen = ""
    for path in (
        f"/k/{key}/nothing",
        f"/nothing?key={key}",
        f"/k/{key}/v1/{'x' * 9}/decode",
        f"/k/{key}/v1/models",
    ):
        for headers in ({}, {"authorization": f"Bearer {key}"}):
            for method in ("GET", "POST", "PUT"):
                answer = httpx.request(method, server + path, headers=headers)
                seen += str(answer.headers) + answer.text
    assert key not in seen
    ours = "\n".join(
        record.getMessage() for record in caplog.records if record.name.startswith(("hybridge", "uvicorn"))
    )
    assert "key:alice@example.org" in ours
    assert key not in ours


def test_without_keys_one_in_the_address_is_taken_out_all_the_same(engines) -> None:
    with running(create_app(LocalBackend({"sd-v1": engines["sd-v1"]}))) as address:
        url = f"{address}/k/whatever/v1/sd-v1/decode?key=secret"
        response = httpx.post(url, params=QUERY, content=BODY, headers=BINARY)
        assert response.status_code == 200
        assert "whatever" not in httpx.get(f"{address}/k/whatever/nothing").text


class TestOpening:
    def test_public_needs_keys(self, file, key, caplog) -> None:
        with pytest.raises(ValueError, match="--public needs --keys"):
            Settings(public=True)
        settings = Settings(public=True, keys=file)
        assert settings.address == "0.0.0.0"  # noqa: S104 - not bound
        assert Settings(public=True, keys=file, host="192.0.2.1").address == "192.0.2.1"
        keys = check_opening(settings)
        assert keys is not None
        assert set(keys.current.hashes) == {"bob", "alice@example.org"}
        assert not caplog.records

    def test_an_open_server_is_warned_of(self, caplog) -> None:
        assert check_opening(Settings()) is None
        assert check_opening(Settings(host="::1")) is None
        assert not caplog.records
        assert check_opening(Settings(host="0.0.0.0")) is None  # noqa: S104 - not bound
        assert "every machine that can reach 0.0.0.0" in caplog.text

    def test_a_file_without_keys_or_no_file(self, tmp_path) -> None:
        with pytest.raises(HybridgeError, match=r"cannot be read.*hybridge keys add"):
            check_opening(Settings(keys=tmp_path / "missing"))
        (tmp_path / "empty").write_text("# nobody\n")
        with pytest.raises(HybridgeError, match="holds no key"):
            check_opening(Settings(keys=tmp_path / "empty"))


class Ordered:
    """An engine that holds its first decode until it is let go, and notes the first number of all latents."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.begun, self.go = threading.Event(), threading.Event()
        self.order: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def decode(self, latents: Any, **named: Any) -> Any:
        self.order.append(float(latents.flatten()[0]))
        self.begun.set()
        assert self.go.wait(60)
        return self._engine.decode(latents, **named)


def test_clients_behind_one_key_share_its_turns(engines, tmp_path) -> None:
    """However many connections and machines there are behind a key, it gets one share of the device."""
    keys = tmp_path / "keys"
    owned = {name: add_key(keys, name) for name in ("alice", "bob")}
    engine = Ordered(engines["sd-v1"])
    backend = LocalBackend({"sd-v1": engine})
    settings = Settings(trusted_proxies="127.0.0.1")
    app = create_app(backend, settings, keys=KeyRing.read(keys))

    def decode(address: str, name: str, number: int) -> int:
        latents = np.full((1, 4, 8, 8), number, np.float32)
        headers = {
            **BINARY,
            "authorization": f"Bearer {owned[name]}",
            "x-forwarded-for": f"192.0.2.{number}",  # each from a machine of its own
        }
        url = f"{address}/v1/sd-v1/decode"
        return httpx.post(url, params=QUERY, content=latents.tobytes(), headers=headers, timeout=60).status_code

    sent = ["alice", "alice", "alice", "alice", "bob", "bob"]
    with running(app, listening=settings.listening) as address, ThreadPoolExecutor(len(sent)) as pool:
        answers = []
        try:
            for number, name in enumerate(sent):
                answers.append(pool.submit(decode, address, name, number))
                assert engine.begun.wait(60)
                while backend.load().waiting < number:
                    assert not answers[-1].done()
        finally:
            engine.go.set()
        assert [answer.result() for answer in answers] == [200] * len(sent)
    assert sorted(engine.order) == [0, 1, 2, 3, 4, 5]
    # Of those that waited, one of bob's is among the first two, and the other before the last of alice's.
    assert engine.order.index(4) <= 2
    assert engine.order.index(5) < engine.order.index(3)
