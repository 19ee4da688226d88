"""Time saved by the decode queue: twelve pictures, generated and decoded one after another or overlapping.

The generator takes as long as a decode; the starter runs behind a server on loopback.  The generator waits instead
of computing, as if it ran on another device: on the processor that decodes, nothing could overlap.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from hybridge import Client
from hybridge.engine import Engine, EngineOptions
from hybridge.lab.harness import record
from hybridge.lab.harness.environment import environment
from hybridge.models import look_up
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

ITEMS = 12
SEED = 0
RECORDS = Path(__file__).parent / "records"


def measure(engine: Engine, size: int, repeats: int, limit: int) -> dict[str, list[float]]:
    """Return the seconds of every run, {way: [...]}; the ways take turns."""
    generator = torch.Generator().manual_seed(SEED)
    latents = torch.randn(1, 4, size // 8, size // 8, generator=generator)
    samples: dict[str, list[float]] = {"decode": [], "sequential": [], "queue": []}
    with running(create_app(LocalBackend({"starter": engine}))) as address, Client(address) as client:

        def decode() -> None:
            client.decode(latents, model="starter", do_scaling=True)

        def timed(work: object) -> float:
            begun = time.perf_counter()
            work()  # type: ignore[operator]
            return time.perf_counter() - begun

        def sequential() -> None:
            for _ in range(ITEMS):
                time.sleep(generate_s)
                decode()

        def queued() -> None:
            with client.decode_queue(model="starter", do_scaling=True, limit=limit) as queue:
                for _ in range(ITEMS):
                    time.sleep(generate_s)
                    queue.put(latents)
            for finished in queue:
                finished.result()

        decode()
        for _ in range(repeats):
            samples["decode"] += [timed(decode) for _ in range(3)]
            generate_s = statistics.median(samples["decode"][-3:])
            samples["sequential"].append(timed(sequential))
            samples["queue"].append(timed(queued))
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="side of the picture in pixels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=int, default=4, help="calls in flight")
    parser.add_argument("--write", action="store_true", help="keep the record in benchmarks/records")
    arguments = parser.parse_args()
    engine = Engine.load(look_up("starter"), EngineOptions())
    samples = measure(engine, arguments.size, arguments.repeats, arguments.limit)
    ratios = [q / s for q, s in zip(samples["queue"], samples["sequential"], strict=True)]
    for way, seconds in samples.items():
        print(f"{way}: {statistics.median(seconds):.3f} s, median of {len(seconds)}")
    print(f"queue / sequential: {statistics.median(ratios):.2f}")
    if arguments.write:
        asked = {
            "size": arguments.size,
            "repeats": arguments.repeats,
            "items": ITEMS,
            "limit": arguments.limit,
            "seed": SEED,
        }
        path = RECORDS / f"overlap-{arguments.size}.json"
        record.write(record.begin("overlap", environment(engine.device.value), asked, seconds=samples), path)
        print(path)


if __name__ == "__main__":
    main()
