"""Models that are being loaded, for long or without end: who waits, who is refused, and who is not."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from conftest import in_strips

import hybridge
from hybridge.engine import Engine, EngineOptions
from hybridge.errors import DeadlinePassed, ModelUnavailable, Overloaded
from hybridge.models import ModelSpec
from hybridge.protocol import DecodeRequest, WireTensor
from hybridge.server.app import create_app
from hybridge.server.http.request_deadline import Deadline
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running
from hybridge.server.scheduling import model_cache, model_slot
from hybridge.server.scheduling.cost_cache import CostCache
from hybridge.server.scheduling.cost_model import CostModel
from hybridge.server.scheduling.limits import PictureSize
from hybridge.server.scheduling.queue import FairQueue, QueueLimits
from hybridge.server.scheduling.vae_job import VaeJob

WAIT_S = 60
CPU = EngineOptions(device="cpu")
BINARY = {"content-type": "tensor/binary"}


class Loads:
    """Engine.load, which a test can hold, break and count, model by model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._load = Engine.load
        self.begun: dict[str, threading.Semaphore] = {}
        self.gates: dict[str, threading.Event] = {}
        self.broken: set[str] = set()
        self.count: dict[str, int] = {}
        monkeypatch.setattr(Engine, "load", self)

    def hold(self, *names: str) -> None:
        for name in names:
            self.begun[name], self.gates[name] = threading.Semaphore(0), threading.Event()

    def __call__(self, spec: ModelSpec, options: EngineOptions) -> Engine:
        self.count[spec.name] = self.count.get(spec.name, 0) + 1
        if spec.name in self.gates:
            self.begun[spec.name].release()
            assert self.gates[spec.name].wait(WAIT_S)
        if spec.name in self.broken:
            raise ModelUnavailable(f"{spec.name} is broken")
        return self._load(spec, options)

    def let_go(self) -> None:
        for gate in self.gates.values():
            gate.set()


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loads]:
    loads = Loads(monkeypatch)
    yield loads
    loads.let_go()


def decode(address: str, model: str, side: int = 4, **headers: str) -> httpx.Response:
    channels = 16 if model == "flux" else 4
    query = {"shape": [1, channels, side, side], "dtype": "float32"}
    body, url = bytes(4 * channels * side * side), f"{address}/v1/{model}/decode"
    return httpx.post(url, params=query, content=body, headers={**BINARY, **headers}, timeout=WAIT_S)


def job(spec: ModelSpec, side: int = 4, **about: Any) -> VaeJob:
    shape = (1, spec.latent_channels, side, side)
    tensor = WireTensor("float32", shape, bytes(4 * spec.latent_channels * side * side))
    return VaeJob(spec, DecodeRequest(tensor, output="signed"), PictureSize(1, 8 * side, 8 * side), **about)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_so():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.001)


