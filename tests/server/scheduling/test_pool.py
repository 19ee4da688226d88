"""Several devices in one server: one fair queue, a model cache for each, and a failure that stays where it is.

The devices are two CPUs.  Models that only wait stand in for VAEs where order and place are what is tested.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest

from hybridge.engine import EngineOptions
from hybridge.errors import (
    EngineFailure,
    OutOfMemory,
    Overloaded,
    ReplicaUnavailable,
    RequestError,
    ShuttingDown,
)
from hybridge.models import CATALOGUE
from hybridge.protocol import HttpResponse, Task
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.local_models import LocalModels
from hybridge.server.process.server import running
from hybridge.server.scheduling.backend import ModelInfo
from hybridge.server.scheduling.dispatcher import Dispatcher
from hybridge.server.scheduling.job import Job, Progress, Result
from hybridge.server.scheduling.model_slot import Source
from hybridge.server.scheduling.pool import UNLIMITED, DevicePool
from hybridge.server.scheduling.queue import QueueLimits
from hybridge.server.settings import Settings

#: FLOPs of a job that takes a second on a device that was not measured yet.
SECOND = 1e11


@dataclass(frozen=True, slots=True)
class Done(Result):
    device: str


@dataclass(frozen=True, slots=True)
class Wait(Job[Done]):
    """A job that takes some seconds, in steps."""

    model: str = "a"
    seconds: float = 0.01
    steps: int = 1
    fails: bool = False
    kills: bool = False

    @property
    def task(self) -> Task:
        return "decode"

    @property
    def part(self) -> str:
        return self.model

    @property
    def batch(self) -> int:
        return 1

    @property
    def nbytes(self) -> int:
        return 1

    @property
    def batch_key(self) -> object:
        return self.model

    @property
    def result_bytes(self) -> int:
        return 1

    def is_quick_to_write(self, _: Done) -> bool:
        return True

    def write(self, _: Done) -> HttpResponse:
        return HttpResponse(200, {}, b"")


class Sleeper:
    weights_bytes = 1


@dataclass
class Sleepers(LocalModels[Sleeper, Wait]):
    """Models that wait, on one device."""

    device: str
    log: list[tuple[str, str]] = field(default_factory=list)  # (client, device) in the order of completion
    load_s: float = 0.0
    fails: bool = False
    ends: bool = False
    shared: int = 1
    gate: threading.Event | None = None
    counted: int = 0

    @property
    def parts(self) -> Sequence[str]:
        return ["a", "b"]

    def sources(self) -> Mapping[str, Source[Sleeper]]:
        def load() -> Sleeper:
            time.sleep(self.load_s)
            return Sleeper()

        return {part: Source(lambda: 1, load) for part in self.parts}

    def info(self, part: str) -> ModelInfo:
        return ModelInfo(CATALOGUE["sd-v1"], self.device, "", "", "", 1, self._cache.state_of(part).state)

    def flops(self, job: Wait) -> float:
        if job.seconds < 0:
            raise RequestError("nothing takes less than no time")
        self.counted += 1
        return SECOND * job.seconds

    guessed_flops = flops

    def may_share(self, _: Sleeper) -> int:
        return self.shared

    def perform(
        self,
        engine: Sleeper,
        jobs: Sequence[Wait],
        progress: Callable[[int, int], None],
        should_stop: Callable[[], bool],
    ) -> Sequence[Done]:
        if self.gate is not None:
            assert self.gate.wait(30)
        for step in range(jobs[0].steps):
            time.sleep(jobs[0].seconds / jobs[0].steps)
            progress(step + 1, jobs[0].steps)
        if self.ends or jobs[0].kills:
            raise SystemExit  # the thread ends, as by a bug
        self.log.append((jobs[0].client, self.device))
        if self.fails or jobs[0].fails:
            raise EngineFailure(f"{self.device} is broken")
        return [Done(self.device, shared_by=len(jobs)) for _ in jobs]


@contextmanager
def pooled(*sleepers: Sleepers, limits: QueueLimits | None = None) -> Iterator[DevicePool]:
    members = {one.device: LocalBackend({}, others=[one], limits=UNLIMITED) for one in sleepers}
    pool = DevicePool(members, limits)
    try:
        yield pool
    finally:
        pool.close()


def ask(pool: DevicePool, jobs: Sequence[Wait]) -> list[Done]:
    async def together() -> list[Done]:
        return await asyncio.gather(*(pool.run(job) for job in jobs))

    return asyncio.run(together())


def wait(model: str = "a", **named: Any) -> Wait:
    return Wait(CATALOGUE["sd-v1"], model=model, **named)


def test_two_devices_share_the_work() -> None:
    one, two = Sleepers("one"), Sleepers("two")
    with pooled(one, two) as pool:
        pool.preload("a")
        begun = time.perf_counter()
        done = ask(pool, [wait(seconds=0.05) for _ in range(12)])
        took_s = time.perf_counter() - begun
    assert Counter(result.device for result in done) == {"one": 6, "two": 6}
    assert took_s < 0.9 * 12 * 0.05
    # The time in the pool's queue is told, too: the last ones waited for about five others.
    assert max(result.milliseconds["queue"] for result in done) > 4 * 50


def test_the_queue_is_fair_over_both() -> None:
    """Whoever comes late with a few jobs does not wait for all of those that came first."""
    log: list[tuple[str, str]] = []
    with pooled(Sleepers("one", log), Sleepers("two", log)) as pool:
        pool.preload("a")
        busy = [wait(client="busy", seconds=0.01) for _ in range(40)]
        ask(pool, [*busy, *(wait(client="late", seconds=0.01) for _ in range(10))])
    names = [client for client, _ in log]
    assert len(names) == 50
    # Each gets half of both devices until the late one is done; four jobs were on the devices before.
    assert names[:26].count("late") >= 9


def test_a_job_goes_where_its_model_is() -> None:
    one, two = Sleepers("one"), Sleepers("two")
    with pooled(one, two) as pool:
        for _ in range(3):
            ask(pool, [wait("a"), wait("b")])
        assert sorted(pool.info()[0].replicas.values()) == ["cold", "loaded"]
        assert len(set(one.log)) == len(set(two.log)) == 1
        loads = pool.load()
        assert dict(loads.loads) == {"a": 1, "b": 1}  # neither was loaded twice
        assert {name: device.weights_bytes for name, device in loads.replicas.items()} == {"one": 1, "two": 1}


def test_another_device_loads_a_model_that_many_wait_for() -> None:
    one, two = Sleepers("one", load_s=0.1), Sleepers("two", load_s=0.1)
    with pooled(one, two) as pool:
        ask(pool, [wait()])
        ask(pool, [wait(seconds=0.01) for _ in range(3)])
        assert pool.load().loads["a"] == 1  # waiting takes less time than loading
        ask(pool, [wait(seconds=0.05) for _ in range(20)])
        assert pool.load().loads["a"] == 2
    assert one.log
    assert two.log


def test_short_jobs_run_in_the_gaps_of_a_long_one() -> None:
    with pooled(Sleepers("one")) as pool:
        pool.preload("a")

        async def ask_both() -> list[str]:
            ended: list[str] = []
            started = asyncio.Event()

            def told(progress: Progress) -> None:
                if progress.state == "running" and progress.done > 0:
                    started.set()

            async def run(name: str, job: Wait, on_progress: Any = None) -> None:
                await pool.run(job, on_progress)
                ended.append(name)

            long = asyncio.create_task(run("long", wait(seconds=1.0, steps=40, client="x"), told))
            await started.wait()
            waiting = asyncio.create_task(run("like it", wait(seconds=1.0, client="x")))
            await asyncio.sleep(0)
            await run("short", wait(seconds=0.01, client="y"))
            assert ended == ["short"]
            await asyncio.gather(long, waiting)
            return ended

        assert asyncio.run(ask_both()) == ["short", "long", "like it"]


def test_a_device_that_fails_does_not_stop_the_other(caplog) -> None:
    broken, good = Sleepers("broken", fails=True), Sleepers("good")
    with pooled(broken, good) as pool:
        pool.preload("a")
        assert {result.device for result in ask(pool, [wait() for _ in range(20)])} == {"good"}
        load = pool.load()
        assert load.replicas["broken"].failure == "it failed repeatedly"
        assert load.replicas["good"].failure is None
        assert pool.health() is None
        tried = len(broken.log)
        ask(pool, [wait() for _ in range(6)])
        assert len(broken.log) == tried  # it rests
    assert "broken fails at what others can do" in caplog.text


def test_a_job_that_fails_everywhere_blames_no_device() -> None:
    one, two = Sleepers("one"), Sleepers("two")
    with pooled(one, two) as pool:
        pool.preload("a")
        for _ in range(5):
            with pytest.raises(EngineFailure, match="is broken"):
                ask(pool, [wait(fails=True)])
        assert len(one.log) == len(two.log) == 5  # each job twice, and not more
        assert all(device.failure is None for device in pool.load().replicas.values())


def test_a_device_whose_thread_has_ended() -> None:
    gone, good = Sleepers("gone", gate=threading.Event(), ends=True), Sleepers("good")
    with pooled(gone, good) as pool:
        pool.preload("a")

        async def ask_while_it_ends() -> list[Done]:
            jobs = [asyncio.create_task(pool.run(wait())) for _ in range(8)]
            await asyncio.sleep(0.05)
            gone.gate.set()
            return await asyncio.gather(*jobs)

        done = asyncio.run(ask_while_it_ends())
        assert {result.device for result in done} == {"good"}
        assert pool.health() is None
        assert pool.load().replicas["gone"].failure == "the device thread has ended"
        good.ends = True
        for _ in range(2):  # the job that was running, and one that comes later
            with pytest.raises(ReplicaUnavailable, match=r"no device or replica works.*: saw gone: the device"):
                ask(pool, [wait()])
        assert pool.health() == "gone: the device thread has ended; good: the device thread has ended"


def test_a_job_that_ends_two_devices_is_refused() -> None:
    devices = [Sleepers(name) for name in ("one", "two", "three")]
    with pooled(*devices) as pool:
        pool.preload("a")
        with pytest.raises(OutOfMemory, match="2 replicas died while they ran this job"):
            ask(pool, [wait(kills=True)])
        assert sum(device.failure is None for device in pool.load().replicas.values()) == 1
        assert ask(pool, [wait()])


def test_jobs_that_share_a_run_are_given_together() -> None:
    gate = threading.Event()
    one = Sleepers("one", shared=4, gate=gate)
    with pooled(one) as pool:
        pool.preload("a")

        async def ask_many() -> list[Done]:
            first = asyncio.create_task(pool.run(wait()))
            await asyncio.sleep(0.05)
            jobs = [asyncio.create_task(pool.run(wait())) for _ in range(6)]
            await asyncio.sleep(0.05)
            gate.set()
            return await asyncio.gather(first, *jobs)

        done = asyncio.run(ask_many())
    assert [result.shared_by for result in done] == [1, 4, 4, 4, 4, 2, 2]


def test_members_come_and_go() -> None:
    """A dispatcher without members keeps its jobs for a while."""

    one, two = (LocalBackend({}, others=[Sleepers(name)], limits=UNLIMITED) for name in ("one", "two"))

    async def scene() -> None:
        dispatcher = Dispatcher(lambda job: (0.1, False), patience_s=30)
        waiting = asyncio.create_task(dispatcher.run(wait()))
        await asyncio.sleep(0.01)
        dispatcher.set_members({"one": one})
        assert (await waiting).device == "one"
        dispatcher.set_members({"two": two})
        assert (await dispatcher.run(wait())).device == "two"
        dispatcher.set_members({})
        left = asyncio.create_task(dispatcher.run(wait()))
        await asyncio.sleep(0.01)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        assert len(dispatcher.queue) == len(dispatcher.queue.serving()) == 0

    try:
        asyncio.run(scene())
    finally:
        one.close()
        two.close()


def test_a_client_that_leaves_and_limits() -> None:
    gate = threading.Event()
    one, two = Sleepers("one", gate=gate), Sleepers("two", gate=gate)
    with pooled(one, two, limits=QueueLimits(jobs=4)) as pool:
        pool.preload("a")

        async def leave() -> None:
            tasks = [asyncio.create_task(pool.run(wait(client=str(number)))) for number in range(8)]
            await asyncio.sleep(0.05)
            assert pool.load().waiting >= 4
            with pytest.raises(Overloaded):
                await pool.run(wait(client="late"))
            for task in tasks[2:]:
                task.cancel()
            gate.set()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert (await pool.run(wait())).device in ("one", "two")

        asyncio.run(leave())
        assert len(one.log) + len(two.log) <= 2 + 2 + 1  # those that ran or were next, and the last one
        assert pool.load().waiting == pool.load().running == 0


def test_a_job_that_cannot_be_done_holds_up_no_other() -> None:
    one = Sleepers("one")
    with pooled(one) as pool:
        pool.preload("a")

        async def ask_all() -> list[Any]:
            jobs = [wait(), wait(seconds=-1), *(wait() for _ in range(20))]
            return await asyncio.gather(*map(pool.run, jobs), return_exceptions=True)

        done = asyncio.run(ask_all())
        assert isinstance(done.pop(1), RequestError)
        assert all(isinstance(one, Done) for one in done)
        assert one.counted < 4 * len(done)  # not for each job that waits whenever one ends


def test_closing_fails_what_waits() -> None:
    gate = threading.Event()
    with pooled(Sleepers("one", gate=gate)) as pool:
        pool.preload("a")

        async def close() -> list[Any]:
            tasks = [asyncio.create_task(pool.run(wait())) for _ in range(6)]
            await asyncio.sleep(0.05)
            closing = asyncio.create_task(asyncio.to_thread(pool.close))
            await asyncio.sleep(0.05)
            gate.set()
            await closing
            return await asyncio.gather(*tasks, return_exceptions=True)

        done = asyncio.run(close())
        assert isinstance(done[0], Done)
        assert all(isinstance(one, ShuttingDown) for one in done[1:])
        assert pool.health() == "shutting down"
        with pytest.raises(ShuttingDown):
            ask(pool, [wait()])


def test_a_server_with_two_devices(specs, engines, server: str) -> None:
    """Real VAEs: the bits of one device, and what each endpoint says about both."""
    options = EngineOptions(device="cpu", exactness="bitwise")
    cold = [specs["sd-v1"], specs["taesd"]]
    members = {name: LocalBackend({}, cold=cold, options=options, limits=UNLIMITED) for name in ("cpu/0", "cpu/1")}
    generator = np.random.default_rng(0)
    latents = [generator.standard_normal((1, 4, 8, 8), dtype=np.float32).tobytes() for _ in range(12)]
    query = {"shape": "1,4,8,8", "dtype": "float32", "output_type": "pt"}

    def decode(client: httpx.Client, address: str, body: bytes) -> bytes:
        headers = {"content-type": "tensor/binary"}
        answer = client.post(f"{address}/v1/sd-v1/decode", params=query, content=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.content

    from concurrent.futures import ThreadPoolExecutor

    with running(create_app(DevicePool(members))) as address, httpx.Client(timeout=60) as client:
        for name in ("sd-v1", "taesd"):
            for member in members.values():
                member.preload(name)
        with ThreadPoolExecutor(6) as threads:
            found = list(threads.map(lambda body: decode(client, address, body), latents))
        assert found == [decode(client, server, body) for body in latents]
        model = client.get(f"{address}/v1/models").json()["models"][0]
        assert model["replicas"] == {"cpu/0": "loaded", "cpu/1": "loaded"}
        assert client.get(f"{address}/ready").json() == {
            "status": "ready",
            "replicas": {"cpu/0": "ready", "cpu/1": "ready"},
        }
        metrics = client.get(f"{address}/metrics").text
        for line in (
            "hybridge_replicas 2.0",
            'hybridge_replica_running_jobs{replica="cpu/1"} 0.0',
            'hybridge_model_loads_total{model="sd-v1"} 2.0',
        ):
            assert line in metrics
    assert "replicas" not in httpx.get(f"{server}/v1/models").json()["models"][0]


@pytest.mark.parametrize(
    ("given", "devices"),
    [
        ("cuda:0,cuda:1", ("cuda:0", "cuda:1")),
        (["cuda:0", "cpu, cpu"], ("cuda:0", "cpu", "cpu")),
        ("cpu", ("cpu",)),
    ],
)
def test_the_flag(given: object, devices: tuple[str, ...]) -> None:
    assert Settings(device=given).device == devices


@pytest.mark.parametrize("given", ["cuda:0,cuda:0", "cuda,cuda:0", "auto,cpu", ""])
def test_devices_that_do_not_go_together(given: str) -> None:
    with pytest.raises(ValueError, match=r"each GPU once|auto, or the names|at least 1"):
        Settings(device=given)
