"""Many models in one budget, and what happens when memory runs out."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import torch
from conftest import in_strips

from hybridge.engine import Engine, EngineOptions
from hybridge.engine.execution import executor
from hybridge.errors import HybridgeError, ModelUnavailable, OutOfMemory, TooLarge
from hybridge.models import ModelSpec
from hybridge.protocol import DecodeRequest, WireTensor
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running
from hybridge.server.scheduling import model_cache
from hybridge.server.scheduling.limits import PictureSize
from hybridge.server.scheduling.model_cache import ModelCache
from hybridge.server.scheduling.model_slot import Source
from hybridge.server.scheduling.vae_job import VaeJob, VaeResult

WAIT_S = 30
CPU = EngineOptions(device="cpu")


class Weights:
    def __init__(self, weights_bytes: int) -> None:
        self.weights_bytes = weights_bytes


class Shop:
    """Sources whose loads a test can hold, count and break."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.changed, self.failed = threading.Semaphore(0), threading.Semaphore(0)
        self.gates: dict[str, threading.Event] = {}
        self.broken: set[str] = set()

    def source(self, name: str, size: int) -> Source[Weights]:
        def load() -> Weights:
            self.loads.append(name)
            if name in self.gates:
                assert self.gates[name].wait(WAIT_S)
            if name in self.broken:
                raise ModelUnavailable(f"{name} is broken")
            return Weights(size)

        return Source(lambda: size, load)

    def cache(
        self, memory_bytes: int | None, loaded: dict[str, Weights] | None = None, **sizes: int
    ) -> ModelCache[Any]:
        return ModelCache(
            loaded or {},
            {name: self.source(name, size) for name, size in sizes.items()},
            memory_bytes=memory_bytes,
            on_change=self.changed.release,
            on_failure=lambda name, error: self.failed.release(),
        )

    def use(self, cache: ModelCache[Any], name: str) -> None:
        """A job comes, waits for its model, and is done."""
        cache.request(name)
        while not cache.is_ready(name):
            assert self.changed.acquire(timeout=WAIT_S)
        with cache.claim(name) as model:
            assert model is not None
        cache.release(name)


@pytest.fixture
def shop() -> Shop:
    return Shop()


class TestShelf:
    def test_the_least_recently_used_leaves(self, shop) -> None:
        cache = shop.cache(25, a=10, b=10, c=10)
        for name in ("a", "b", "a", "c"):
            shop.use(cache, name)
        assert [cache.state_of(name).state for name in "abc"] == ["loaded", "cold", "loaded"]
        assert shop.loads == ["a", "b", "c"]
        assert cache.state_of("b").evictions == 1
        assert cache.weights_bytes == 20
        assert cache.room_bytes() == 5
        cache.close()

    def test_two_who_want_the_same_cold_model_load_it_once(self, shop) -> None:
        shop.gates["a"] = threading.Event()
        cache = shop.cache(None, a=1)
        cache.request("a")
        cache.request("a")
        assert cache.state_of("a").state == "loading"
        shop.gates["a"].set()
        assert shop.changed.acquire(timeout=WAIT_S)
        assert shop.loads == ["a"]
        cache.close()

    def test_a_model_in_use_does_not_leave_but_takes_no_new_work(self, shop) -> None:
        cache = shop.cache(15, a=10, b=10)
        shop.use(cache, "a")
        with cache.claim("a") as model:
            assert model is not None
            cache.request("b")
            with cache._changed:
                assert cache._changed.wait_for(lambda: cache._slots["a"].state == "leaving", WAIT_S)
            assert not cache.is_ready("a")
            assert cache.peek("a") is model
        assert shop.changed.acquire(timeout=WAIT_S)
        assert (cache.is_ready("a"), cache.is_ready("b")) == (False, True)
        cache.close()

    def test_two_that_do_not_fit_together_take_turns_and_each_gets_work_done(self, shop) -> None:
        cache = shop.cache(15, a=10, b=10)
        done = []
        for name in "ab" * 3:
            cache.request(name)
        while len(done) < 6:
            assert shop.changed.acquire(timeout=WAIT_S)
            for name in "ab":
                while cache.is_ready(name) and done.count(name) < 3:
                    with cache.claim(name) as model:
                        if model is None:
                            break
                    done.append(name)
                    cache.release(name)
        assert sorted(done) == ["a"] * 3 + ["b"] * 3
        assert len(shop.loads) == 2  # those that waited were all served before it left
        cache.close()

    def test_a_failed_load_is_told_and_tried_again(self, shop, monkeypatch) -> None:
        monkeypatch.setattr(model_cache, "_MIN_RETRY_S", 60.0)
        shop.broken.add("a")
        cache = shop.cache(None, a=1)
        cache.request("a")
        assert shop.failed.acquire(timeout=WAIT_S)
        assert "broken" in (cache.state_of("a").failure or "")
        cache.release("a")
        shop.broken.clear()
        with pytest.raises(ModelUnavailable, match="broken"):
            cache.request("a")  # so soon it is not tried again
        assert shop.loads == ["a"]
        cache._slots["a"].retry_at = 0.0
        shop.use(cache, "a")
        assert cache.state_of("a").failure is None
        shop.broken.add("b")
        other = shop.cache(None, b=1)
        with pytest.raises(HybridgeError, match="broken"):
            other.preload("b")
        other.close()
        cache.close()

    def test_a_model_larger_than_the_budget(self, shop) -> None:
        cache = shop.cache(15, {"stays": Weights(10)}, a=10)
        with pytest.raises(OutOfMemory, match="do not fit in --memory"):
            cache.preload("a")
        assert shop.loads == []
        cache.close()

    def test_running_work_counts_and_idle_models_make_room_for_it(self, shop) -> None:
        cache = shop.cache(30, a=10, b=10)
        shop.use(cache, "a")
        shop.use(cache, "b")
        with cache.claim("b"), cache.running(5):
            assert cache.room_bytes() == 5
            assert cache.make_room(12) == 15
            assert cache.state_of("a").state == "cold"
            assert cache.make_room(100) == 15  # b is in use
        cache.close()