class TestAdmission:
    def test_whoever_waits_for_a_load_shuts_nobody_else_out(self, engines, specs, loads) -> None:
        """A large request for a cold model counted as minutes of work, and everybody else got 429."""
        loads.hold("flux")
        backend = LocalBackend({"sd-v1": engines["sd-v1"]}, cold=[specs["flux"]], options=CPU)
        with running(create_app(backend)) as address, ThreadPoolExecutor(2) as pool:
            cold = [pool.submit(decode, address, "flux", 256) for _ in range(2)]
            assert loads.begun["flux"].acquire(timeout=WAIT_S)
            asyncio.run(until(lambda: backend.load().waiting == 2))
            assert decode(address, "sd-v1").status_code == 200
            for place in backend._device.queue.waiting():  # they have cost enough to be refused after
                assert place.cost_s > 300
                backend._device.queue.leave(place)
                place.item.future.get_loop().call_soon_threadsafe(place.item.future.cancel)
            del cold

    def test_a_cold_line_is_bounded_by_itself(self) -> None:
        ready = {"warm"}
        line: FairQueue[int] = FairQueue(QueueLimits(jobs=4, work_s=100, nbytes=100), lambda group: group in ready)
        for number in range(4):
            line.put(number, client=f"cold {number}", group="cold", cost_s=20, nbytes=10)
        with pytest.raises(Overloaded, match="4 requests are waiting"):
            line.put(4, client="more", group="cold")
        with pytest.raises(Overloaded, match="for models to be loaded already take too much memory"):
            line.put(4, client="more", group="colder", nbytes=20)
        line.put(4, client="warm", group="warm", cost_s=90, nbytes=50)
        with pytest.raises(Overloaded, match="90 seconds"):
            line.put(5, client="warmer", group="warm", cost_s=20)
        ready.add("cold")
        with pytest.raises(Overloaded, match="5 requests are waiting"):
            line.put(5, client="warmer", group="warm", cost_s=1)

    def test_a_guess_refuses_nobody_until_something_was_measured(self) -> None:
        line: FairQueue[float] = FairQueue(QueueLimits(work_s=100))
        line.put(1e3, client="large", cost_s=1e3, is_guess=True)
        line.put(1.0, client="small", cost_s=1, is_guess=True)
        line.put(2.0, client="another", cost_s=1)
        line.count(lambda item: (item / 2, False))
        with pytest.raises(Overloaded, match="502 seconds of work") as refused:
            line.put(2.0, client="another", cost_s=1)
        assert refused.value.retry_after_s == pytest.approx((500 + 0.5 + 1) / 2)

    def test_what_runs_on_a_guess_is_charged_what_it_took(self) -> None:
        line: FairQueue[str] = FairQueue()
        for client in "ab":
            for number in range(2):
                line.put(f"{client}{number}", client=client, cost_s=100, is_guess=True)
        first = line.take()
        assert first is not None
        line.plan(lambda _: (1, False))
        line.end(first, 1)
        assert [place.item for place in line.waiting()] == ["b0", "a1", "b1"]

    def test_a_small_first_job_says_little_of_large_ones(self) -> None:
        pace = CostModel()
        assert not pace.knows("decode")
        pace.learn("decode", 1e9, 1.0)  # a first run prepares weights
        pace.learn("decode", 1e12, 10.0)
        assert pace.knows("decode")
        assert pace.seconds("decode", 1e12) == pytest.approx(10, rel=0.1)


