"""Going down: nothing that was accepted is lost, whoever comes late is told, and nobody can hold it up."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image
from processes import serving_process

from hybridge.engine import Engine
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.middleware.draining import Drain
from hybridge.server.process.server import ListenOptions, running
from hybridge.server.settings import Settings

QUERY = {"shape": [1, 4, 8, 8], "dtype": "float32"}
BODY = bytes(1024)
BINARY = {"content-type": "tensor/binary"}


class HeldEngine:
    """An engine that holds every decode until it is let go."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.begun, self.go = threading.Semaphore(0), threading.Event()

    def __getattr__(self, name: str):
        return getattr(self._engine, name)

    def decode(self, *args, **kwargs):
        self.begun.release()
        assert self.go.wait(60)
        return self._engine.decode(*args, **kwargs)


@contextmanager
def ending(
    engine: HeldEngine, grace_s: float, spool: Path | None = None
) -> Iterator[tuple[str, threading.Event, ThreadPoolExecutor]]:
    """A server that is told to end when the event is set; and threads to ask it with."""
    drain, end, ready = Drain(), threading.Event(), threading.Event()
    backend = LocalBackend({"sd-v1": engine})
    app = create_app(backend, Settings(spool=spool), drain=drain)
    addresses: list[str] = []

    def serve() -> None:
        with running(app, listening=replace(ListenOptions(), grace_s=grace_s), drain=drain) as address:
            addresses.append(address)
            ready.set()
            end.wait()

    serving = threading.Thread(target=serve)
    serving.start()
    ready.wait()
    with ThreadPoolExecutor(8) as pool:
        try:
            yield addresses[0], end, pool
        finally:
            end.set()
            engine.go.set()
            serving.join()


def ask(address: str, client: httpx.Client | None = None) -> httpx.Response:
    post = client.post if client else httpx.post
    return post(f"{address}/v1/sd-v1/decode", params=QUERY, content=BODY, headers=BINARY, timeout=60)


def ask_later(address: str) -> str:
    """Where the job is."""
    headers = {**BINARY, "prefer": "respond-async"}
    accepted = httpx.post(f"{address}/v1/sd-v1/decode", params=QUERY, content=BODY, headers=headers)
    assert accepted.status_code == 202
    return accepted.headers["location"]


def states(address: str, job: str, watched: threading.Semaphore | None = None) -> list[str]:
    """What a stream of events says until it ends as a stream should."""
    told = []
    with httpx.stream("GET", f"{address}{job}/events", timeout=60) as stream:
        for line in stream.iter_lines():
            if line.startswith("event: "):
                told.append(line[7:])
                if watched is not None:
                    watched.release()
    return told


def wait_until_not_ready(address: str) -> httpx.Response:
    while True:
        response = httpx.get(f"{address}/ready")
        if response.status_code != 200:
            return response


def wait_until_waiting(address: str, jobs: int) -> None:
    while f"inf_queue_size {jobs}.0" not in httpx.get(f"{address}/metrics").text:
        pass


def test_admission_stops_while_the_socket_answers(engines) -> None:
    engine = HeldEngine(engines["sd-v1"])
    with ending(engine, 60) as (address, end, pool), httpx.Client() as kept_open:
        assert kept_open.get(f"{address}/health").status_code == 200
        accepted = [pool.submit(ask, address) for _ in range(3)]
        assert engine.begun.acquire(timeout=30)
        wait_until_waiting(address, 2)
        end.set()
        not_ready = wait_until_not_ready(address)
        assert not_ready.status_code == 503
        assert "shutting down" in not_ready.json()["error"]
        for client in (None, kept_open):
            late = ask(address, client)
            assert late.status_code == 503
            assert late.json()["code"] == "ShuttingDown"
            assert late.headers["connection"] == "close"
        assert httpx.get(f"{address}/health").status_code == 200
        engine.go.set()
        assert [one.result().status_code for one in accepted] == [200] * 3


def test_what_cannot_be_finished_in_time_is_answered(engines) -> None:
    engine = HeldEngine(engines["sd-v1"])
    with ending(engine, 0.3) as (address, end, pool):
        accepted = [pool.submit(ask, address) for _ in range(3)]
        assert engine.begun.acquire(timeout=30)
        wait_until_waiting(address, 2)
        end.set()
        for one in accepted:
            answer = one.result()
            assert answer.status_code == 503
            assert answer.json()["code"] == "ShuttingDown"
            assert "before this request was done" in answer.json()["error"]


def test_long_work_without_a_spool_is_finished(engines) -> None:
    engine, watched = HeldEngine(engines["sd-v1"]), threading.Semaphore(0)
    with ending(engine, 60) as (address, end, pool):
        jobs = [ask_later(address) for _ in range(3)]
        watching = [pool.submit(states, address, job, watched) for job in jobs]
        assert all(watched.acquire(timeout=30) for _ in jobs)
        end.set()
        wait_until_not_ready(address)
        assert not any(one.done() for one in watching)
        engine.go.set()
        assert [one.result()[-1] for one in watching] == ["done"] * 3
        # Whoever watched can fetch what it heard of; with the last result the server ends.
        for job in jobs:
            assert httpx.get(f"{address}{job}").json()["expires_at"] < time.time() + 61
            assert httpx.get(f"{address}{job}/result").status_code == 200
        begun = time.monotonic()
    assert time.monotonic() - begun < 30  # of the 60 s of grace


