"""Servers that announce themselves, on loopback: what is found, and that nothing of it is trusted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import pytest
from hostile import in_json
from secure_servers import SelfSigned, secure_server

from hybridge.client import discovery, profiles
from hybridge.client.discovery import Announcement
from hybridge.client.profiles import Profile
from hybridge.errors import HybridgeError, ServerUnreachable
from hybridge.server.process.announcement import announced, fingerprint_of
from hybridge.server.settings import Settings


@pytest.fixture(autouse=True)
def _own_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("HYBRIDGE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HYBRIDGE_PROFILES", str(tmp_path / "profiles.json"))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> SelfSigned:
    return SelfSigned(tmp_path_factory.mktemp("own"))


def test_an_announcement_finds_the_profile_and_its_new_address(own: SelfSigned, tmp_path: Path) -> None:
    pytest.importorskip("zeroconf")
    profiles.save(Profile("desktop", ("https://10.9.8.7:1",), "k3y", own.pem))
    with secure_server(own, in_json({})) as server:
        port = int(server.url.rpartition(":")[2])
        with announced(["127.0.0.1"], port, own.certificate):
            found = [one for one in discovery.find(4.0, interfaces=["127.0.0.1"]) if one.urls == (server.url,)]
        assert len(found) == 1
        assert found[0].identity == fingerprint_of(own.pem)[:16]
        profile = found[0].profile(profiles.load_all())
        assert profile is not None
        assert profile.name == "desktop"
        assert discovery.moved(found[0], profile).addresses == (server.url,)
        assert profiles.load("desktop") == Profile("desktop", (server.url,), "k3y", own.pem)
        assert not server.requests  # no key was sent to find out


def test_an_announcement_with_somebody_elses_id(own: SelfSigned, tmp_path: Path) -> None:
    profile = Profile("desktop", ("https://10.9.8.7:1",), "k3y", own.pem)
    profiles.save(profile)
    folder = tmp_path / "other"
    folder.mkdir()
    with secure_server(SelfSigned(folder), in_json({})) as impostor:
        lie = Announcement("desktop", (impostor.url, "https://127.0.0.1:9"), fingerprint_of(own.pem)[:16])
        assert lie.profile([profile]) == profile
        with pytest.raises(ServerUnreachable, match="does not show its certificate"):
            discovery.moved(lie, profile)
        assert not impostor.requests
    assert profiles.load("desktop") == profile


def test_short_ids_and_strange_texts_find_nothing(own: SelfSigned) -> None:
    stored = [Profile("desktop", ("https://10.9.8.7:1",), None, own.pem), Profile("open", ("http://h",))]
    for identity in ("", fingerprint_of(own.pem)[:15], "0" * 16):
        assert Announcement("x", ("https://h:1",), identity).profile(stored) is None

    class Strange:
        name = "\x1b[31mred\u202e\n" + "x" * 500
        port = 1
        properties: ClassVar = {b"tls": None, b"id": b"../../etc", b"\xff": b"\xff"}

        def parsed_addresses(self) -> list[str]:
            return ["10.0.0.1", "fe80::1%eth0", "fd00::1"] + ["10.0.0.2"] * 50

    read = discovery._read(Strange())
    assert read.name.isprintable()
    assert read.name.isascii()
    assert len(read.name) <= 64
    assert read.identity == ""
    assert read.urls[:2] == ("http://10.0.0.1:1", "http://[fd00::1]:1")
    assert len(read.urls) <= 8


def test_only_with_keys_and_for_others(own: SelfSigned, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--announce needs --keys FILE or --pairing"):
        Settings(announce=True)
    assert Settings(announce=True, pairing=True, pairing_dir=tmp_path).announce
    pytest.importorskip("zeroconf")
    with pytest.raises(HybridgeError, match=r"for other machines.*--public"), announced([], 1, own.certificate):
        pass
