"""Long work over the wire: accepted, watched, fetched, done again, cancelled, forgotten."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from async_jobs import Scene, play
from conftest import in_strips
from starlette.requests import Request

from hybridge.engine import Engine, EngineOptions
from hybridge.errors import HybridgeError, NotDone, Overloaded, UnknownJob
from hybridge.models import ModelSpec
from hybridge.server.app import create_app
from hybridge.server.async_jobs.spool import SpoolStore
from hybridge.server.async_jobs.store import MemoryStore
from hybridge.server.http.job_routes import MOST_STREAMS, JobRoutes
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


class TestLedger:
    def test_only_whoever_made_a_job_sees_it_where_there_are_keys(self) -> None:
        async def act(scene: Scene) -> None:
            job = await scene.accept(client="key:ann")
            for other in ("key:bob", "address:1"):
                with pytest.raises(UnknownJob):
                    scene.async_jobs.status(job, other)
                with pytest.raises(UnknownJob):
                    await scene.async_jobs.cancel(job, other)
                with pytest.raises(UnknownJob):
                    await scene.async_jobs.request(job, other)
            assert scene.async_jobs.status(job, "key:ann")["id"] == job
            unowned = await scene.accept(client="address:1")
            assert scene.async_jobs.status(unowned, "address:2")["id"] == unowned

        play(act)

    def test_ids_cannot_be_guessed(self) -> None:
        async def act(scene: Scene) -> None:
            jobs = [await scene.accept() for _ in range(20)]
            assert len(set(jobs)) == 20
            assert all(len(job) == 22 for job in jobs)  # 128 bits in base64

        play(act)

    def test_two_of_a_client_at_once_in_order_and_none_waits_for_another_client(self) -> None:
        async def act(scene: Scene) -> None:
            jobs = [await scene.accept(f"a{n}", client="address:a") for n in range(4)]
            other = await scene.accept("b", client="address:b")
            scene.let_go("b")
            assert await scene.over(other, "address:b") == "done"
            assert scene.asked == ["a0", "a1", "b"]
            for number in range(4):
                scene.let_go(f"a{number}")
                assert await scene.over(jobs[number], "address:a") == "done"
            assert scene.asked == ["a0", "a1", "b", "a2", "a3"]

        play(act)

    def test_who_cancels_before_the_first_step_gets_the_place_back(self) -> None:
        """Before, two such jobs took both places of their client for ever."""

        async def act(scene: Scene) -> None:
            for _ in range(2):
                await scene.async_jobs.cancel(await scene.accept("a"), "address:1")
            job = await scene.accept("b")
            scene.let_go("b")
            assert await asyncio.wait_for(scene.over(job), 5) == "done"
            assert scene.asked == ["b"]

        play(act)

    def test_bounded_in_number_and_bytes_with_room_for_newcomers(self) -> None:
        async def number(scene: Scene) -> None:
            for _ in range(3):
                await scene.accept(client="address:a")
            with pytest.raises(Overloaded, match="3 jobs are kept"):
                await scene.accept(client="address:a")
            await scene.accept(client="address:b")
            with pytest.raises(Overloaded):
                await scene.accept(client="address:c")

        async def size(scene: Scene) -> None:
            job = await scene.accept(body=b"x" * 30)  # and as much for its result
            with pytest.raises(Overloaded) as refused:
                await scene.accept(body=b"x" * 20, client="address:b")
            assert refused.value.retry_after_s > 0
            await scene.async_jobs.cancel(job, "address:1")
            await scene.accept(body=b"x" * 20)

        play(number, jobs=4)
        play(size, nbytes=99)

    def test_results_are_forgotten_after_their_time(self) -> None:
        async def act(scene: Scene) -> None:
            job = await scene.accept()
            scene.let_go()
            assert await scene.over(job) == "done"
            (fetched, forgotten) = (await scene.fetch(job), asyncio.Event())
            assert fetched == (200, b"BODY")
            asyncio.get_running_loop().call_later(0.3, forgotten.set)
            await forgotten.wait()
            with pytest.raises(UnknownJob, match=r"0\.2 seconds"):
                await scene.async_jobs.result(job, "address:1")

        play(act, ttl_s=0.2)

    def test_a_cancelled_job_leaves_nothing(self) -> None:
        store = MemoryStore()

        async def act(scene: Scene) -> None:
            running_, waiting = await scene.accept("a"), [await scene.accept("b") for _ in range(3)]
            await scene.begun.wait()
            with pytest.raises(NotDone):
                await scene.async_jobs.result(running_, "address:1")
            for job in (waiting[2], running_):
                await scene.async_jobs.cancel(job, "address:1")
            scene.let_go("b")
            assert await scene.over(waiting[1]) == "done"
            assert len(store._bodies) == 2
            assert scene.asked == ["a", "b", "b"]

        play(act, store=store)

    @pytest.mark.parametrize("make", [lambda _: MemoryStore(), SpoolStore], ids=["memory", "spool"])
    def test_a_job_that_goes_while_it_is_read_is_unknown(self, tmp_path: Path, make) -> None:
        """Before, whoever fetched a result while it was deleted, or its time ended, heard of a KeyError."""
        store = make(tmp_path / "spool")
        read, deleted = {"result": store.result, "body": store.body}, threading.Event()

        def late(kind: str, asked: Any) -> Any:
            assert deleted.wait(WAIT_S)
            return read[kind](asked)

        async def act(scene: Scene) -> None:
            job = await scene.accept(client="address:unknown")
            scene.let_go()
            assert await scene.over(job) == "done"
            for kind in read:
                setattr(store, kind, functools.partial(late, kind))
            work = JobRoutes(scene.async_jobs, lambda *_: pytest.fail("nothing is left to be checked"))
            asking = Request({"type": "http", "path_params": {"job": job}, "headers": []})
            reading = [asyncio.create_task(way(asking)) for way in (work.result, work.again)]
            await asyncio.sleep(0)
            await scene.async_jobs.cancel(job, "address:unknown")
            deleted.set()
            for one in reading:
                with pytest.raises(UnknownJob):
                    await one

        play(act, store=store)

    def test_watchers_hear_of_a_cancellation_and_of_the_end(self) -> None:
        async def act(scene: Scene) -> None:
            first, second = await scene.accept("a"), await scene.accept("b")
            await scene.begun.wait()
            watching = [asyncio.create_task(scene.over(job)) for job in (first, second)]
            await asyncio.sleep(0)
            await scene.async_jobs.cancel(first, "address:1")
            assert await watching[0] == "cancelled"
            await scene.async_jobs.close()
            assert await watching[1] == "failed"
            status, body = await scene.fetch(second)
            assert (status, json.loads(body)["code"]) == (503, "ShuttingDown")

        play(act)

    def test_finished_is_when_nothing_is_left_that_would_be_lost(self, tmp_path: Path) -> None:
        async def lost(scene: Scene) -> None:
            await scene.async_jobs.finished()
            jobs = [await scene.accept(query) for query in ("a", "b", "c")]
            finished = asyncio.create_task(scene.async_jobs.finished())
            scene.let_go("a")
            assert await scene.over(jobs[0]) == "done"
            await scene.async_jobs.cancel(jobs[1], "address:1")
            assert not finished.done()
            scene.let_go("c")
            await finished
            assert scene.async_jobs.status(jobs[2], "address:1")["state"] == "done"

        async def kept(scene: Scene) -> None:
            job = await scene.accept()
            watching = asyncio.create_task(scene.over(job))
            await scene.begun.wait()
            await scene.async_jobs.finished()
            await scene.async_jobs.close()
            assert await watching == "waiting"

        play(lost)
        play(kept, store=SpoolStore(tmp_path))

    def test_what_is_done_while_the_server_ends_can_be_fetched_before_it_does(self) -> None:
        async def act(scene: Scene) -> None:
            early = await scene.accept("a")
            scene.let_go("a")
            await scene.over(early)
            jobs = [await scene.accept(query) for query in ("b", "c", "d")]
            ends_at = time.time() + 60
            scene.async_jobs.begin_to_end(ends_at)
            finished = asyncio.create_task(scene.async_jobs.finished())
            for query, job in zip("bcd", jobs, strict=True):
                scene.let_go(query)
                assert await scene.over(job) == "done"
            assert scene.async_jobs.status(jobs[0], "address:1")["expires_at"] == ends_at
            assert await scene.fetch(jobs[0]) == (200, b"BODY")
            await scene.async_jobs.cancel(jobs[1], "address:1")
            await asyncio.sleep(0)
            assert not finished.done()
            await scene.fetch(jobs[2])
            await finished  # what was done before had its time

        play(act)

    def test_what_a_spool_keeps_is_not_begun_while_the_server_ends(self, tmp_path: Path) -> None:
        async def act(scene: Scene) -> None:
            jobs = [await scene.accept(query) for query in ("a", "b", "c")]
            scene.async_jobs.begin_to_end(time.time() + 60)
            scene.let_go("a")
            assert await scene.over(jobs[0]) == "done"
            scene.let_go("b")
            assert await scene.over(jobs[1]) == "done"
            assert scene.asked == ["a", "b"]
            assert scene.async_jobs.status(jobs[2], "address:1")["state"] == "waiting"
            status = scene.async_jobs.status(jobs[0], "address:1")
            assert status["expires_at"] > time.time() + 3000  # the next process has it
            await scene.async_jobs.finished()

        play(act, store=SpoolStore(tmp_path))

    def test_every_end_is_told_once(self) -> None:
        async def act(scene: Scene) -> None:
            done, running_, waiting = [await scene.accept(query) for query in ("a", "b", "c")]
            late = await scene.accept("d")
            scene.let_go("a")
            assert await scene.over(done) == "done"
            assert scene.ended == [("a", 200)]
            for job in (running_, waiting, done):
                await scene.async_jobs.cancel(job, "address:1")
            assert scene.ended == [("a", 200), ("b", 499), ("c", 499)]
            await scene.async_jobs.close()
            assert scene.ended[3:] == [("d", 503)]
            assert (await scene.fetch(late))[0] == 503
            await scene.async_jobs.close()
            assert len(scene.ended) == 4

        play(act)

    def test_what_the_next_process_does_has_not_ended(self, tmp_path: Path) -> None:
        jobs: list[str] = []

        async def before(scene: Scene) -> None:
            jobs.append(await scene.accept("a"))
            await scene.begun.wait()
            await scene.async_jobs.close()
            assert scene.ended == []

        async def after(scene: Scene) -> None:
            scene.let_go("a")
            assert await scene.over(jobs[0]) == "done"
            assert scene.ended == [("a", 200)]

        async def much_later(scene: Scene) -> None:
            assert scene.async_jobs.status(jobs[0], "address:1")["state"] == "done"
            assert scene.ended == []

        for act in (before, after, much_later):
            play(act, store=SpoolStore(tmp_path))


def test_a_system_without_posix_locks_serves_without_a_spool(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; sys.modules['fcntl'] = None\n"
        "import hybridge.server.app, hybridge.server.async_jobs.spool\n"
        "from hybridge.errors import HybridgeError\n"
        "try:\n"
        "    hybridge.server.async_jobs.spool.SpoolStore(pathlib.Path(sys.argv[1]) / 'spool')\n"
        "except HybridgeError as error:\n"
        "    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("a spool needs a system with POSIX's file locks: saw ")
    assert not list(tmp_path.iterdir())


class TestSpool:
    def test_what_was_accepted_is_done_by_the_next_process(self, tmp_path: Path) -> None:
        jobs: list[str] = []

        async def before(scene: Scene) -> None:
            jobs.extend([await scene.accept(f"q{number}") for number in range(3)])
            scene.let_go("q0")
            assert await scene.over(jobs[0]) == "done"

        async def after(scene: Scene) -> None:
            assert scene.async_jobs.status(jobs[0], "address:1")["state"] == "done"
            assert await scene.fetch(jobs[0]) == (200, b"BODY")
            for number in (1, 2):
                scene.let_go(f"q{number}")
                assert await scene.over(jobs[number]) == "done"
            assert "q0" not in scene.asked
            asked, body = await scene.async_jobs.request(jobs[2], "address:1")
            assert (asked.query, body) == ("q2", b"body")
            for job in jobs:
                await scene.async_jobs.cancel(job, "address:1")

        play(before, store=SpoolStore(tmp_path))
        (tmp_path / "half.request.new").write_bytes(b"{")
        (tmp_path / "orphan.result").write_bytes(b'{"status": 200, "headers": {}}\n')
        play(after, store=SpoolStore(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]

    def test_one_process_at_a_time(self, tmp_path: Path) -> None:
        spool = SpoolStore(tmp_path)
        with pytest.raises(HybridgeError, match="another server uses"):
            SpoolStore(tmp_path)
        spool.close()
        SpoolStore(tmp_path).close()

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(HybridgeError, match="cannot be used"):
            SpoolStore(tmp_path / "file" / "spool")

    def test_files_are_for_their_owner_alone(self, tmp_path: Path) -> None:
        async def act(scene: Scene) -> None:
            await scene.accept()

        play(act, store=SpoolStore(tmp_path / "spool"))
        for path in (tmp_path / "spool").glob("*.request"):
            assert path.stat().st_mode & 0o077 == 0
        assert (tmp_path / "spool").stat().st_mode & 0o077 == 0


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


def test_a_result_that_cannot_be_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def act(scene: Scene) -> None:
        job = await scene.accept("a")
        await scene.begun.wait()
        (tmp_path / f"{job}.result.new").mkdir()  # where the result is to be written
        scene.let_go("a")
        assert await scene.over(job) == "failed"
        assert scene.ended == [("a", 503)]
        status, body = await scene.fetch(job)
        assert (status, json.loads(body)["saw"]) == (503, "Is a directory")
        assert job not in caplog.text
        (tmp_path / f"{job}.result.new").rmdir()

    play(act, store=SpoolStore(tmp_path))
    spool = SpoolStore(tmp_path)
    assert [found.done_at for found in spool.recover()] == [None]  # it will be done again
    spool.close()


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDGE_MEMORY", "1.5GiB")
    settings = Settings(spool="/x", spool_gib=0.5)  # type: ignore[arg-type]
    assert settings.memory == 1536 * 2**20
    assert settings.async_job_limits.nbytes == 2**29
    assert Settings(memory=1000).memory == 1000
    assert Settings(memory="8 GB").memory == 8 * 10**9  # type: ignore[arg-type]
