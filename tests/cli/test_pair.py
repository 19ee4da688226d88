"""``hybridge serve --pairing``, ``pair`` and ``join``, as somebody types them on two machines."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import HYBRIDGE, hybridge
from forks import Forked
from secure_servers import SelfSigned

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
            told = hybridge("pair").stdout
            assert "good once, for 10 minutes" in told
            assert "listens on this machine alone; with --public" in told
            command = re.search(r"^hybridge join (\S+)$", told, re.MULTILINE)
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
            assert hybridge("profiles", "list").stdout == ""
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
        with folder.noted(RunningServer(2, (), one.keys, one.certificate)):
            assert "saw the ports 1, 2, expected --port" in complaint()
    (folder.path / "running-3.json").write_text("{")
    assert "no server that pairs runs here" in complaint()
    assert not folder.keys.exists()
