"""``hybridge serve --pairing``, ``pair`` and ``join``, as somebody types them on two machines."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import HYBRIDGE, hybridge
from forks import Forked
from hostile import in_json
from secure_servers import SelfSigned, secure_server

from hybridge.server.process.pairing_folder import PairingFolder, RunningServer


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PairingFolder]:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("HYBRIDGE_PROFILES", str(tmp_path / "profiles.json"))
    made = PairingFolder(tmp_path / "hybridge")
    made.path.mkdir(mode=0o700)
    own = SelfSigned(tmp_path)
    own.certificate.rename(made.certificate)
    own.key.rename(made.private_key)
    return made


def test_two_machines(folder: PairingFolder) -> None:
    with Forked(HYBRIDGE, "serve", "--port", "0", "--pairing", stderr=subprocess.STDOUT) as server:
        try:
            seen = next(line for line in server.stdout if "serving on" in line)
            assert "https://127.0.0.1" in seen
            killed = RunningServer(1, (), str(folder.keys), str(folder.certificate))
            with folder.noted(killed):
                told = hybridge("pair").stdout
            assert "good once, for 10 minutes" in told
            assert "listens on this machine alone; with --public" in told
            command = re.search(r'^hybridge join "(\S+)"$', told, re.MULTILINE)
            assert command is not None
            joined = hybridge("join", command[1], "--name", "desktop").stdout
            assert joined.startswith("desktop is https://127.0.0.1:")
            assert "starter" in hybridge("models", "--server", "desktop").stdout
            assert re.fullmatch(
                r"desktop  https://127.0.0.1:\d+  \(a key, its own certificate\)\n",
                hybridge("profiles", "list").stdout,
            )
            owner = hybridge("keys", "list", folder.keys).stdout.strip()
            hybridge("keys", "remove", folder.keys, owner)
            assert "does not let this caller in" in hybridge("models", "--server", "desktop", check=False).stderr
            hybridge("profiles", "remove", "desktop")
            left = hybridge("profiles", "list")
            assert left.stdout == ""
            assert "no profiles: `hybridge join` stores one in" in left.stderr
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=60)
    assert not folder.running()


def test_where_no_server_runs(folder: PairingFolder) -> None:
    def complaint(*arguments: object) -> str:
        return hybridge("pair", *arguments, check=False).stderr

    assert "no server that pairs runs here" in complaint()
    one = RunningServer(1, (), str(folder.keys), str(folder.certificate))
    with folder.noted(one):
        assert "no server that pairs runs here on port 5" in complaint("--port", 5)
        assert "the server on port 1 does not answer" in complaint()
    (folder.path / "running-3.json").write_text("{")
    assert "no server that pairs runs here" in complaint()
    assert not folder.keys.exists()


def test_where_several_servers_run(folder: PairingFolder) -> None:
    own = SelfSigned.of(folder.certificate, folder.private_key)
    with contextlib.ExitStack() as notes:
        servers = [notes.enter_context(secure_server(own, in_json({}))) for _ in range(2)]
        ports = [int(server.url.rpartition(":")[2]) for server in servers]
        for port in ports:
            notes.enter_context(folder.noted(RunningServer(port, (), str(folder.keys), str(folder.certificate))))
        told = hybridge("pair", check=False).stderr
        assert f"saw the ports {', '.join(map(str, sorted(ports)))}, expected --port" in told
        assert f"127.0.0.1:{ports[0]}/" in hybridge("pair", "--port", ports[0]).stdout
