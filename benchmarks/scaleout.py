"""What a replica in a Ray cluster costs and gains: ``python benchmarks/scaleout.py``, with Ray installed.

*Overhead*: the same decode by the backend in this process and by a replica, in turns; of each the wall time less
the device's own.  *Throughput*: eight jobs at a time on one replica of one thread, and on two.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of this process and of replicas: before torch and Ray are imported
os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import torch

from hybridge.engine import EngineOptions
from hybridge.lab.harness import record
from hybridge.lab.harness.environment import environment
from hybridge.models import look_up
from hybridge.protocol import DecodeRequest, Scaling
from hybridge.protocol.torch import from_torch
from hybridge.scaleout.backend import ReplicaBackend
from hybridge.scaleout.cluster import RayReplicas, ReplicaOptions, connect, wait_until_running
from hybridge.scaleout.plan import ReplicaPlan
from hybridge.server.scheduling.limits import Limits
from hybridge.server.scheduling.queue import QueueLimits
from hybridge.server.scheduling.vae_job import VaeJob, admit

SEED = 0
CLIENTS = 8
PATIENCE_S = 120.0
PATH = Path(__file__).parent / "records" / "scaleout.json"


def decode_job(size: int) -> VaeJob:
    """A decode of the starter model whose answer is a tensor of pixels."""
    spec = look_up("starter")
    latents = torch.randn(1, 4, size // 8, size // 8, generator=torch.Generator().manual_seed(SEED))
    request = DecodeRequest(from_torch(latents), scaling=Scaling("none"), output="pixels")
    return admit(request, spec, Limits())


def plan() -> ReplicaPlan:
    return ReplicaPlan((look_up("starter"),), (), EngineOptions(device="cpu"), preload=True)


def replicated(number: int) -> ReplicaBackend:
    """A front before a cluster of its own with so many replicas of one thread."""
    connect("local", num_cpus=2, object_store_memory=200 * 2**20)
    replicas = RayReplicas(plan().make_backend, ReplicaOptions(number, number, cpus=0))
    if not wait_until_running(replicas, number, PATIENCE_S):
        raise SystemExit("the replicas do not come")
    return ReplicaBackend(replicas, QueueLimits())


async def beside_device_ms(backend: Any, job: VaeJob) -> float:
    """Milliseconds of a job beside its run."""
    begun = time.perf_counter()
    result = await backend.run(job)
    return 1e3 * (time.perf_counter() - begun) - float(result.milliseconds["device"])


async def overhead(local: Any, far: Any, job: VaeJob, repeats: int) -> dict[str, list[float]]:
    """Milliseconds beside the run, of both in turns, after two warm-ups of each."""
    samples: dict[str, list[float]] = {"local": [], "replica": []}
    for turn in range(repeats + 2):
        for name, backend in (("local", local), ("replica", far)):
            spent = await beside_device_ms(backend, job)
            if turn >= 2:
                samples[name].append(spent)
    return samples


async def per_second(backend: Any, job: VaeJob, seconds: float) -> float:
    """Jobs in a second, with :data:`CLIENTS` under way, after a warm-up."""
    await asyncio.gather(*(backend.run(job) for _ in range(CLIENTS)))
    done, end = 0, time.perf_counter() + seconds
    begun = time.perf_counter()

    async def client() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await backend.run(job)
            done += 1

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return done / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--write", action="store_true", help=f"keep the record in {PATH}")
    asked = parser.parse_args()
    job = decode_job(asked.size)
    samples: dict[str, list[float]] = {"local": [], "replica": []}
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(asked.rounds):
        for number in rates:
            far = replicated(number)
            try:
                if number == 1:
                    local = plan().make_backend()
                    for name, some in asyncio.run(overhead(local, far, job, asked.repeats)).items():
                        samples[name] += some
                    local.close()
                rates[number].append(asyncio.run(per_second(far, job, asked.seconds)))
            finally:
                far.close()
    added = statistics.median(samples["replica"]) - statistics.median(samples["local"])
    gained = statistics.median(rates[2]) / statistics.median(rates[1])
    print(f"beside the run: local {statistics.median(samples['local']):.2f} ms,", end=" ")
    print(f"replica {statistics.median(samples['replica']):.2f} ms: {added:.2f} ms more")
    print(f"two replicas: {gained:.2f} × one ({rates})")
    if asked.write:
        arguments = {"size": asked.size, "repeats": asked.repeats, "seconds": asked.seconds, "rounds": asked.rounds}
        found = {"milliseconds": samples, "per_second": {str(number): found for number, found in rates.items()}}
        record.write(record.begin("scaleout", environment(torch.device("cpu")), arguments, **found), PATH)


if __name__ == "__main__":
    main()