class TestLoading:
    def test_ten_who_wait_for_a_load_that_fails_all_hear_of_it_and_it_is_tried_once(
        self, specs, loads, monkeypatch
    ) -> None:
        monkeypatch.setattr(model_cache, "_MIN_RETRY_S", 60.0)
        loads.hold("flux")
        loads.broken.add("flux")
        backend = LocalBackend({}, cold=[specs["flux"]], options=CPU)

        async def scene() -> None:
            waiting = [asyncio.create_task(backend.run(job(specs["flux"]))) for _ in range(10)]
            await until(lambda: backend.load().waiting == 10)
            loads.let_go()
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            assert {str(outcome) for outcome in outcomes} == {"flux is broken"}
            assert len({id(outcome) for outcome in outcomes}) == 10
            for _ in range(5):
                with pytest.raises(ModelUnavailable, match="broken"):
                    await backend.run(job(specs["flux"]))
            assert loads.count["flux"] == 1
            assert backend.load().waiting == 0
            loads.broken.clear()
            backend._models._slots["flux"].retry_at = 0.0
            await backend.run(job(specs["flux"]))

        asyncio.run(scene())
        backend.close()

    def test_who_leaves_and_whose_deadline_passes_while_it_loads_frees_the_place(self, specs, loads) -> None:
        loads.hold("flux")
        backend = LocalBackend({}, cold=[specs["flux"]], options=CPU)

        async def scene() -> None:
            leaving = asyncio.create_task(backend.run(job(specs["flux"])))
            await until(lambda: backend.load().waiting == 1)
            leaving.cancel()
            with pytest.raises(DeadlinePassed), Deadline(0.01).bound():
                await backend.run(job(specs["flux"]))
            with pytest.raises(asyncio.CancelledError):
                await leaving
            assert backend.load().waiting == 0
            assert backend._models._slots["flux"].waiting == 0
            loads.let_go()
            await backend.run(job(specs["flux"]))
            assert loads.count["flux"] == 1

        asyncio.run(scene())
        backend.close()

    def test_a_model_that_nobody_waits_for_any_more_is_not_loaded(self, specs, loads) -> None:
        loads.hold("flux")
        backend = LocalBackend({}, cold=[specs["flux"], specs["taesd"]], options=CPU)

        async def scene() -> None:
            first = asyncio.create_task(backend.run(job(specs["flux"])))
            await asyncio.to_thread(loads.begun["flux"].acquire, timeout=WAIT_S)
            second = asyncio.create_task(backend.run(job(specs["taesd"])))
            await until(lambda: backend.load().waiting == 2)
            second.cancel()
            await until(lambda: backend._models.state_of("taesd").state == "cold")
            loads.let_go()
            await first
            assert "taesd" not in loads.count
            await backend.run(job(specs["taesd"]))

        asyncio.run(scene())
        backend.close()

    def test_two_at_once_load_one_after_the_other_and_both_are_answered(self, specs, loads) -> None:
        loads.hold("flux", "taesd")
        size = max(Engine.expected_bytes(specs[name], CPU) for name in ("flux", "taesd"))
        backend = LocalBackend({}, cold=[specs["flux"], specs["taesd"]], options=CPU, memory_bytes=size + 2_000_000)

        async def scene() -> None:
            both = [asyncio.create_task(backend.run(job(specs[name]))) for name in ("flux", "taesd")]
            await until(lambda: backend.load().waiting == 2)
            loads.let_go()
            await asyncio.gather(*both)

        asyncio.run(scene())
        assert loads.count == {"flux": 1, "taesd": 1}
        backend.close()

    def test_a_load_that_hangs_is_overtaken(self, specs, loads, monkeypatch) -> None:
        monkeypatch.setattr(model_slot, "_OVERTAKEN_AFTER_S", 0.1)
        loads.hold("flux")
        backend = LocalBackend({}, cold=[specs["flux"], specs["taesd"]], options=CPU, memory_bytes=2**30)

        async def scene() -> None:
            hung = asyncio.create_task(backend.run(job(specs["flux"])))
            await asyncio.to_thread(loads.begun["flux"].acquire, timeout=WAIT_S)
            await backend.run(job(specs["taesd"]))
            assert not hung.done()
            loads.let_go()
            await hung

        asyncio.run(scene())
        backend.close()

    def test_closing_waits_for_no_load_that_hangs(self, specs, loads) -> None:
        loads.hold("flux")
        backend = LocalBackend({}, cold=[specs["flux"]], options=CPU)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(asyncio.run, backend.run(job(specs["flux"])))
            assert loads.begun["flux"].acquire(timeout=WAIT_S)
            backend.close()
            assert backend.is_busy
            with pytest.raises(Exception, match="shut down before"):
                asked.result(WAIT_S)
        loads.let_go()


