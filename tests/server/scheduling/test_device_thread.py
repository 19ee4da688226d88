"""The device thread with real engines in strips: gaps, stops, deadlines, batches.  By events, never by time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest
import torch
from conftest import in_strips

from hybridge.engine import Engine, EngineOptions
from hybridge.errors import DeadlinePassed, EngineFailure, Overloaded
from hybridge.models import ModelSpec
from hybridge.protocol import DecodeRequest, EncodeRequest, WireTensor
from hybridge.server.app import create_app
from hybridge.server.http.request_deadline import Deadline
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running
from hybridge.server.scheduling.job import Progress
from hybridge.server.scheduling.limits import PictureSize
from hybridge.server.scheduling.vae_job import VaeJob, VaeResult
from hybridge.server.settings import Settings

WAIT_S = 30
SMALL, LARGE = 8, 64  # latents on a side: pictures of 64² and 512²


@pytest.fixture(scope="module")
def engine(specs: dict[str, ModelSpec]) -> Engine:
    """In strips."""
    return in_strips(Engine.load(specs["sd-v1"], EngineOptions(device="cpu")))


class Watched:
    """An engine that writes down what runs when, and holds a large decode after its first strip until let go."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.events: list[tuple[str, int]] = []
        self.begun, self.go = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def decode(self, latents: torch.Tensor, *, progress: Callable[[int, int], None], **around: Any) -> torch.Tensor:
        is_large = latents.shape[-1] == LARGE

        def watched(done: int, of: int) -> None:
            if is_large:
                self.events.append(("strip", done))
                self.begun.set()
                assert self.go.wait(WAIT_S)
            progress(done, of)

        sample = self._engine.decode(latents, progress=watched, **around)
        if not is_large:
            self.events.append(("small", len(latents)))
        return sample


@pytest.fixture
def watched(engine: Engine) -> Watched:
    return Watched(engine)


@pytest.fixture
def backend(watched: Watched) -> Iterator[LocalBackend]:
    backend = LocalBackend({"sd-v1": watched})  # type: ignore[dict-item]
    yield backend
    watched.go.set()
    backend.close()


def latents(side: int, seed: int = 0) -> WireTensor:
    z = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(seed))
    return WireTensor("float32", (1, 4, side, side), z.numpy().tobytes())


def job(spec: ModelSpec, side: int, *, seed: int = 0, **about: Any) -> VaeJob:
    return VaeJob(
        spec, DecodeRequest(latents(side, seed), output="signed"), PictureSize(1, 8 * side, 8 * side), **about
    )


def alone(engine: Engine, side: int, seed: int = 0) -> bytes:
    z = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(seed))
    return engine.decode(z).numpy().tobytes()


async def lined_up(backend: LocalBackend, count: int) -> None:
    """Returns once so many wait; puts are made by tasks that need a turn of the loop each."""
    while backend.load().waiting < count:  # noqa: ASYNC110 - nothing tells of a put, and it takes one turn
        await asyncio.sleep(0)


async def at_rest(backend: LocalBackend) -> None:
    """Returns once nothing waits or runs: a small job is answered in the gap of what it interrupted."""
    while (load := backend.load()).waiting or load.running:  # noqa: ASYNC110 - nothing tells of the end of a run
        await asyncio.sleep(0.001)


