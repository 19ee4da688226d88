"""What deploy/ and docs/operations.md claim: every flag and variable exists, every default is the real one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from hybridge.cli.application import application
from hybridge.server.settings import Settings

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
FILES = [*sorted(DEPLOY.iterdir()), ROOT / "docs" / "operations.md"]


def flags_of_serve() -> set[str]:
    serve = get_command(application).get_command(typer.Context(get_command(application)), "serve")
    return {flag for parameter in serve.params for flag in parameter.opts if flag.startswith("--")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_variables_exist(file) -> None:
    known = {f"HYBRIDGE_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"HYBRIDGE_[A-Z_]*[A-Z]\b", file.read_text(encoding="utf-8"))) <= known


def test_flags_exist() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    asked = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page))
    compose = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    asked |= set(re.findall(r'"(--[a-z-]+)"', compose))
    assert len(asked) > 12
    assert asked <= flags_of_serve()


def test_every_setting_is_a_flag() -> None:
    named = {"models": None, "trusted_proxies": "--trusted-proxy"}
    for name in Settings.model_fields:
        flag = named.get(name, f"--{name.replace('_', '-')}")
        assert flag is None or flag in flags_of_serve()


def test_the_table_of_limits() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `--([a-z-]+)` \| ([\d.]+) \|", page, re.MULTILINE))
    settings = {name.replace("_", "-"): field.default for name, field in Settings.model_fields.items()}
    for name, default in listed.items():
        assert float(default) == settings[name]
    assert set(listed) == {
        name
        for name in settings
        if name.startswith(("max-", "head-", "body-", "queue-", "jobs-", "job-", "spool-", "grace-"))
    }


def test_longer_than_the_grace_period() -> None:
    grace_s = Settings.model_fields["grace_s"].default
    unit = (DEPLOY / "hybridge.service").read_text(encoding="utf-8")
    compose = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    for text, pattern in ((unit, r"TimeoutStopSec=(\d+)"), (compose, r"stop_grace_period: (\d+)s")):
        assert int(re.search(pattern, text)[1]) > grace_s
    for text, pattern in ((unit, r"LimitNOFILE=(\d+)"), (compose, r"nofile: (\d+)")):
        assert int(re.search(pattern, text)[1]) > Settings.model_fields["max_connections"].default


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_the_unit_is_one(tmp_path) -> None:
    unit = (DEPLOY / "hybridge.service").read_text(encoding="utf-8")
    file = tmp_path / "hybridge.service"
    file.write_text(unit.replace("/opt/hybridge/bin/hybridge", "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not [line for line in done.stderr.splitlines() if "hybridge.service" in line]


def test_the_dockerfile_drops_root_and_starts_without_a_shell() -> None:
    lines = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert "USER hybridge" in lines
    assert 'ENTRYPOINT ["hybridge"]' in lines
    assert any("/health" in line for line in lines)
    copied = {part for line in lines if line.startswith("COPY") for part in line.split()[1:-1]}
    assert all((ROOT / part).exists() for part in copied)