SIDE = 4
BINARY = {"content-type": "tensor/binary"}


def decode(address: str, model: str, **query: Any) -> httpx.Response:
    channels = 16 if model == "flux" else 4
    shape = {"shape": [1, channels, SIDE, SIDE], "dtype": "float32"}
    body = bytes(4 * channels * SIDE * SIDE)
    url = f"{address}/v1/{model}/decode"
    return httpx.post(url, params={**shape, **query}, content=body, headers=BINARY, timeout=60)


class TestColdModels:
    @pytest.fixture
    def address(self, specs: dict[str, ModelSpec]) -> Iterator[str]:
        """A server with room for two of four models."""
        sizes = {name: Engine.expected_bytes(spec, CPU) for name, spec in specs.items()}
        backend = LocalBackend(
            {}, cold=list(specs.values()), options=CPU, memory_bytes=2 * max(sizes.values()) + 50_000
        )
        with running(create_app(backend)) as address:
            yield address

    def test_they_are_loaded_when_asked_for_and_leave_for_others(self, address, specs) -> None:
        def shown() -> dict[str, dict[str, Any]]:
            return {row["name"]: row for row in httpx.get(f"{address}/v1/models").json()["models"]}

        before = shown()
        assert {row["state"] for row in before.values()} == {"cold"}
        assert before["flux"]["dtype"] == "float32"
        assert before["flux"]["dtype_reason"]
        assert before["flux"]["weights_bytes"] is None
        for name in specs:
            answer = decode(address, name)
            assert answer.status_code == 200
            assert "load;dur=" in answer.headers["server-timing"]
        after = shown()
        assert after["flux"]["state"] == "loaded"
        assert after["flux"]["weights_bytes"] == Engine.expected_bytes(specs["flux"], CPU)
        assert after["sd-v1"]["state"] == "cold"
        assert decode(address, "sd-v1").status_code == 200

    def test_the_estimate_before_loading_is_what_it_takes(self, specs) -> None:
        for spec in specs.values():
            assert Engine.expected_bytes(spec, CPU) == Engine.load(spec, CPU).weights_bytes

    def test_an_evicted_model_is_gone_at_once(self, specs) -> None:
        """Not when the garbage collector comes by: the room was promised to another."""
        spec = specs["sd-v1"]
        backend = LocalBackend({}, cold=[spec], options=CPU, memory_bytes=2**30)
        gone = threading.Event()

        async def scene() -> None:
            await backend.run(TestOutOfMemory.job(spec, 8))

        gc.disable()
        try:
            asyncio.run(scene())
            weakref.finalize(backend._models.peek("sd-v1").module, gone.set)
            backend._models.release_idle()
            assert gone.wait(WAIT_S)
        finally:
            gc.enable()
        backend.close()

    def test_weights_that_cannot_be_had(self, specs, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(model_cache, "_MIN_RETRY_S", 60.0)
        from dataclasses import replace

        folder = tmp_path / "model"
        missing = replace(specs["sd-v1"], source=str(folder))
        backend = LocalBackend({}, cold=[missing, specs["taesd"]], options=CPU)
        with running(create_app(backend)) as address:
            refused = decode(address, "sd-v1")
            assert (refused.status_code, refused.json()["code"]) == (503, "ModelUnavailable")
            shown = httpx.get(f"{address}/v1/models/sd-v1").json()
            assert (shown["state"], "no folder" in shown["failure"]) == ("cold", True)
            assert decode(address, "taesd").status_code == 200
            folder.symlink_to(specs["sd-v1"].source)
            assert decode(address, "sd-v1").status_code == 503  # so soon it is not tried again
            backend._models._slots["sd-v1"].retry_at = 0.0
            assert decode(address, "sd-v1").status_code == 200

    def test_a_load_does_not_hold_up_other_models(self, specs, monkeypatch) -> None:
        begun, go = threading.Event(), threading.Event()
        load = Engine.load

        def slow(spec: ModelSpec, options: EngineOptions) -> Engine:
            if spec.name == "flux":
                begun.set()
                assert go.wait(WAIT_S)
            return load(spec, options)

        monkeypatch.setattr(Engine, "load", slow)
        backend = LocalBackend({"sd-v1": load(specs["sd-v1"], CPU)}, cold=[specs["flux"]], options=CPU)
        with running(create_app(backend)) as address:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(2) as pool:
                cold = [pool.submit(decode, address, "flux") for _ in range(2)]
                assert begun.wait(WAIT_S)
                assert httpx.get(f"{address}/v1/models/flux").json()["state"] == "loading"
                assert decode(address, "sd-v1").status_code == 200
                assert not any(future.done() for future in cold)
                go.set()
                assert [future.result().status_code for future in cold] == [200, 200]


class TestOutOfMemory:
    @pytest.fixture
    def engine(self, specs: dict[str, ModelSpec]) -> Engine:
        return in_strips(Engine.load(specs["sd-v1"], CPU))

    @staticmethod
    def job(spec: ModelSpec, side: int) -> VaeJob:
        z = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(side))
        tensor = WireTensor("float32", (1, 4, side, side), z.numpy().tobytes())
        return VaeJob(spec, DecodeRequest(tensor, output="signed"), PictureSize(1, 8 * side, 8 * side))

    @pytest.fixture
    def device_bytes(self, monkeypatch) -> Callable[[int], list[int]]:
        """Makes torch's allocation fail, from inside the executor, for plans above so many bytes."""
        tried: list[int] = []
        real = executor.Executor._strips

        def limit(nbytes: int) -> list[int]:
            def strips(self: Any, bound: Any, source: Any, output: Any, plan: Any, *rest: Any) -> Iterator[None]:
                tried.append(plan.peak_bytes)
                for count, _ in enumerate(real(self, bound, source, output, plan, *rest)):
                    if plan.peak_bytes > nbytes and count == 3:
                        raise RuntimeError(
                            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
                        )
                    yield

            monkeypatch.setattr(executor.Executor, "_strips", strips)
            return tried

        return limit

    def test_an_allocation_that_fails_leads_to_a_smaller_plan(self, engine, device_bytes) -> None:
        job = self.job(engine.spec, 64)
        first = engine.plan("decode", 1, 512, 512).peak_bytes
        with pytest.raises(TooLarge) as refused:
            engine.plan("decode", 1, 512, 512, budget_bytes=1)
        least = refused.value.least_bytes
        assert least < first
        expected = asyncio.run(self.on(engine, job)).tensor.data
        tried = device_bytes(first - 1)
        result = asyncio.run(self.on(engine, job))
        assert tried[0] == first
        assert len(tried) == 2
        assert tried[1] == result.ran.peak_bytes < first
        assert "had no room" in result.ran.why
        close = torch.frombuffer(bytearray(result.tensor.data), dtype=torch.float32)
        assert torch.allclose(close, torch.frombuffer(bytearray(expected), dtype=torch.float32), atol=1e-4)

    def test_it_fails_alone_when_even_the_smallest_does_not_fit(self, engine, device_bytes) -> None:
        tried = device_bytes(0)
        backend = LocalBackend({"sd-v1": engine})
        with pytest.raises(OutOfMemory, match="does not fit in the memory"):
            asyncio.run(backend.run(self.job(engine.spec, 64)))
        assert len(tried) == 2  # once more, and no more
        device_bytes(2**40)
        assert isinstance(asyncio.run(backend.run(self.job(engine.spec, 8))), VaeResult)
        backend.close()

    def test_whole_has_nothing_smaller(self, specs, monkeypatch) -> None:
        engine = Engine.load(specs["sd-v1"], EngineOptions(device="cpu", exactness="bitwise"))
        calls = []

        def fail(*_: Any, **__: Any) -> None:
            calls.append(1)
            raise RuntimeError("can't allocate memory")

        monkeypatch.setattr(engine.module, "decode", fail)
        with pytest.raises(OutOfMemory):
            asyncio.run(self.on(engine, self.job(engine.spec, 8)))
        assert len(calls) == 1

    def test_the_budget_chooses_the_plan_and_the_answer_says_so(self, specs) -> None:
        engine = Engine.load(specs["sd-v1"], CPU)
        free = engine.plan("decode", 1, 512, 512).peak_bytes
        with pytest.raises(TooLarge) as refused:
            engine.plan("decode", 1, 512, 512, budget_bytes=1)
        tight = engine.weights_bytes + (free + refused.value.least_bytes) // 2
        backend = LocalBackend({"sd-v1": engine}, memory_bytes=tight)
        query = {"shape": [1, 4, 64, 64], "dtype": "float32"}
        with running(create_app(backend)) as address:
            url = f"{address}/v1/sd-v1/decode"
            answer = httpx.post(url, params=query, content=bytes(4 * 4 * 64 * 64), headers=BINARY, timeout=60)
            larger = {"shape": [1, 4, 128, 128], "dtype": "float32"}
            too_large = httpx.post(url, params=larger, content=bytes(4 * 4 * 128**2), headers=BINARY, timeout=60)
        assert answer.status_code == 200
        said = dict(part.split("=") for part in answer.headers["hybridge-plan"].split("; "))
        assert said["mode"] in ("strips", "lean", "recompute")
        assert int(said["peak_bytes"]) + engine.weights_bytes <= tight
        within = engine.plan("decode", 1, 512, 512, budget_bytes=tight - engine.weights_bytes)
        assert float(said["tflop"]) == pytest.approx(within.flops / 1e12, rel=1e-2)
        assert too_large.status_code == 413
        assert "budget" in too_large.json()["error"]

    @staticmethod
    async def on(engine: Engine, job: VaeJob) -> VaeResult:
        backend = LocalBackend({"sd-v1": engine})
        try:
            return await backend.run(job)
        finally:
            await asyncio.to_thread(backend.close)


