"""The flags of ``hybridge serve`` and the settings that they set."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import typer
from commands import TERMINAL, hybridge
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from hybridge.cli import options
from hybridge.cli.application import application
from hybridge.server.settings import Settings

#: The settings that are given in another way than as ``--name``.
NAMED = {"models": "models", "trusted_proxies": "--trusted-proxy", "allowed_hosts": "--allowed-host"}


@pytest.fixture(scope="module")
def serve() -> TyperCommand:
    group = get_command(application)
    assert isinstance(group, TyperGroup)
    command = group.get_command(typer.Context(group), "serve")
    assert isinstance(command, TyperCommand)
    return command


def test_every_setting_has_one_flag_and_every_flag_a_setting(serve: TyperCommand) -> None:
    flags = {parameter.name: parameter.opts for parameter in serve.params}
    assert flags == {name: [NAMED.get(name, f"--{name.replace('_', '-')}")] for name in Settings.model_fields}


def test_every_setting_says_what_it_is(serve: TyperCommand) -> None:
    shown = "".join(hybridge("serve", "--help").stdout.split())
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert "".join(field.description.split()) in shown.replace("│", ""), name


@pytest.mark.parametrize(
    ("flag", "default"),
    [("--port", "8000"), ("--max-pixels", "4194304"), ("--grace-s", "60"), ("--deadline-s", "never")],
)
def test_the_help_shows_defaults(flag: str, default: str) -> None:
    shown = hybridge("serve", "--help").stdout
    assert f"[default: ({default})]" in " ".join(
        shown.split(f" {flag} ")[1].split(" --")[0].replace("│", "").split()
    )


def test_verbs_that_share_an_option_say_the_same_of_it() -> None:
    # One device for other verbs, several for a server.
    assert str(Settings.model_fields["device"].description).startswith(options.DEVICE.help.removesuffix("."))
    assert Settings.model_fields["dtype"].description == options.DTYPE.help


def test_what_is_given_reaches_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Seen(Settings):
        def __init__(self, **given: Any) -> None:
            seen.update(given)
            super().__init__(**given)

    monkeypatch.setattr("hybridge.server.settings.Settings", Seen)
    words = "sdxl mine=./vae --port 0 --grace-s 1.5 --cors a --cors b --preload --memory 6GB --log-level loud"
    assert hybridge("serve", *words.split(), check=False).stderr == (
        "hybridge: setting log_level is wrong: saw loud,"
        " expected Input should be 'debug', 'info', 'warning' or 'error'"
    )
    assert {name: list(value) if isinstance(value, tuple) else value for name, value in seen.items()} == {
        **{"models": ["sdxl", "mine=./vae"], "port": 0, "grace_s": 1.5, "cors": ["a", "b"], "preload": True},
        **{"memory": "6GB", "log_level": "loud"},
    }


@pytest.mark.parametrize("words", ["--help", "models --help", "decode --help"])
def test_other_verbs_do_without_the_servers_libraries(words: str) -> None:
    code = "import sys; sys.modules['pydantic_settings'] = None; from hybridge.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words.split()], capture_output=True, text=True, check=True, env=TERMINAL
    )
    assert "Usage: " in done.stdout
