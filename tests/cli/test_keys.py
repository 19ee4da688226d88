"""``hybridge keys``, and ``hybridge serve`` with and without them."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from hybridge.cli.application import application
from hybridge.errors import HybridgeError
from hybridge.server.middleware.key_file import KeyRing


def test_add_list_remove(tmp_path) -> None:
    file, run = str(tmp_path / "keys"), CliRunner()
    key = run.invoke(application, ["keys", "add", file, "alice"]).stdout.strip()
    assert KeyRing.read(tmp_path / "keys").name_of(key) == "alice"
    run.invoke(application, ["keys", "add", file, "bob"])
    assert run.invoke(application, ["keys", "list", file]).stdout.split() == ["alice", "bob"]
    run.invoke(application, ["keys", "remove", file, "alice"])
    assert KeyRing.read(tmp_path / "keys").name_of(key) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--public"], "--public needs --keys FILE"),
        (["--public", "--keys", "/nonexistent/keys"], "key file cannot be read"),
        (["--tls-cert", "a.pem"], "--tls-cert and --tls-key go together"),
        (["--log-format", "xml"], "setting log_format is wrong"),
    ],
)
def test_serve_refuses_before_a_model_is_loaded(arguments, message) -> None:
    done = CliRunner().invoke(application, ["serve", *arguments])
    assert isinstance(done.exception, HybridgeError)
    assert message in str(done.exception)
