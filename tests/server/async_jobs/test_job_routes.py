"""Long work over the wire: accepted, watched, fetched, done again, cancelled, forgotten."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from conftest import in_strips

from hybridge.engine import Engine, EngineOptions
from hybridge.errors import HybridgeError
from hybridge.models import ModelSpec
from hybridge.server.app import create_app
from hybridge.server.http.job_routes import MOST_STREAMS
from hybridge.server.local_backend import LocalBackend
from hybridge.server.middleware.key_file import KeyRing, add_key
from hybridge.server.middleware.request_record import RequestRecord
from hybridge.server.process.logs import JsonFormatter
from hybridge.server.process.server import running
from hybridge.server.settings import Settings

WAIT_S = 30
SIDE = 8
QUERY = {"shape": [1, 4, SIDE, SIDE], "dtype": "float32"}
BODY = torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).numpy().tobytes()
BINARY = {"content-type": "tensor/binary"}
LATER = {**BINARY, "prefer": "respond-async"}


class Held:
    """An engine that stops after every decode's first strip until it is let go."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.begun, self.go = threading.Semaphore(0), threading.Event()
        self.stopped = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def decode(self, latents: torch.Tensor, *, progress: Callable[[int, int], None], **around: Any) -> torch.Tensor:
        def held(done: int, of: int) -> None:
            if done == 1:
                self.begun.release()
                assert self.go.wait(WAIT_S)
            progress(done, of)

        try:
            return self._engine.decode(latents, progress=held, **around)
        except HybridgeError:
            self.stopped += 1
            raise


@pytest.fixture
def held(specs: dict[str, ModelSpec]) -> Held:
    return Held(in_strips(Engine.load(specs["sd-v1"], EngineOptions(device="cpu"))))


@pytest.fixture
def address(held: Held) -> Iterator[str]:
    with running(create_app(LocalBackend({"sd-v1": held}))) as address:  # type: ignore[dict-item]
        yield address
        held.go.set()


def post(address: str, *, later: bool = True, **query: Any) -> httpx.Response:
    url = f"{address}/v1/sd-v1/decode"
    headers = LATER if later else BINARY
    return httpx.post(url, params={**QUERY, **query}, content=BODY, headers=headers, timeout=60)


def events(address: str, job: str) -> list[dict[str, Any]]:
    """All of a job's events; returns when the job is over."""
    with httpx.stream("GET", f"{address}{job}/events", timeout=60) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["x-accel-buffering"] == "no"
        return [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]