class TestPlanning:
    def test_no_plan_is_made_on_the_event_loop(self, specs, monkeypatch) -> None:
        """80 sizes at once made /health wait for 80 plans."""
        engine = in_strips(Engine.load(specs["sd-v1"], CPU))
        planned_in: set[int] = set()
        plan = Engine.plan

        def watched(self: Engine, *args: Any, **kwargs: Any) -> Any:
            planned_in.add(threading.get_ident())
            return plan(self, *args, **kwargs)

        monkeypatch.setattr(Engine, "plan", watched)
        backend = LocalBackend({"sd-v1": engine})

        async def scene() -> None:
            await asyncio.gather(*(backend.run(job(engine.spec, side, client=str(side))) for side in range(4, 20)))
            assert threading.get_ident() not in planned_in

        asyncio.run(scene())
        backend.close()
        assert planned_in

    def test_equal_sizes_are_planned_once_and_the_oldest_are_forgotten(self, monkeypatch) -> None:
        from hybridge.server.scheduling import cost_cache as module

        monkeypatch.setattr(module, "_MOST_KEPT", 2)
        go, asked, told = threading.Event(), [], threading.Semaphore(0)

        def compute(key: str) -> float | None:
            asked.append(key)
            assert go.wait(WAIT_S)
            if key == "broken":
                raise ZeroDivisionError
            return None if key == "none" else float(len(key))

        found: list[float] = []

        def tell(number: float) -> None:
            found.append(number)
            told.release()

        estimates = CostCache(compute)
        for key in ("a", "a", "none", "broken", "bb", "ccc"):
            estimates.find(key, tell)
        go.set()
        for _ in range(4):
            assert told.acquire(timeout=WAIT_S)
        assert asked == ["a", "none", "broken", "bb", "ccc"]
        assert found == [1, 1, 2, 3]
        assert [estimates.known(key) for key in ("a", "bb", "ccc")] == [None, 2, 3]
        assert estimates.now("a") == 1
        estimates.close()

    def test_strangers_cannot_pile_up_plans(self, monkeypatch) -> None:
        from hybridge.server.scheduling import cost_cache as module

        monkeypatch.setattr(module, "_MOST_WAITING", 3)
        go = threading.Event()
        estimates: CostCache[int] = CostCache(lambda key: float(key) if go.wait(WAIT_S) else None)
        for key in range(100):
            estimates.find(key, lambda _: None)
        assert len(estimates._waiting) == 3
        go.set()
        estimates.close()


class TestPreview:
    def test_who_leaves_before_the_preview_gives_up_both_places(self, engines, specs) -> None:
        begun, go = threading.Semaphore(0), threading.Event()

        class Held:
            def __getattr__(self, name: str) -> Any:
                return getattr(engines["taesd"], name)

            def decode(self, *args: Any, **kwargs: Any) -> torch.Tensor:
                begun.release()
                assert go.wait(WAIT_S)
                return engines["taesd"].decode(*args, **kwargs)

        backend = LocalBackend({"sd-v1": engines["sd-v1"], "taesd": Held()})  # type: ignore[dict-item]
        with running(create_app(backend)) as address:
            url = httpx.URL(address)
            target = "/v1/sd-v1/decode?shape=1&shape=4&shape=4&shape=4&dtype=float32&preview=true"
            with socket.create_connection((url.host, url.port), timeout=WAIT_S) as client:
                headers = "host: localhost\r\ncontent-type: tensor/binary\r\ncontent-length: 256\r\n"
                head = f"POST {target} HTTP/1.1\r\n{headers}\r\n"
                client.sendall(head.encode() + bytes(256))
                assert begun.acquire(timeout=WAIT_S)
                assert backend.load().waiting == 1
            try:
                asyncio.run(until(lambda: backend.load().waiting == 0))
            finally:
                go.set()
            assert httpx.get(f"{address}/health").status_code == 200


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM")
def test_sigterm_ends_a_server_whose_load_hangs(tmp_path: Path) -> None:
    """A process, because its end is what is tested.  The hub accepts the connection, and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as hub:
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(hybridge.__file__).parent.parent),
            "PYTHONWARNINGS": "ignore",
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_ETAG_TIMEOUT": "600",
            "HF_HUB_DOWNLOAD_TIMEOUT": "600",
        }
        environment.pop("HF_HUB_OFFLINE", None)
        command = [sys.executable, "-c", "from hybridge.cli import main; main()", "serve", "taesd", "--port", "0"]
        command += ["--device", "cpu", "--grace-s", "0.5", "--spool", str(tmp_path / "spool")]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                address = next(word for line in process.stdout for word in line.split() if "http://" in word)
                with ThreadPoolExecutor(1) as pool:
                    asked = pool.submit(decode, address, "taesd")
                    later = decode(address, "taesd", prefer="respond-async")
                    assert later.status_code == 202
                    hub.settimeout(WAIT_S)
                    with hub.accept()[0]:  # the load has begun
                        process.send_signal(signal.SIGTERM)
                        answer = asked.result()
                        assert process.wait(WAIT_S) == 0
                assert (answer.status_code, answer.json()["code"]) == (503, "ShuttingDown")
                assert "cut off" in process.stderr.read()
            finally:
                process.kill()
    assert any((tmp_path / "spool").rglob("*"))  # the job is there for the next server
