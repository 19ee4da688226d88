"""Pictures per second of the engine alone and of the server under load, in turns of seconds.

``hybridge bench serve`` starts every server anew, so the measurements that it compares are half a minute apart.
The speed of a shared machine drifts more in that time than a server costs.  Here they are seconds apart.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path

from hybridge.engine import Engine, EngineOptions, keep_pieces, to_pixels
from hybridge.engine.options import choose_device
from hybridge.lab.harness import record
from hybridge.lab.harness.environment import environment
from hybridge.lab.serve_bench.cases import Kind, Load, ServeArguments
from hybridge.lab.serve_bench.load_generator import OK, Bounds, PreparedRequest, closed
from hybridge.lab.serve_bench.served_model import latents
from hybridge.lab.serve_bench.servers import SERVERS, started
from hybridge.models import look_up

MODEL = "starter"
RECORDS = Path(__file__).parent / "records"


def engine_alone(parent: Connection, size: int) -> None:
    """Receive a number of seconds, decode for so long, and send the pictures per second; end with the pipe."""
    keep_pieces()  # as `hybridge serve` does
    engine, given = Engine.load(look_up(MODEL), EngineOptions()), latents(MODEL, size, 0)
    to_pixels(engine.decode(given)).cpu()
    parent.send(None)
    try:
        while True:
            seconds = parent.recv()
            begun, pictures = time.perf_counter(), 0
            while time.perf_counter() - begun < seconds:
                to_pixels(engine.decode(given)).cpu()
                pictures += 1
            parent.send(pictures / (time.perf_counter() - begun))
    except EOFError:
        pass


def served(request: PreparedRequest, clients: int, bounds: Bounds) -> float:
    """Return the pictures per second from the first request to the last answer."""
    samples = closed([request] * clients, bounds)
    failed = [sample.outcome for sample in samples if sample.outcome != OK]
    if failed:
        raise SystemExit(f"the server answered {failed[0]}")
    return len(samples) / max(sample.at_s + (sample.wall_s or 0) for sample in samples)


def measure(size: int, clients: int, seconds: float, turns: int) -> dict[str, list[float]]:
    """Return {name: [pictures per second in each turn]}; the order alternates."""
    load = Load((Kind(MODEL, size),))
    asked = ServeArguments(None, (load,), clients, None, 256, seconds, None, ("hybridge",), "png", turns, 120)
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=engine_alone, args=(theirs, size))
    process.start()
    theirs.close()
    samples: dict[str, list[float]] = {"engine": [], "server": []}
    try:
        ours.recv()
        with started(SERVERS["hybridge"], load, asked) as (request,):
            for turn in range(turns):
                for who in ("engine", "server") if turn % 2 else ("server", "engine"):
                    if who == "engine":
                        ours.send(seconds)
                        samples[who].append(ours.recv())
                    else:
                        samples[who].append(served(request, clients, asked.bounds))
    finally:
        ours.close()
        process.join()
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="side of the picture in pixels")
    parser.add_argument("--clients", type=int, default=8, help="each sends its next request when it has its answer")
    parser.add_argument("--seconds", type=float, default=3, help="of one turn")
    parser.add_argument("--turns", type=int, default=25, help="of each")
    parser.add_argument("--write", action="store_true", help="keep the record in benchmarks/records")
    arguments = parser.parse_args()
    samples = measure(arguments.size, arguments.clients, arguments.seconds, arguments.turns)
    engine, server = samples["engine"], samples["server"]
    ratio = sum(server) / sum(engine)
    # Of a ratio of sums: what is left of each turn's pair, as a part of the mean.
    rest = [(s - ratio * e) / statistics.mean(engine) for s, e in zip(server, engine, strict=True)]
    error = statistics.stdev(rest) / len(rest) ** 0.5 if len(rest) > 1 else 0.0
    for who, rates in samples.items():
        print(f"{who}: {statistics.mean(rates):.2f} pictures/s, mean of {len(rates)} turns")
    median = statistics.median(s / e for s, e in zip(server, engine, strict=True))
    print(f"server / engine: {ratio:.3f} ± {error:.3f} of all pictures, {median:.3f} in the median of turns")
    if arguments.write:
        asked = {name: getattr(arguments, name) for name in ("size", "clients", "seconds", "turns")}
        path = RECORDS / f"turns-{arguments.size}-{arguments.clients}-clients.json"
        made = environment(choose_device("auto").value)
        record.write(record.begin("turns", made, asked, pictures_per_s=samples), path)
        print(path)


if __name__ == "__main__":
    main()
