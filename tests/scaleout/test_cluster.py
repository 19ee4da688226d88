"""A real Ray cluster with a real front: two replicas, one of which is killed, and a front that is killed."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import torch
from commands import HYBRIDGE
from forks import SOURCE, Forked

from hybridge.engine import EngineOptions
from hybridge.models import ModelSpec
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

pytestmark = pytest.mark.ray

WAIT_S = 120
RAW = {"content-type": "tensor/binary"}

#: The cluster: a Ray of one small machine, until its standard input ends.
CLUSTER = """
import sys, ray
context = ray.init(num_cpus=2, object_store_memory=80 * 2**20, include_dashboard=False, log_to_driver=False)
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
ray.shutdown()
"""


def environment() -> dict[str, str]:
    path = os.pathsep.join([SOURCE, *filter(None, [os.environ.get("PYTHONPATH")])])
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0", "RAY_AUTH_MODE": "disabled"}
    return {**os.environ, **quiet, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@dataclass
class Cluster:
    address: str
    process: psutil.Process

    def replicas(self) -> list[psutil.Process]:
        return [one for one in self.process.children(recursive=True) if "ServeReplica" in " ".join(_cmdline(one))]


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    complaints = tmp_path_factory.mktemp("ray") / "stderr"
    address = ""
    for _ in range(2):  # Ray gives a node 30 seconds to start, which a busy machine may not keep
        with complaints.open("a") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", CLUSTER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment(),
                text=True,
            )
        assert process.stdout is not None
        assert process.stdin is not None
        address = next((line.strip() for line in process.stdout if re.fullmatch(r"[\d.]+:\d+\n", line)), "")
        if address:
            break
        process.wait()
        process.stdin.close()
        process.stdout.close()
    if not address:
        pytest.fail(f"no cluster: {complaints.read_text()[-2000:]}")
    try:
        yield Cluster(address, psutil.Process(process.pid))
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


@contextmanager
def fronted(cluster: Cluster, specs: dict[str, ModelSpec], *arguments: object) -> Iterator[tuple[Forked, str]]:
    """A front, and its address."""
    models = [f"{name}={specs[name].source}" for name in ("sd-v1", "taesd")]
    ray = ("--ray", cluster.address, "--replicas", 2, "--replica-cpus", 0)
    words = (
        "serve",
        *models,
        "--port",
        0,
        "--log-level",
        "warning",
        "--device",
        "cpu",
        "--exactness",
        "bitwise",
        *ray,
        *arguments,
    )
    process = Forked(HYBRIDGE, *words, env=environment(), stderr=subprocess.STDOUT)
    try:
        seen = ""
        for line in process.stdout:
            seen += line
            if found := re.search(r"serving on (http://\S+)", line):
                break
        else:
            pytest.fail(f"no address in: {seen}")
        yield process, found[1]
    finally:
        process.terminate()
        try:
            process.communicate(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@contextmanager
def alone(specs: dict[str, ModelSpec]) -> Iterator[str]:
    """A single server with the same models and as many threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    named = [resolved(name, specs) for name in ("sd-v1", "taesd")]
    try:
        with running(
            create_app(LocalBackend({}, cold=named, options=EngineOptions("cpu", exactness="bitwise")))
        ) as at:
            yield at
    finally:
        torch.set_num_threads(threads)


def resolved(name: str, specs: dict[str, ModelSpec]) -> ModelSpec:
    from hybridge.engine.served_parts import resolve_parts

    vae = resolve_parts(f"{name}={specs[name].source}").vae
    assert vae is not None
    return vae


@dataclass(frozen=True)
class Asked:
    path: str
    body: bytes
    headers: dict[str, str]


def decode(seed: int, side: int, output: str, model: str = "sd-v1") -> Asked:
    tensor = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(seed))
    query = f"shape=1&shape=4&shape={side}&shape={side}&dtype=float32&{output}"
    return Asked(f"/v1/{model}/decode?{query}", tensor.numpy().tobytes(), RAW)


def mixed(photograph: Path) -> list[Asked]:
    picture = photograph.read_bytes()
    kinds = [
        *(decode(seed, 8, "output_type=pt&partial_postprocess=True") for seed in range(3)),
        *(decode(seed, 16, "output_type=pil") for seed in range(2)),
        decode(0, 32, "output_type=pt"),
        decode(0, 16, "output_type=pil&image_format=jpeg", "taesd"),
        Asked("/v1/taesd/encode", picture, {"content-type": "image/jpeg"}),
    ]
    return [kinds[number % len(kinds)] for number in range(200)]


def ask(client: httpx.Client, at: str, asked: Asked) -> httpx.Response:
    return client.post(f"{at}{asked.path}", content=asked.body, headers=asked.headers)


