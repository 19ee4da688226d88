"""A front and its replicas, without Ray: answers, repetition, refusals, order and films."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import films
import httpx
import pytest
import torch
from nearby_replicas import NearbyReplicas, sent

from hybridge.engine import Engine, EngineOptions
from hybridge.errors import ModelUnavailable, OutOfMemory, Overloaded, ReplicaUnavailable, Stopped
from hybridge.models import CATALOGUE, ModelSpec
from hybridge.protocol import HttpResponse, WireTensor
from hybridge.protocol.requests import read_request
from hybridge.scaleout.backend import ReplicaBackend
from hybridge.scaleout.messages import KnownReceipt, Order, Piece
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running
from hybridge.server.scheduling.job import Progress, Result
from hybridge.server.scheduling.limits import Limits
from hybridge.server.scheduling.queue_limits import QueueLimits
from hybridge.server.scheduling.vae_job import VaeJob, admit

WAIT_S = 60
RAW = {"content-type": "tensor/binary"}


def query(tensor: torch.Tensor, more: str = "output_type=pt&partial_postprocess=True") -> str:
    shape = "&".join(f"shape={side}" for side in tensor.shape)
    return f"{shape}&dtype=float32&{more}"


def latents(side: int = 8, *, channels: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(seed))


def decode_job(spec: ModelSpec, side: int = 8, *, seed: int = 0, client: str = "", **about: Any) -> VaeJob:
    tensor = latents(side, seed=seed)
    request = read_request(query(tensor, **about), RAW, tensor.numpy().tobytes(), "decode")
    return replace(admit(request, spec, Limits()), client=client)


@contextmanager
def fronted(
    specs: list[ModelSpec], number: int = 2, limits: QueueLimits | None = None, **front: Any
) -> Iterator[tuple[ReplicaBackend, NearbyReplicas]]:
    options = EngineOptions(device="cpu")
    replicas = NearbyReplicas(lambda: LocalBackend({}, cold=specs, options=options), number)
    backend = ReplicaBackend(replicas, limits or QueueLimits(), **front)
    try:
        yield backend, replicas
    finally:
        backend.close()


async def until(is_so: Callable[[], Any]) -> None:
    end = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def run(work: Awaitable[Any]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(work, WAIT_S)

    return asyncio.run(bounded())


def test_answers_are_those_of_one_server(specs: dict[str, ModelSpec], photograph: Path) -> None:
    options = EngineOptions(device="cpu")
    picture = photograph.read_bytes()
    tensor = latents()
    requests = [
        ("sd-v1/decode?" + query(tensor), tensor.numpy().tobytes(), RAW),
        ("sd-v1/decode?" + query(tensor, "output_type=pil&image_format=png"), tensor.numpy().tobytes(), RAW),
        ("sd-v1/decode?" + query(tensor, "output_type=pil&metadata=True"), tensor.numpy().tobytes(), RAW),
        ("taesd/decode?" + query(tensor, "preview=True&output_type=pil"), tensor.numpy().tobytes(), RAW),
        ("sdxl/encode?", picture, {"content-type": "image/jpeg"}),
        ("sd-v1/decode?" + query(torch.full((1, 4, 8, 8), torch.nan)), b"\0\0\xc0\x7f" * 256, RAW),
        ("sd-v1/decode?" + query(torch.zeros(1, 3, 8, 8)), b"\0" * 768, RAW),
    ]
    wanted = [specs[name] for name in ("sd-v1", "sdxl", "taesd")]
    replicas = NearbyReplicas(lambda: LocalBackend({}, cold=wanted, options=options))
    alone = LocalBackend({}, cold=wanted, options=options)
    with (
        running(create_app(ReplicaBackend(replicas, QueueLimits()))) as front,
        running(create_app(alone)) as single,
        httpx.Client(timeout=WAIT_S) as client,
    ):
        for path, body, headers in requests:
            answers = [client.post(f"{at}/v1/{path}", content=body, headers=headers) for at in (front, single)]
            ours, theirs = answers
            assert ours.status_code == theirs.status_code, ours.text
            if "preview" not in path:
                assert ours.content == theirs.content
            told = {name for name in theirs.headers if name.startswith("hybridge-")}
            assert {name: ours.headers.get(name) for name in told} == {name: theirs.headers[name] for name in told}
        told = client.get(f"{front}/v1/models").json()["models"]
        assert set(told[0]["replicas"]) == {"r0", "r1"}
        assert client.get(f"{front}/ready").status_code == 200
        metrics = client.get(f"{front}/metrics").text
        assert "hybridge_replicas 2.0" in metrics
        assert 'hybridge_replica_weights_bytes{replica="r0"}' in metrics


def test_a_replica_s_death_is_not_seen_by_its_client(specs: dict[str, ModelSpec]) -> None:
    with fronted([specs["sd-v1"]]) as (backend, replicas):
        deaths: list[str] = []

        def die_once(order: Order, reply: object) -> None:
            if not deaths:
                deaths.append(order.replica)
                replicas.kill(order.replica)

        replicas.before_reply = die_once
        result = run(backend.run(decode_job(specs["sd-v1"])))
        assert result.tensor.shape == (1, 64, 64, 3)
        assert replicas.orders[0][0] == deaths[0]
        assert len(replicas.orders) == 2


def test_a_job_that_kills_two_replicas_is_refused(specs: dict[str, ModelSpec]) -> None:
    with fronted([specs["sd-v1"]], 3) as (backend, replicas):
        replicas.before_reply = lambda order, reply: replicas.kill(order.replica)
        with pytest.raises(OutOfMemory, match="2 replicas died"):
            run(backend.run(decode_job(specs["sd-v1"])))
        assert len(replicas.orders) == 2
        replicas.before_reply = lambda order, reply: None
        assert run(backend.run(decode_job(specs["sd-v1"]))).tensor is not None, "the third one still works"


def test_a_job_beside_a_killer_is_not_blamed(specs: dict[str, ModelSpec]) -> None:
    """Both were on the replica that died, but one of them was waiting there."""
    with fronted([specs["sd-v1"]], 1) as (backend, replicas):

        def die_of_the_killer(order: Order, reply: object) -> None:
            is_running = isinstance(reply, Progress) and reply.state == "running"
            if order.job.client == "killer" and is_running and order.replica in replicas.replicas:
                replicas.kill(order.replica)
                replicas.start_one()

        async def both() -> list[Any]:
            first = asyncio.ensure_future(backend.run(decode_job(specs["sd-v1"], 24, client="killer")))
            await until(lambda: replicas.orders)
            second = asyncio.ensure_future(backend.run(decode_job(specs["sd-v1"], 24, seed=1)))
            return await asyncio.gather(first, second, return_exceptions=True)

        replicas.before_reply = die_of_the_killer
        first, second = run(both())
        assert isinstance(first, OutOfMemory)
        assert second.tensor is not None


def test_what_draws_at_random_is_not_run_twice(specs: dict[str, ModelSpec]) -> None:
    pixels = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    body, shape = pixels.numpy().tobytes(), "shape=1&shape=64&shape=64&shape=3&dtype=uint8"
    for more, repeats in (("sample=True", False), ("sample=True&seed=7", True)):
        request = read_request(f"{shape}&{more}", RAW, body, "encode")
        job = admit(request, specs["sd-v1"], Limits())
        with fronted([specs["sd-v1"]]) as (backend, replicas):
            replicas.before_reply = lambda order, reply, replicas=replicas: (  # type: ignore[misc]
                replicas.kill(order.replica) if len(replicas.orders) == 1 else None
            )
            if repeats:
                assert run(backend.run(job)).tensor is not None
            else:
                with pytest.raises(ReplicaUnavailable, match="without a seed"):
                    run(backend.run(job))


def test_a_job_waits_for_a_replica_but_not_for_ever(specs: dict[str, ModelSpec]) -> None:
    with fronted([specs["sd-v1"]], 1, patience_s=0.5) as (backend, replicas):
        replicas.kill("r0")

        async def later() -> Any:
            job = asyncio.ensure_future(backend.run(decode_job(specs["sd-v1"])))
            await until(lambda: backend.health() is not None)
            assert "no replica" in str(backend.health())
            replicas.start_one()
            return await job

        assert run(later()).tensor is not None
        replicas.is_away = True
        replicas.kill("r1")
        with pytest.raises(ReplicaUnavailable, match=r"no device or replica works, for 0\.5 s"):
            run(backend.run(decode_job(specs["sd-v1"])))
        assert "head node is away" in str(backend.health())


def test_a_replica_that_cannot_load_the_model_is_passed_over(specs: dict[str, ModelSpec], tmp_path: Path) -> None:
    good, bad = specs["sd-v1"], replace(specs["sd-v1"], source=str(tmp_path))
    sources = iter([bad, good, bad])
    options = EngineOptions(device="cpu")
    replicas = NearbyReplicas(lambda: LocalBackend({}, cold=[next(sources)], options=options))
    backend = ReplicaBackend(replicas, QueueLimits())
    try:
        for _ in range(3):
            assert run(backend.run(decode_job(good))).tensor is not None
        assert [name for name, _ in replicas.orders].count("r0") <= 1
        assert "r0" in backend.info()[0].replicas
        backend.check_loaded()
        replicas.kill("r1")
        replicas.start_one()
        with pytest.raises(ModelUnavailable, match="no config"):
            run(backend.run(decode_job(good)))
        run(until(lambda: backend.info()[0].failure is not None))
        with pytest.raises(ModelUnavailable, match="no replica can load sd-v1"):
            backend.check_loaded()
    finally:
        backend.close()


def test_cancelling_reaches_the_replica(specs: dict[str, ModelSpec]) -> None:
    with fronted([specs["sd-v1"]], 1) as (backend, replicas):

        async def leave() -> None:
            told: list[Progress] = []
            job = asyncio.ensure_future(backend.run(decode_job(specs["sd-v1"], 48), told.append))
            await until(lambda: any(progress.state == "running" for progress in told))
            job.cancel()
            with pytest.raises(asyncio.CancelledError):
                await job
            local = replicas.replicas["r0"]._backend
            await until(lambda: local.load().running == 0)
            assert backend.load().running == backend.load().waiting == 0

        run(leave())
        assert run(backend.run(decode_job(specs["sd-v1"]))).tensor is not None


def test_the_front_has_the_limits_and_replicas_have_two_jobs_each(specs: dict[str, ModelSpec]) -> None:
    limits = QueueLimits(jobs=4)
    with fronted([specs["sd-v1"]], 2, limits) as (backend, replicas):
        run(backend.run(decode_job(specs["sd-v1"])))

        async def many() -> list[Any]:
            jobs = [
                asyncio.ensure_future(backend.run(decode_job(specs["sd-v1"], 32, seed=seed))) for seed in range(12)
            ]
            await asyncio.sleep(0)
            assert backend.load().running <= 4
            return await asyncio.gather(*jobs, return_exceptions=True)

        results = run(many())
        refused = [result for result in results if isinstance(result, Overloaded)]
        assert refused
        assert all(error.retry_after_s > 0 for error in refused)
        assert {type(result) for result in results} <= {Overloaded, type(results[0])}
        assert {name for name, _ in replicas.orders} == {"r0", "r1"}


def test_clients_take_turns(specs: dict[str, ModelSpec]) -> None:
    with fronted([specs["sd-v1"]], 1) as (backend, replicas):
        run(backend.run(decode_job(specs["sd-v1"])))

        async def crowd() -> list[str]:
            first = len(replicas.orders)
            jobs = [backend.run(decode_job(specs["sd-v1"], 16, client="busy")) for _ in range(6)]
            jobs += [backend.run(decode_job(specs["sd-v1"], 16, client="other")) for _ in range(2)]
            await asyncio.gather(*jobs)
            return [order.job.client for _, order in replicas.orders[first:]]

        order = run(crowd())
        assert "other" in order[2:4], order
        assert order.index("other") < 4
        assert order[:6].count("other") == 2


def test_models_stay_where_they_are_loaded(specs: dict[str, ModelSpec]) -> None:
    with fronted([specs["sd-v1"], specs["sdxl"]]) as (backend, replicas):

        async def warm() -> None:
            await backend.run(decode_job(specs["sd-v1"]))
            await until(lambda: any(state == "loaded" for state in backend.info()[0].replicas.values()))
            for seed in range(4):
                await backend.run(decode_job(specs["sd-v1"], seed=seed))

        run(warm())
        assert len({name for name, order in replicas.orders}) == 1


def test_a_film_comes_back_as_bytes(tmp_path: Path) -> None:
    films.small_wan(z_dim=16, latents_mean=[0.0] * 16, latents_std=[1.0] * 16).save_pretrained(tmp_path / "wan")
    spec = replace(CATALOGUE["wan-2.1"], source=str(tmp_path / "wan"), subfolder=None)
    tensor = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    path, body = f"/v1/{spec.name}/decode?{query(tensor, 'output_type=mp4')}", tensor.numpy().tobytes()
    options = EngineOptions(device="cpu")
    engine = Engine.load(spec, options)
    replicas = NearbyReplicas(lambda: LocalBackend({spec.name: engine}), 1)
    with (
        running(create_app(ReplicaBackend(replicas, QueueLimits()))) as front,
        running(create_app(LocalBackend({spec.name: engine}))) as single,
        httpx.Client(timeout=WAIT_S) as client,
    ):
        ours, theirs = (client.post(at + path, content=body, headers=RAW) for at in (front, single))
        assert ours.status_code == theirs.status_code == 200, ours.text
        assert ours.content == theirs.content
        assert replicas.orders[0][1].has_film
        assert replicas.orders[0][1].job.film is None
        bad = torch.full_like(tensor, torch.nan)
        broken = client.post(front + path, content=bad.numpy().tobytes(), headers=RAW)
        assert broken.status_code == 400, broken.text


@pytest.mark.parametrize(
    "message",
    [
        Piece(b"bytes"),
        Stopped("why", saw=1, hint="again"),
        Order(decode_job(CATALOGUE["sd-v1"]), "r0"),
        HttpResponse(200, {"a": "b"}, b"body"),
        HttpResponse(204, {}, b""),
        Progress("running", 1, 2.0, 0.5),
    ],
    ids=lambda message: type(message).__name__,
)
def test_messages_arrive_as_they_were_sent(message: Any) -> None:
    arrived = sent(message)
    assert type(arrived) is type(message)
    assert str(arrived) == str(message) or arrived == message


def test_tensors_are_not_copied_into_the_message() -> None:
    import pickle

    from nearby_replicas import _Pickler

    tensor = WireTensor("bfloat16", (1, 3, 64, 64), bytes(range(256)) * 96)
    buffers: list[pickle.PickleBuffer] = []
    import io

    file = io.BytesIO()
    _Pickler(file, protocol=5, buffer_callback=buffers.append).dump(tensor)
    assert len(file.getvalue()) < 1000
    assert sum(buffer.raw().nbytes for buffer in buffers) == tensor.nbytes
    arrived = sent(tensor)
    assert (arrived.dtype, arrived.shape, bytes(arrived.data)) == (tensor.dtype, tensor.shape, bytes(tensor.data))


def test_a_receipt_needs_nothing_of_the_replica() -> None:
    from hybridge.protocol.receipt import Receipt

    result = sent(Result(receipt=KnownReceipt(Receipt.of({"model": "sd-v1"}))))
    assert result.receipt(True).header() == "model=sd-v1"