def test_a_job_in_a_gap_without_room_beside_the_large_one_runs_after_it(specs) -> None:
    """Memory for the large job and hardly more: the small one is put back, not refused."""
    engine = Engine.load(specs["sd-v1"], CPU)
    job = TestOutOfMemory.job
    large = engine.plan("decode", 1, 512, 512).peak_bytes
    backend = LocalBackend({"sd-v1": engine}, memory_bytes=engine.weights_bytes + large + 1000)
    order: list[str] = []

    async def scene() -> None:
        begun, running_ = asyncio.Event(), None

        def on_progress(progress: Any) -> None:
            if progress.state == "running":
                begun.set()

        async def run(name: str, side: int, listener: Any = None) -> None:
            await backend.run(job(engine.spec, side), listener)
            order.append(name)

        running_ = asyncio.create_task(run("large", 64, on_progress))
        await begun.wait()
        await run("small", 8)
        await running_

    asyncio.run(scene())
    backend.close()
    assert order == ["large", "small"]


def test_a_model_that_takes_the_room_while_a_run_is_planned_leaves_for_the_run(specs, monkeypatch) -> None:
    """Before, both had it, and the server took more than --memory."""
    engine = Engine.load(specs["sd-v1"], CPU)
    larger = max(engine.plan("decode", 1, 512, 512).peak_bytes, Engine.expected_bytes(specs["flux"], CPU))
    memory_bytes = engine.weights_bytes + larger + 1000
    backend = LocalBackend({"sd-v1": engine}, cold=[specs["flux"]], options=CPU, memory_bytes=memory_bytes)
    plan, decode, rooms = Engine.plan, Engine.decode, []

    def plan_slowly(self: Engine, *given: Any, **named: Any) -> Any:
        made = plan(self, *given, **named)
        if named.get("budget_bytes") is not None:
            backend.preload("flux")
        return made

    def decode_and_look(self: Engine, *given: Any, **named: Any) -> Any:
        rooms.append(backend._models.room_bytes())
        return decode(self, *given, **named)

    monkeypatch.setattr(Engine, "plan", plan_slowly)
    monkeypatch.setattr(Engine, "decode", decode_and_look)
    asyncio.run(backend.run(TestOutOfMemory.job(engine.spec, 64)))
    assert len(rooms) == 1
    assert rooms[0] >= 0
    assert backend.load().evictions["flux"] == 1
    backend.close()