def from_address(number: int, connections: int = 1) -> httpx.Client:
    """A client with an address of its own, by which the server tells clients."""
    limits = httpx.Limits(max_connections=connections)
    transport = httpx.HTTPTransport(local_address=f"127.0.0.{number + 2}", limits=limits)
    return httpx.Client(transport=transport, timeout=WAIT_S)


def share_of_the_modest(at: str) -> float:
    """What a client with four connections gets of a server beside one with twelve, who always has work waiting."""
    done = {"modest": 0, "greedy": 0}
    has_ended = threading.Event()

    def keep_asking(name: str, client: httpx.Client) -> None:
        while not has_ended.is_set():
            assert ask(client, at, job).status_code == 200
            done[name] += 1

    job = decode(1, 24, "output_type=pt&partial_postprocess=True")
    with from_address(8, 4) as modest, from_address(9, 12) as greedy:
        ask(modest, at, job)
        threads = [threading.Thread(target=keep_asking, args=("modest", modest)) for _ in range(4)]
        threads += [threading.Thread(target=keep_asking, args=("greedy", greedy)) for _ in range(12)]
        for thread in threads:
            thread.start()
        while sum(done.values()) < 100:
            time.sleep(0.05)
        counted = dict(done)
        has_ended.set()
        for thread in threads:
            thread.join()
    return counted["modest"] / sum(counted.values())


def _each(requests: Sequence[Asked]) -> list[Asked]:
    return list({_name(one): one for one in requests}.values())


def _name(asked: Asked) -> str:
    return f"{asked.path} {hash(asked.body)}"


def test_a_replica_and_then_the_front_are_killed_and_no_answer_is_lost(
    cluster: Cluster, specs: dict[str, ModelSpec], photograph: Path, tmp_path: Path
) -> None:
    requests = mixed(photograph)
    later = [decode(seed, 16, "output_type=pt&partial_postprocess=True") for seed in range(12)]
    with alone(specs) as at, httpx.Client(timeout=WAIT_S) as client:
        right = {_name(one): ask(client, at, one).content for one in _each([*requests, *later])}
        single_share = share_of_the_modest(at)
    with fronted(cluster, specs, "--spool", tmp_path) as (front, at), httpx.Client(timeout=WAIT_S) as client:
        answers = answers_though_a_replica_is_killed(cluster, at, requests)
        assert len(answers) == 200
        assert {answer.status_code for _, answer in answers} == {200}
        assert all(answer.content == right[_name(asked)] for asked, answer in answers)
        end = time.monotonic() + WAIT_S
        while "hybridge_replicas 2.0" not in client.get(f"{at}/metrics").text:
            assert time.monotonic() < end
            time.sleep(0.2)
        models = {model["name"]: model for model in client.get(f"{at}/v1/models").json()["models"]}
        assert len(models["sd-v1"]["replicas"]) == 2
        assert share_of_the_modest(at) == pytest.approx(single_share, abs=0.1)
        accepted = [
            client.post(f"{at}{job.path}", content=job.body, headers={**job.headers, "prefer": "respond-async"})
            for job in later
        ]
        assert {answer.status_code for answer in accepted} == {202}
        front.kill()
        front.wait(30)
    with fronted(cluster, specs, "--spool", tmp_path) as (_, at), httpx.Client(timeout=WAIT_S) as client:
        for answer, job in zip(accepted, later, strict=True):
            place = answer.headers["location"]
            with client.stream("GET", f"{at}{place}/events") as events:
                told = [json.loads(line[6:]) for line in events.iter_lines() if line.startswith("data: ")]
            assert told[-1]["state"] == "done"
            assert client.get(f"{at}{place}/result").content == right[_name(job)]


def answers_though_a_replica_is_killed(
    cluster: Cluster, at: str, requests: Sequence[Asked]
) -> list[tuple[Asked, httpx.Response]]:
    """What four clients are answered; at a random moment a replica gets SIGKILL."""
    answers: list[tuple[Asked, httpx.Response]] = []
    waiting, taking = iter(requests), threading.Lock()

    def ask_for_some(number: int) -> None:
        with from_address(number) as client:
            while True:
                with taking:
                    asked = next(waiting, None)
                if asked is None:
                    return
                answers.append((asked, ask(client, at, asked)))

    threads = [threading.Thread(target=ask_for_some, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    kill_after = random.randrange(10, 150)
    while len(answers) < kill_after and any(thread.is_alive() for thread in threads):
        time.sleep(0.01)
    random.choice(cluster.replicas()).send_signal(signal.SIGKILL)
    for thread in threads:
        thread.join()
    return answers
