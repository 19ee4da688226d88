"""What the log says of a request that failed: one line if we meant it to fail, one traceback if we did not."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from hybridge import errors
from hybridge.errors import HybridgeError, Overloaded
from hybridge.protocol.failure import STATUS
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.middleware.request_record import HUNG_UP, RequestRecord
from hybridge.server.process.server import running
from hybridge.server.scheduling.vae_job import VaeJob, VaeResult

QUERY = {"shape": [1, 4, 8, 8], "dtype": "float32"}
BINARY = {"content-type": "tensor/binary"}
WAIT_S = 60

MEANT = [kind for kind in STATUS if not issubclass(kind, errors.ClientError)]


class Failing(LocalBackend):
    """A backend whose every run ends with the error that a test puts here."""

    error: Exception | None = None

    async def run(self, job: VaeJob, on_progress: Any = None) -> VaeResult:
        if self.error is None:
            return await super().run(job, on_progress)
        raise self.error


class Seen(logging.Handler):
    """Every record of every logger, but for the line that each request and job has when it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.has_traceback = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        is_end = record.name in ("hybridge.access", "hybridge.jobs") and record.levelno == logging.INFO
        if not is_end and not record.name.startswith(("httpx", "httpcore", "asyncio")):
            self.records.append(record)
            if record.exc_info and record.exc_info[0]:
                self.has_traceback.set()

    @property
    def tracebacks(self) -> int:
        return sum(bool(record.exc_info and record.exc_info[0]) for record in self.records)


@pytest.fixture
def seen() -> Iterator[Seen]:
    handler, root = Seen(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler
    root.setLevel(level)
    root.removeHandler(handler)


@pytest.fixture(scope="module")
def backend(engines) -> Failing:
    return Failing({"sd-v1": engines["sd-v1"]})


@pytest.fixture(scope="module")
def records() -> list[RequestRecord]:
    return []


@pytest.fixture(scope="module")
def server(backend, records) -> Iterator[str]:
    with running(create_app(backend, observers=[records.append])) as address:
        yield address


def decode(server: str, **headers: str) -> httpx.Response:
    url = f"{server}/v1/sd-v1/decode"
    return httpx.post(url, params=QUERY, content=bytes(1024), headers={**BINARY, **headers}, timeout=WAIT_S)


def decode_later(server: str) -> httpx.Response:
    job = decode(server, prefer="respond-async").headers["location"]
    httpx.get(f"{server}{job}/events", timeout=WAIT_S)  # until it is over
    return httpx.get(f"{server}{job}/result")


@pytest.mark.parametrize("ask", [decode, decode_later])
@pytest.mark.parametrize("kind", MEANT, ids=lambda kind: kind.__name__)
def test_what_was_meant_is_one_line(server, backend, seen, kind, ask) -> None:
    if (kind, ask) == (errors.ShuttingDown, decode_later):
        pytest.skip("such a job is left to the next server, and has no result here")
    backend.error = kind("no", retry_after_s=1) if kind is Overloaded else kind("no")
    status = ask(server).status_code
    assert status == STATUS[kind]
    assert seen.tracebacks == 0
    (line,) = seen.records
    expected = logging.INFO if status < 500 else logging.ERROR if status == 500 else logging.WARNING
    assert (line.name, line.levelno) == ("hybridge.server", expected)


@pytest.mark.parametrize("ask", [decode, decode_later])
def test_what_was_not_meant_is_one_traceback(server, backend, seen, ask) -> None:
    backend.error = RuntimeError("a bug")
    assert ask(server).status_code == 500
    assert seen.has_traceback.wait(
        WAIT_S
    )  # Starlette sends the response first; uvicorn logs the traceback afterwards
    assert seen.tracebacks == 1
    seen.records.clear()
    backend.error = HybridgeError("what a bug was turned into")
    backend.error.__cause__ = RuntimeError("a bug")
    assert ask(server).status_code == 500
    assert (len(seen.records), seen.tracebacks) == (1, 1)


@pytest.mark.parametrize(
    ("status", "method", "path", "more"),
    [
        (400, "POST", "/v1/sd-v1/decode?shape=1,4,9,9", {}),
        (404, "POST", "/v1/none/decode", {}),
        (404, "GET", "/v1/jobs/none/result", {}),
        (405, "PUT", "/v1/sd-v1/decode", {}),
        (504, "POST", "/v1/sd-v1/decode?shape=1,4,8,8&dtype=float32", {"request-timeout": "1e-9"}),
    ],
)
def test_what_is_refused_on_the_way_is_one_line(server, backend, seen, status, method, path, more) -> None:
    backend.error = None
    refused = httpx.request(method, server + path, content=bytes(1024), headers={**BINARY, **more})
    assert refused.status_code == status
    assert seen.tracebacks == 0
    assert len(seen.records) <= 1


def test_a_client_that_leaves_is_no_error(server, backend, records, seen) -> None:
    host, port = server.removeprefix("http://").split(":")
    ended = threading.Event()

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if getattr(record, "fields", {}).get("status") == HUNG_UP:
                ended.set()

    told = Told()
    logging.getLogger("hybridge.access").addHandler(told)
    backend.error = None
    head = f"POST /v1/sd-v1/decode HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1024\r\n\r\nx"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode())
    assert ended.wait(WAIT_S)
    logging.getLogger("hybridge.access").removeHandler(told)
    assert seen.tracebacks == 0
    assert [record.getMessage() for record in seen.records] == [
        "refused: the client closed the connection before its body was complete"
    ]