class TestGaps:
    def test_small_jobs_run_between_two_strips_of_a_large_one_and_nothing_is_mixed_up(
        self, backend, watched, engine
    ) -> None:
        for shape in (SMALL, LARGE):  # until it is planned, a small job is not known to be small
            backend.cost(job(engine.spec, shape))

        async def scene() -> list[VaeResult]:
            large = asyncio.create_task(backend.run(job(engine.spec, LARGE, client="large")))
            await asyncio.to_thread(watched.begun.wait, WAIT_S)
            small = [
                asyncio.create_task(backend.run(job(engine.spec, SMALL, seed=seed, client=f"client {seed}")))
                for seed in range(8)
            ]
            await lined_up(backend, 8)
            watched.go.set()
            done = list(await asyncio.gather(*small))
            assert not large.done()
            return [*done, await large]

        *small, large = asyncio.run(scene())
        # The strip that was running when they came, and the gap after it.
        assert watched.events[:9] == [("strip", 1), *[("small", 1)] * 8]
        assert watched.events[9] == ("strip", 2)
        assert [bytes(result.tensor.data) for result in small] == [alone(engine, SMALL, s) for s in range(8)]
        assert bytes(large.tensor.data) == alone(engine, LARGE)

    def test_a_flood_of_small_jobs_does_not_starve_the_large_one(self, backend, watched, engine) -> None:
        cost = backend.cost(job(engine.spec, LARGE)) / backend.cost(job(engine.spec, SMALL))

        async def scene() -> None:
            large = asyncio.create_task(backend.run(job(engine.spec, LARGE, client="large")))
            await asyncio.to_thread(watched.begun.wait, WAIT_S)
            flood = [asyncio.create_task(backend.run(job(engine.spec, SMALL, client="flood"))) for _ in range(40)]
            await lined_up(backend, 40)
            watched.go.set()
            await asyncio.gather(large, *flood)

        asyncio.run(scene())
        strips = [done for kind, done in watched.events if kind == "strip"]
        for index, (kind, done) in enumerate(watched.events):
            if kind == "small":
                # So far the flood had at most the time that the large job had, and one job more.
                smalls = sum(1 for other, _ in watched.events[:index] if other == "small")
                strip = max(d for other, d in watched.events[:index] if other == "strip")
                assert smalls <= 1 + cost * strip / len(strips) or strip == len(strips), (done, strip)

    def test_sixteen_small_clients_and_a_large_one_at_the_same_address(self, watched, engine) -> None:
        """The mixed load, over the wire: nobody small waits for more than one strip."""
        backend = LocalBackend({"sd-v1": watched})  # type: ignore[dict-item]
        app = create_app(backend)

        def ask(side: int) -> int:
            query = {"shape": [1, 4, side, side], "dtype": "float32"}
            body, headers = latents(side).data, {"content-type": "tensor/binary"}
            url = f"{address}/v1/sd-v1/decode"
            return httpx.post(url, params=query, content=body, headers=headers, timeout=60).status_code

        with running(app) as address, ThreadPoolExecutor(17) as pool:
            large = pool.submit(ask, LARGE)
            assert watched.begun.wait(WAIT_S)
            small = [pool.submit(ask, SMALL) for _ in range(16)]
            while backend.load().waiting < 16:
                assert not any(future.done() for future in small)
            watched.go.set()
            assert [future.result() for future in small] == [200] * 16
            assert large.result() == 200
        # Between two small jobs there is never more than one strip, until all are done.
        kinds = [kind for kind, _ in watched.events]
        last = len(kinds) - 1 - kinds[::-1].index("small")
        first = kinds.index("small")
        assert kinds[first : last + 1].count("strip") <= 16
        assert watched.events[-1][0] == "strip"


class TestStopping:
    def test_who_hangs_up_stops_the_engine_at_the_next_strip(self, backend, watched, engine) -> None:
        async def scene() -> None:
            leaving = asyncio.create_task(backend.run(job(engine.spec, LARGE)))
            await asyncio.to_thread(watched.begun.wait, WAIT_S)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            watched.go.set()
            await backend.run(job(engine.spec, SMALL))
            await asyncio.wait_for(at_rest(backend), WAIT_S)

        asyncio.run(scene())
        assert watched.events == [("strip", 1), ("small", 1)]

    def test_a_deadline_that_passes_while_waiting(self, backend, watched, engine) -> None:
        async def scene() -> None:
            large = asyncio.create_task(backend.run(job(engine.spec, LARGE)))
            await asyncio.to_thread(watched.begun.wait, WAIT_S)
            with pytest.raises(DeadlinePassed, match=r"0\.01 s since"), Deadline(0.01).bound():
                await backend.run(job(engine.spec, SMALL))
            assert backend.load().waiting == 0
            watched.go.set()
            await large

        asyncio.run(scene())
        assert ("small", 1) not in watched.events

    def test_a_deadline_that_passes_while_running(self, backend, watched, engine) -> None:
        async def scene() -> None:
            with pytest.raises(DeadlinePassed), Deadline(1).bound():
                await backend.run(job(engine.spec, LARGE))
            assert watched.begun.is_set()
            watched.go.set()
            await backend.run(job(engine.spec, SMALL))

        asyncio.run(scene())
        assert watched.events == [("strip", 1), ("small", 1)]

    def test_over_the_wire(self, watched) -> None:
        app = create_app(LocalBackend({"sd-v1": watched}), Settings(deadline_s=20))  # type: ignore[dict-item]
        query = {"shape": [1, 4, LARGE, LARGE], "dtype": "float32"}
        with running(app) as address:

            def ask(timeout: str) -> httpx.Response:
                headers = {"content-type": "tensor/binary", "request-timeout": timeout}
                url = f"{address}/v1/sd-v1/decode"
                return httpx.post(url, params=query, content=latents(LARGE).data, headers=headers, timeout=60)

            late = ask("0.2")
            watched.go.set()
            for wrong in ("soon", "-1", "nan"):
                assert ask(wrong).status_code == 400
            assert ask("60").status_code == 200
        assert (late.status_code, late.json()["code"]) == (504, "DeadlinePassed")


class TestProgress:
    def test_positions_and_shares_are_told(self, backend, watched, engine) -> None:
        first, second = [], []

        async def scene() -> None:
            large = asyncio.create_task(backend.run(job(engine.spec, LARGE), first.append))
            await asyncio.to_thread(watched.begun.wait, WAIT_S)
            other = asyncio.create_task(backend.run(job(engine.spec, LARGE, client="b"), second.append))
            await lined_up(backend, 1)
            watched.go.set()
            await asyncio.gather(large, other)

        asyncio.run(scene())
        assert second[0].state == "waiting"
        assert second[0].position == 0
        assert second[0].eta_s > 0
        shares = [told.done for told in first if told.state == "running"]
        assert shares == sorted(shares)
        assert shares[0] == 0
        assert shares[-1] == 1
        assert isinstance(first[0], Progress)