class TestOneJob:
    def test_accepted_watched_and_fetched(self, held, address) -> None:
        accepted = post(address, image_format="png")
        assert accepted.status_code == 202
        job = accepted.headers["location"]
        assert job == f"/v1/jobs/{accepted.json()['id']}"
        assert accepted.headers["preference-applied"] == "respond-async"
        assert held.begun.acquire(timeout=WAIT_S)
        early = httpx.get(f"{address}{job}/result")
        assert (early.status_code, early.json()["code"]) == (409, "NotDone")
        held.go.set()
        told = events(address, job)
        assert [status["state"] for status in told][-1] == "done"
        assert told[-1]["expires_at"] > told[-1]["made_at"]
        shares = [status["progress"] for status in told if status["state"] == "running"]
        assert shares == sorted(shares)
        later = httpx.get(f"{address}{told[-1]['result']}")
        now = post(address, later=False, image_format="png")
        # The very response that the synchronous call has.
        assert later.content == now.content
        assert later.status_code == now.status_code == 200
        for name in ("content-type", "hybridge-model", "hybridge-plan"):
            assert later.headers[name] == now.headers[name]
        assert httpx.get(f"{address}{job}").json() == told[-1]

    def test_a_waiting_job_knows_its_position(self, held, address) -> None:
        jobs = [post(address).headers["location"] for _ in range(5)]
        assert held.begun.acquire(timeout=WAIT_S)
        standings = [httpx.get(f"{address}{job}").json() for job in jobs]
        assert standings[0]["state"] == "running"
        assert [status["position"] for status in standings[1:]] == sorted(s["position"] for s in standings[1:])
        assert standings[-1]["position"] > 0
        held.go.set()
        assert [events(address, job)[-1]["state"] for job in jobs] == ["done"] * 5

    def test_one_client_does_not_take_all_connections_to_watch(self, held, address) -> None:
        """Before, streams of a job that waits could be as many as all connections that there may be."""
        job = post(address).headers["location"]
        assert held.begun.acquire(timeout=WAIT_S)
        with ExitStack() as open_, httpx.Client(limits=httpx.Limits(), timeout=WAIT_S) as client:
            streams = [
                open_.enter_context(client.stream("GET", f"{address}{job}/events")) for _ in range(MOST_STREAMS)
            ]
            assert {stream.status_code for stream in streams} == {200}
            refused = client.get(f"{address}{job}/events")
            assert (refused.status_code, refused.json()["code"]) == (429, "Overloaded")
            assert client.get(f"{address}{job}").json()["state"] == "running"
            streams[0].close()
            held.go.set()
            assert "event: done" in streams[1].read().decode()
        assert events(address, job)[-1]["state"] == "done"

    def test_what_cannot_be_done_is_refused_at_once(self, address) -> None:
        refused = post(address, shape=[1, 4, 9, 9])
        assert refused.status_code == 400
        assert "bytes" in refused.json()["error"]

    def test_a_failure_is_the_result(self, held, address) -> None:
        held.go.set()
        bad = b"\x00\x00\xc0\x7f" * (len(BODY) // 4)
        url = f"{address}/v1/sd-v1/decode"
        job = httpx.post(url, params=QUERY, content=bad, headers=LATER).headers["location"]
        assert events(address, job)[-1]["state"] == "failed"
        result = httpx.get(f"{address}{job}/result")
        assert result.status_code == 400
        assert "nan" in result.json()["error"]

    def test_cancelling_stops_the_engine_and_forgets_the_job(self, held, address) -> None:
        first, second = (post(address).headers["location"] for _ in range(2))
        assert held.begun.acquire(timeout=WAIT_S)
        assert httpx.delete(f"{address}{first}").status_code == 204
        assert httpx.get(f"{address}{first}").status_code == 404
        held.go.set()
        assert events(address, second)[-1]["state"] == "done"
        assert held.stopped == 1

    def test_again_with_other_settings(self, held, address) -> None:
        held.go.set()
        job = post(address, image_format="jpg").headers["location"]
        events(address, job)
        again = httpx.post(f"{address}{job}/again", params={"image_format": "png"})
        assert again.status_code == 202
        events(address, again.headers["location"])
        result = httpx.get(f"{address}{again.headers['location']}/result")
        assert result.headers["content-type"] == "image/png"
        assert result.content == post(address, later=False, image_format="png").content
        tensor = httpx.post(f"{address}{job}/again", headers={"accept": "tensor/binary"}).headers["location"]
        events(address, tensor)
        assert httpx.get(f"{address}{tensor}/result").headers["content-type"] == "tensor/binary"
        assert httpx.post(f"{address}{job}/again", content=b"x").status_code == 400
        assert httpx.post(f"{address}{job}/again", params={"qualty": 3}).status_code == 400
        assert httpx.post(f"{address}{job}/again?{'quality=3&' * 70}").status_code == 400

    @pytest.mark.parametrize("way", ["", "/result", "/events"])
    def test_unknown_jobs(self, address, way) -> None:
        refused = httpx.get(f"{address}/v1/jobs/nothing{way}")
        assert (refused.status_code, refused.json()["code"]) == (404, "UnknownJob")

    def test_without_a_name_and_with_a_picture(self, held, address, photograph) -> None:
        held.go.set()
        headers = {"content-type": "image/jpeg", "prefer": "wait=5, Respond-Async"}
        accepted = httpx.post(f"{address}/", content=photograph.read_bytes(), headers=headers)
        assert accepted.status_code == 202
        assert events(address, accepted.headers["location"])[-1]["state"] == "done"
        result = httpx.get(f"{address}{accepted.headers['location']}/result")
        assert result.headers["hybridge-inferred"].startswith("model=sd-v1; task=encode")


def test_behind_keys_a_job_is_only_for_the_key_that_made_it(engines, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    ann, bob = ({"authorization": f"Bearer {add_key(file, name)}"} for name in ("ann", "bob"))
    app = create_app(LocalBackend({"sd-v1": engines["sd-v1"]}), keys=KeyRing.read(file))
    with running(app) as address:
        accepted = httpx.post(f"{address}/v1/sd-v1/decode", params=QUERY, content=BODY, headers={**LATER, **ann})
        assert accepted.status_code == 202
        job = f"{address}{accepted.headers['location']}"
        assert '"state": "done"' in httpx.get(f"{job}/events", headers=ann, timeout=60).text
        ways = (("GET", ""), ("GET", "/events"), ("GET", "/result"), ("POST", "/again"), ("DELETE", ""))
        unknown = httpx.get(f"{address}/v1/jobs/{'x' * 22}", headers=bob).json()
        for method, way in ways:
            assert httpx.request(method, job + way).status_code == 401
            hidden = httpx.request(method, job + way, headers=bob)
            assert (hidden.status_code, hidden.json()["code"]) == (404, "UnknownJob")
            assert hidden.json().keys() == unknown.keys()
        assert [httpx.request(method, job + way, headers=ann).status_code for method, way in ways] == [
            200,
            200,
            200,
            202,
            204,
        ]


def test_no_job_s_id_is_logged(
    specs: dict[str, ModelSpec], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where there are no keys an id is all that it takes to fetch a result, or to delete it."""
    caplog.set_level(logging.DEBUG)
    engine = Engine.load(specs["sd-v1"], EngineOptions(device="cpu"))
    records: list[RequestRecord] = []
    app = create_app(LocalBackend({"sd-v1": engine}), Settings(spool=tmp_path), observers=[records.append])
    with running(app) as address:
        jobs = [post(address).headers["location"] for _ in range(3)]
        for job in jobs:
            events(address, job)
        for method, way in (("PUT", ""), ("GET", "/nothing"), ("POST", "/again?qualty=3"), ("POST", "/result")):
            assert httpx.request(method, f"{address}{jobs[0]}{way}").status_code in (400, 404, 405)
        # Whoever tidies up the folder of a running server.
        for job in jobs:
            (tmp_path / f"{job.removeprefix('/v1/jobs/')}.request").unlink()
            (tmp_path / f"{job.removeprefix('/v1/jobs/')}.result").unlink()
        for method, way in (("GET", "/result"), ("POST", "/again")):
            broken = httpx.request(method, f"{address}{jobs[0]}{way}")
            assert broken.status_code == 500
            assert broken.json()["error"] == "the spool cannot be read: saw No such file or directory"
        tmp_path.rename(tmp_path.with_name("gone"))
        refused = post(address)
        assert (refused.status_code, refused.json()["code"]) == (503, "StorageFailure")
        for job in jobs:
            httpx.delete(f"{address}{job}")
    mine = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert len(mine) > len(jobs)
    lines = "\n".join(JsonFormatter().format(record) for record in mine)
    for job in jobs:
        assert job.removeprefix("/v1/jobs/") not in lines
        assert job.removeprefix("/v1/jobs/") not in repr(records)


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDGE_MEMORY", "1.5GiB")
    settings = Settings(spool="/x", spool_gib=0.5)  # type: ignore[arg-type]
    assert settings.memory == 1536 * 2**20
    assert settings.async_job_limits.nbytes == 2**29
    assert Settings(memory=1000).memory == 1000
    assert Settings(memory="8 GB").memory == 8 * 10**9  # type: ignore[arg-type]