def test_long_work_that_cannot_be_finished_in_time_has_failed(engines, caplog) -> None:
    engine, watched = HeldEngine(engines["sd-v1"]), threading.Semaphore(0)
    with ending(engine, 0.3) as (address, end, pool):
        watching = [pool.submit(states, address, ask_later(address), watched) for _ in range(3)]
        assert all(watched.acquire(timeout=30) for _ in watching)
        end.set()
        assert [one.result()[-1] for one in watching] == ["failed"] * 3
    # The streams ended by themselves; uvicorn had nothing to cut off.
    assert "timeout graceful shutdown exceeded" not in caplog.text


def test_long_work_in_a_spool_is_left_to_the_next_server(engines, tmp_path, caplog) -> None:
    engine, watched = HeldEngine(engines["sd-v1"]), threading.Semaphore(0)
    with ending(engine, 60, tmp_path) as (address, end, pool):
        job = ask_later(address)
        watching = pool.submit(states, address, job, watched)
        assert engine.begun.acquire(timeout=30)
        assert watched.acquire(timeout=30)
        end.set()
        assert watching.result()[-1] == "waiting"
    assert "timeout graceful shutdown exceeded" not in caplog.text
    with running(create_app(LocalBackend({"sd-v1": engines["sd-v1"]}), Settings(spool=tmp_path))) as address:
        assert states(address, job)[-1] == "done"
        assert httpx.get(f"{address}{job}/result").status_code == 200


def test_connections_that_are_kept_open_do_not_hold_it_up(engines) -> None:
    drain = Drain()
    app = create_app(LocalBackend({"sd-v1": engines["sd-v1"]}), drain=drain)
    with httpx.Client() as client:
        with running(app, drain=drain) as address:
            assert ask(address, client).status_code == 200
        # Here the server has ended, though the client has not closed its connection.
        with pytest.raises(httpx.TransportError):
            ask(address, client)


def test_work_that_nobody_waits_for_is_finished_too() -> None:
    async def scene(grace_s: float) -> list[str]:
        drain, seen, done = Drain(), [], asyncio.Event()

        async def finished() -> None:
            seen.append("asked")
            try:
                await done.wait()
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise
            seen.append("done")

        drain.also_wait_for(finished)
        ending_ = asyncio.create_task(drain.finish(grace_s))
        await asyncio.sleep(0)
        assert not ending_.done()
        if grace_s > 1:
            done.set()
        await ending_
        return seen

    assert asyncio.run(scene(60)) == ["asked", "done"]
    assert asyncio.run(scene(0.05)) == ["asked", "cancelled"]


def test_sigterm_under_load() -> None:
    """Each request ends as a right picture, as 503 in JSON, or unheard; the server logged the same answers."""
    with serving_process("--log-format", "json", "--device", "cpu") as (process, address, log):
        latents = [np.random.default_rng(seed).standard_normal((1, 4, 16, 16), np.float32) for seed in range(4)]

        def decode(number: int, client: httpx.Client, request_id: str) -> httpx.Response:
            query = {"shape": [1, 4, 16, 16], "dtype": "float32", "image_format": "png"}
            headers = {**BINARY, "x-request-id": request_id}
            body = latents[number].tobytes()
            url = f"{address}/v1/starter/decode"
            return client.post(url, params=query, content=body, headers=headers, timeout=60)

        def pixels(response: httpx.Response) -> np.ndarray:
            return np.asarray(Image.open(io.BytesIO(response.content)), np.int16)

        with httpx.Client() as client:
            expected = [pixels(decode(number, client, f"first-{number}")) for number in range(4)]
        outcomes: dict[str, int | str] = {}
        enough = threading.Semaphore(0)

        def load(worker: int) -> None:
            count = 0
            with httpx.Client() as client:
                while True:
                    count += 1
                    request_id = f"load-{worker}-{count}"
                    # Every other request on a connection of its own, so that both kinds meet the end.
                    if count % 2:
                        client.close()
                        client = httpx.Client()
                    try:
                        response = decode(count % 4, client, request_id)
                    except httpx.HTTPError as error:
                        outcomes[request_id] = type(error).__name__
                        if isinstance(error, httpx.ConnectError):
                            return
                        continue
                    outcomes[request_id] = response.status_code
                    if response.status_code == 200:
                        assert np.abs(pixels(response) - expected[count % 4]).max() <= 2
                        enough.release()
                    else:
                        assert response.status_code == 503
                        assert response.json()["code"] == "ShuttingDown"
                        assert response.headers["connection"] == "close"

        with ThreadPoolExecutor(8) as pool:
            loads = [pool.submit(load, worker) for worker in range(8)]
            for _ in range(12):
                assert enough.acquire(timeout=60)
            process.send_signal(signal.SIGTERM)
            for one in loads:
                one.result(timeout=120)
        assert process.wait(60) == 0
        logged = {}
        for line in log():
            entry = json.loads(line)
            if entry["logger"] == "hybridge.access":
                logged[entry["request_id"]] = entry["status"]
    answered = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, int)}
    assert answered == {name: status for name, status in logged.items() if name.startswith("load-")}
    assert 200 in answered.values()


def test_a_second_signal_ends_at_once() -> None:
    with serving_process("--device", "cpu") as (process, address, _):
        url = urlsplit(address)
        with socket.create_connection((url.hostname, url.port), timeout=30) as connection:
            connection.sendall(
                b"POST /v1/starter/decode HTTP/1.1\r\nhost: localhost\r\n"
                b"expect: 100-continue\r\ncontent-length: 1024\r\n\r\n"
            )
            assert connection.recv(1024).startswith(b"HTTP/1.1 100")  # accepted, and never to be finished
            process.send_signal(signal.SIGTERM)
            wait_until_not_ready(address)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == -signal.SIGTERM
