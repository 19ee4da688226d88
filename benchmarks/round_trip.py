"""The overhead of the protocol over the engine alone: ``make bench``.

One decode of the starter model, four ways, interleaved in one process against one server on loopback:

* ``engine``: latents to uint8 pixels in this process, no server
* ``server, pixels``: the same pixels through HTTP
* ``server, PNG`` and ``server, JPEG``: a picture file through HTTP, read again by the client

The overhead is the client's wall time less the server's own device time for the same request.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from hybridge import Client
from hybridge.engine import Engine, EngineOptions, to_pixels
from hybridge.lab.harness import record
from hybridge.lab.harness.environment import environment
from hybridge.models import look_up
from hybridge.protocol import DecodeRequest, Scaling
from hybridge.protocol.torch import from_torch
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

SEED = 0
RECORDS = Path(__file__).parent / "records"


def measure(engine: Engine, size: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Return the milliseconds of every run, {way: {"wall": [...], "device": [...]}}, after one warm-up of each."""
    generator = torch.Generator().manual_seed(SEED)
    latents = (
        torch.randn(1, 4, size // 8, size // 8, generator=generator) / engine.spec.normalisation.scaling_factor
    )
    wire = from_torch(latents)
    samples: dict[str, dict[str, list[float]]] = {}
    with running(create_app(LocalBackend({"starter": engine}))) as address, Client(address) as client:

        def in_process() -> float:
            begun = time.perf_counter()
            to_pixels(engine.decode(latents)).cpu()
            return 1e3 * (time.perf_counter() - begun)

        def over_http(request: DecodeRequest) -> Callable[[], float]:
            def call() -> float:
                reply = client.send(request, model="starter")
                if request.output == "picture":
                    reply.picture()
                return reply.timings_ms["device"]

            return call

        ways = {
            "engine": in_process,
            "server, pixels": over_http(DecodeRequest(wire, Scaling(), "pixels")),
            "server, PNG": over_http(DecodeRequest(wire, Scaling(), "picture", "png")),
            "server, JPEG": over_http(DecodeRequest(wire, Scaling(), "picture", "jpeg")),
        }
        for repeat in range(repeats + 1):
            for name, way in ways.items():
                begun = time.perf_counter()
                device_ms = way()
                wall_ms = 1e3 * (time.perf_counter() - begun)
                if repeat:
                    kept = samples.setdefault(name, {"wall": [], "device": []})
                    kept["wall"].append(wall_ms)
                    kept["device"].append(device_ms)
    return samples


def table(samples: dict[str, dict[str, list[float]]]) -> str:
    """Return the medians as Markdown, with ratios to the engine alone."""
    alone = statistics.median(samples["engine"]["wall"])
    rows = ["| way | ms | × engine | overhead, ms |", "|---|---|---|---|"]
    for name, kept in samples.items():
        wall = statistics.median(kept["wall"])
        overhead = statistics.median(w - d for w, d in zip(kept["wall"], kept["device"], strict=True))
        rows.append(f"| {name} | {wall:.1f} | {wall / alone:.2f} | {overhead:.1f} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="side of the picture in pixels")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--write", action="store_true", help="keep the record in benchmarks/records")
    arguments = parser.parse_args()
    engine = Engine.load(look_up("starter"), EngineOptions())
    samples = measure(engine, arguments.size, arguments.repeats)
    print(f"starter, {arguments.size}×{arguments.size}, medians of {arguments.repeats}\n\n{table(samples)}")
    if arguments.write:
        asked = {"size": arguments.size, "repeats": arguments.repeats, "seed": SEED}
        path = RECORDS / f"round_trip-{arguments.size}.json"
        record.write(
            record.begin("round_trip", environment(engine.device.value), asked, milliseconds=samples), path
        )
        print(f"\n{path}")


if __name__ == "__main__":
    main()
