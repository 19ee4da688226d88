"""The registry of async jobs: whose they are, how many there may be, how they end and when they are forgotten."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from async_jobs import Scene, play
from starlette.requests import Request

from hybridge.errors import NotDone, Overloaded, UnknownJob
from hybridge.server.async_jobs.spool import SpoolStore
from hybridge.server.async_jobs.store import MemoryStore
from hybridge.server.http.job_routes import JobRoutes

WAIT_S = 30


class TestRegistry:
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
