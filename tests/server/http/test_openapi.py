"""schemathesis against the server's own OpenAPI document: no server error, nothing that is not documented."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.middleware.key_file import KeyRing, add_key
from hybridge.server.process.server import running
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


#: Jobs that the server has, some of which schemathesis will delete.
JOBS = 12


@pytest.fixture
def statuses() -> set[int]:
    return set()


@pytest.fixture
def server(engines, tmp_path, statuses) -> Iterator[tuple[str, str]]:
    key = add_key(tmp_path / "keys", "schema")
    settings = Settings(max_pixels=128 * 128, max_batch=2, max_body_mib=1)
    backend = LocalBackend({"sd-v1": engines["sd-v1"]})
    keys = KeyRing.read(tmp_path / "keys")
    app = create_app(backend, settings, keys=keys, observers=[lambda record: statuses.add(record.status)])
    with running(app) as address:
        yield address, key


def accept_jobs(address: str, key: str) -> list[str]:
    """Ids of jobs that are done, which schemathesis could not guess."""
    headers = {"authorization": f"Bearer {key}", "content-type": "tensor/binary", "prefer": "respond-async"}
    query = {"shape": [1, 4, 8, 8], "dtype": "float32"}
    url = f"{address}/v1/sd-v1/decode"
    jobs = [httpx.post(url, params=query, content=bytes(1024), headers=headers).json()["id"] for _ in range(JOBS)]
    for job in jobs:
        httpx.get(f"{address}/v1/jobs/{job}/events", headers=headers, timeout=60)  # until it is over
    return jobs


def test_the_document_tells_the_truth(server, statuses, tmp_path) -> None:
    address, key = server
    jobs = json.dumps(accept_jobs(address, key))
    (tmp_path / "schemathesis.toml").write_text(
        f'[dictionaries.jobs]\nvalues = {jobs}\n[parameters."path.job"]\ndictionary = "jobs"\nprobability = 0.5\n'
        # A Request-Timeout of 5e-324 s is over before anything can be done.
        '[checks.not_a_server_error]\nexpected-statuses = ["1xx", "2xx", "3xx", "4xx", "504"]\n'
    )
    statuses.clear()
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {key}", "--checks", ",".join(CHECKS)]
    command += ["--phases", "examples,coverage,fuzzing", "--max-examples", "8", "--seed", "4", "--no-color"]
    command += ["--generation-database", "none", "--suppress-health-check", "all"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    cases = re.search(r"(\d+) generated, \1 passed", done.stdout)
    assert cases is not None
    assert int(cases[1]) > 300
    assert {200, 202, 204, 404} <= statuses
