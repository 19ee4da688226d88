"""schemathesis against the server's own OpenAPI document: no server error, nothing that is not documented."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hybridge.server.app import create_app
from hybridge.server.auth import KeyRing, add_key
from hybridge.server.local import LocalBackend
from hybridge.server.running import running
from hybridge.server.settings import Settings

#: What an answer must be.  Not that whatever the document allows is accepted: bytes are judged by their shape.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "ignored_auth",
)


@pytest.fixture
def server(engines, tmp_path) -> Iterator[tuple[str, str]]:
    key = add_key(tmp_path / "keys", "schema")
    settings = Settings(max_pixels=128 * 128, max_batch=2, max_body_mib=1)
    backend = LocalBackend({"sd-v1": engines["sd-v1"]})
    with running(create_app(backend, settings, keys=KeyRing.read(tmp_path / "keys"))) as address:
        yield address, key


def test_the_document_tells_the_truth(server, tmp_path) -> None:
    address, key = server
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {key}", "--checks", ",".join(CHECKS)]
    command += ["--phases", "examples,coverage,fuzzing", "--max-examples", "8", "--seed", "4", "--no-color"]
    command += ["--generation-database", "none", "--suppress-health-check", "all"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    cases = re.search(r"(\d+) generated, \1 passed", done.stdout)
    assert cases is not None
    assert int(cases[1]) > 300