class TestBatches:
    """On a CPU nothing is batched unless it is asked for, as here."""

    def test_equal_work_that_waits_shares_a_run_and_gives_the_same_bits(self, watched, engine) -> None:
        backend = LocalBackend({"sd-v1": watched}, batch_limit=4)  # type: ignore[dict-item]

        async def scene() -> list[VaeResult]:
            large = asyncio.create_task(backend.run(job(engine.spec, LARGE, client="large")))
            await asyncio.to_thread(watched.begun.wait, WAIT_S)
            # As large as the running one, so that none of them runs in its gaps.
            others = [
                asyncio.create_task(backend.run(job(engine.spec, LARGE, seed=seed, client=f"client {seed}")))
                for seed in range(3)
            ]
            await lined_up(backend, 3)
            watched.go.set()
            await large
            return list(await asyncio.gather(*others))

        results = asyncio.run(scene())
        backend.close()
        batches = [done for kind, done in watched.events if kind == "strip"]
        assert batches.count(1) == 2  # two runs in all
        assert [bytes(result.tensor.data) for result in results] == [alone(engine, LARGE, s) for s in range(3)]

    def test_one_that_is_broken_does_not_spoil_the_others(self, watched, engine) -> None:
        backend = LocalBackend({"sd-v1": watched}, batch_limit=4)  # type: ignore[dict-item]
        broken = WireTensor("float32", (1, 4, LARGE, LARGE), b"\x00\x00\xc0\x7f" * 4 * LARGE * LARGE)

        async def scene() -> list[object]:
            large = asyncio.create_task(backend.run(job(engine.spec, LARGE)))
            await asyncio.to_thread(watched.begun.wait, WAIT_S)
            jobs = [job(engine.spec, LARGE, seed=seed, client=f"client {seed}") for seed in range(2)]
            jobs.insert(1, replace(jobs[0], request=DecodeRequest(broken, output="signed"), client="broken"))
            others = [asyncio.create_task(backend.run(one)) for one in jobs]
            await lined_up(backend, 3)
            watched.go.set()
            await large
            return list(await asyncio.gather(*others, return_exceptions=True))

        first, refused, second = asyncio.run(scene())
        backend.close()
        assert "nan" in str(refused)
        assert isinstance(first, VaeResult)
        assert isinstance(second, VaeResult)
        assert bytes(second.tensor.data) == alone(engine, LARGE, 1)

    def test_what_is_alike(self, engine) -> None:
        one = job(engine.spec, SMALL)
        assert one.batch_key == job(engine.spec, SMALL, seed=1, client="another").batch_key
        assert one.batch_key != job(engine.spec, LARGE).batch_key
        floats = WireTensor("float32", (1, 3, 64, 64), bytes(4 * 3 * 64 * 64))
        assert replace(one, request=EncodeRequest(floats)).batch_key is None  # auto: the numbers decide
        assert replace(one, request=EncodeRequest(floats, value_range="unit")).batch_key is not None
        assert replace(one, request=EncodeRequest(floats, value_range="unit", sample=True)).batch_key is None


def test_an_unexpected_failure_in_a_gap_fails_its_own_job_only(backend, watched, engine, monkeypatch) -> None:
    real = watched.decode

    def decode(latents: torch.Tensor, **around: Any) -> torch.Tensor:
        if latents.shape[-1] == SMALL:
            raise KeyError("a bug")
        return real(latents, **around)

    monkeypatch.setattr(watched, "decode", decode)

    async def scene() -> VaeResult:
        large = asyncio.create_task(backend.run(job(engine.spec, LARGE)))
        await asyncio.to_thread(watched.begun.wait, WAIT_S)
        small = asyncio.create_task(backend.run(job(engine.spec, SMALL)))
        await lined_up(backend, 1)
        watched.go.set()
        with pytest.raises(EngineFailure, match="unexpected failure"):
            await small
        return await large

    assert bytes(asyncio.run(scene()).tensor.data) == alone(engine, LARGE)


def test_patient_jobs_are_not_refused(watched, engine) -> None:
    backend = LocalBackend({"sd-v1": watched}, queue_limit=1)  # type: ignore[dict-item]

    async def scene() -> None:
        large = asyncio.create_task(backend.run(job(engine.spec, LARGE)))
        await asyncio.to_thread(watched.begun.wait, WAIT_S)
        small = asyncio.create_task(backend.run(job(engine.spec, SMALL)))
        await lined_up(backend, 1)
        with pytest.raises(Overloaded):
            await backend.run(job(engine.spec, SMALL))
        patient = asyncio.create_task(backend.run(job(engine.spec, SMALL, is_patient=True)))
        await lined_up(backend, 2)
        watched.go.set()
        await asyncio.gather(large, small, patient)

    asyncio.run(scene())
    backend.close()
