"""A decode alone and beside busy processes, by how OpenMP's threads wait for each other: milliseconds.

torch's operators and the engine's kernels end at barriers, where GNU's OpenMP spins for a while before it sleeps.
On busy processors, a thread that spins takes time from the thread that it waits for.  How long it spins is read
from the environment when the library is loaded, so each setting has its own process.  All processes are started
first and decode in turns of a second or two, so that the measurements that are compared are seconds apart.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parent / "records"

#: OpenMP's variables for each way to wait.
WAITS = {
    "default": {},
    "spin 100": {"GOMP_SPINCOUNT": "100"},
    "spin 1000": {"GOMP_SPINCOUNT": "1000"},
    "spin 10000": {"GOMP_SPINCOUNT": "10000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}


@dataclass(frozen=True)
class Entrant:
    """A process that decodes with ``exact`` or ``diffusers``, the setting of its threads, and the pipe to it."""

    who: str
    wait: str
    pipe: Connection
    process: Any

    @property
    def name(self) -> str:
        return f"{self.who}, {self.wait}"


def decode_on_request(pipe: Connection, who: str, model: str, size: int, dtype: str) -> None:
    """Receive a number of seconds, decode for so long, and send the milliseconds of each decode."""
    import torch

    from hybridge.engine import keep_pieces
    from hybridge.engine.options import choose_device
    from hybridge.lab.harness.environment import environment
    from hybridge.lab.vae_bench.cases import Case
    from hybridge.lab.vae_bench.rivals import RIVALS, Limits

    if who == "exact":
        keep_pieces()  # as `hybridge serve` does
    ready = RIVALS[who].make(Case(model, "decode", size, dtype), Limits())
    with torch.inference_mode():
        ready.run(ready.given)
        pipe.send(environment(choose_device("auto").value))
        with contextlib.suppress(EOFError):
            while True:
                seconds, decodes = pipe.recv(), []
                until = time.perf_counter() + seconds
                while time.perf_counter() < until:
                    begun = time.perf_counter()
                    ready.run(ready.given)
                    decodes.append(1e3 * (time.perf_counter() - begun))
                pipe.send(decodes)


def compute_forever() -> None:
    """Compute without ever waiting."""
    while True:
        pass


def start(who: str, wait: str, arguments: argparse.Namespace) -> Entrant:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=decode_on_request, args=(theirs, who, arguments.model, arguments.size, arguments.dtype), daemon=True
    )
    inherited = {name: os.environ.pop(name) for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY") if name in os.environ}
    os.environ.update(WAITS[wait])
    try:
        process.start()
    finally:
        for name in WAITS[wait]:
            del os.environ[name]
        os.environ.update(inherited)
    theirs.close()
    return Entrant(who, wait, ours, process)


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Run so many processes that never wait, inside the block."""
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=compute_forever, daemon=True) for _ in range(count)]
    for other in others:
        other.start()
    try:
        time.sleep(0.5 * bool(others))  # until they compute
        yield
    finally:
        for other in others:
            other.kill()
            other.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter", help="a name of the catalogue; its weights are random")
    parser.add_argument("--size", type=int, default=512, help="side of the picture in pixels")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, os.cpu_count() or 1], help="busy processes")
    parser.add_argument("--wait", nargs="+", default=list(WAITS), choices=WAITS)
    parser.add_argument("--seconds", type=float, default=1.5, help="of one turn")
    parser.add_argument("--turns", type=int, default=10, help="of each")
    parser.add_argument("--write", action="store_true", help="keep the record in benchmarks/records")
    arguments = parser.parse_args()

    entrants = [start("exact", wait, arguments) for wait in arguments.wait] + [
        start("diffusers", "default", arguments)
    ]
    made, *_ = [entrant.pipe.recv() for entrant in entrants]
    samples: dict[str, dict[str, list[float]]] = {
        entrant.name: {str(count): [] for count in arguments.busy} for entrant in entrants
    }
    for turn in range(arguments.turns):
        for count in arguments.busy if turn % 2 else reversed(arguments.busy):
            with busy(count):
                for entrant in entrants if turn % 2 else reversed(entrants):
                    entrant.pipe.send(arguments.seconds)
                    samples[entrant.name][str(count)] += entrant.pipe.recv()
    first = str(arguments.busy[0])
    for name, by_count in samples.items():
        medians = {count: statistics.median(values) for count, values in by_count.items()}
        slowest = {count: max(values) for count, values in by_count.items()}
        print(f"{name:20}", *(f"beside {n}: {m:6.0f} ms (longest {slowest[n]:6.0f}), × {m / medians[first]:.2f};"
                              for n, m in medians.items()))  # fmt: skip
    if arguments.write:
        from hybridge.lab.harness import record

        asked = {name: value for name, value in vars(arguments).items() if name != "write"}
        path = RECORDS / f"beside-others-{arguments.model}-{arguments.size}.json"
        record.write(record.begin("beside_others", made, asked, milliseconds=samples), path)
        print(path)


if __name__ == "__main__":
    main()
