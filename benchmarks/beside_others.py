"""A decode alone and beside busy processes, by how OpenMP's threads wait for each other.

torch's operators and the engine's kernels end at barriers, where GNU's OpenMP spins for a while before it sleeps.
On busy processors, a thread that spins takes time from the thread that it waits for.  How long it spins is read
from the environment when the library is loaded, so each setting has its own process.

All processes are started first.  A process decodes alone and beside the others in turns that follow each other, so
a ratio compares measurements that are seconds apart, and the printed ratio is the median of these.  Linux decides
anew in each turn which thread gets which processor, so many short turns tell more than a few long ones.

Each busy process stays on its own processor and is stopped, not ended, for the turns without it.  All processes
belong to one session: Linux shares the processors among sessions first, where it groups processes by session.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
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
    """A process that decodes with ``exact`` or ``diffusers``, and the pipe to it.

    Attributes:
        name: Who decodes, and how its threads wait.
        turns: The milliseconds of each decode, in each turn: by the number of busy processes, as text.
    """

    name: str
    pipe: Connection
    process: Any
    turns: dict[str, list[list[float]]] = field(default_factory=dict)

    def decode(self, seconds: float, beside: int) -> None:
        """Have it decode for so many seconds, and keep the milliseconds of each decode."""
        self.pipe.send(seconds)
        self.turns.setdefault(str(beside), []).append(self.pipe.recv())


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


def compute_forever(processor: int) -> None:
    """Compute on this processor without ever waiting."""
    os.sched_setaffinity(0, {processor})
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
    return Entrant(f"{who}, {wait}", ours, process)


@contextlib.contextmanager
def stopped(most: int) -> Iterator[list[int]]:
    """Start so many busy processes, one on each processor in turn, and stop them; their ids."""
    context, processors = multiprocessing.get_context("spawn"), sorted(os.sched_getaffinity(0))
    others = [
        context.Process(target=compute_forever, args=(processors[index % len(processors)],), daemon=True)
        for index in range(most)
    ]
    for other in others:
        other.start()
    time.sleep(2 * bool(others))  # until they compute
    ids = [other.pid for other in others if other.pid is not None]
    for one in ids:
        os.kill(one, signal.SIGSTOP)
    try:
        yield ids
    finally:
        for other in others:
            other.kill()
            other.join()


@contextlib.contextmanager
def continued(ids: list[int]) -> Iterator[None]:
    """Let these processes run inside the block."""
    for one in ids:
        os.kill(one, signal.SIGCONT)
    try:
        yield
    finally:
        for one in ids:
            os.kill(one, signal.SIGSTOP)


def ratios(turns: dict[str, list[list[float]]], beside: str, alone: str) -> list[float]:
    """The mean time of a decode in each turn beside the others, relative to the turn alone next to it."""
    pairs = zip(turns[beside], turns[alone], strict=True)
    return [statistics.mean(these) / statistics.mean(those) for these, those in pairs]


def report(entrant: Entrant) -> str:
    """Of each number of busy processes: mean time, the longest, the ratio and its standard error."""
    alone, *_ = entrant.turns
    told = []
    for beside, turns in entrant.turns.items():
        found = ratios(entrant.turns, beside, alone)
        # Of a median: 1.25 times that of a mean.
        error = 1.25 * statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else 0.0
        mean = statistics.median(map(statistics.mean, turns))
        told.append(
            f"beside {beside}: {mean:6.0f} ms (longest {max(map(max, turns)):6.0f}),"
            f" × {statistics.median(found):.2f} ± {error:.2f};"
        )
    return " ".join((f"{entrant.name:20}", *told))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter", help="a name of the catalogue; its weights are random")
    parser.add_argument("--size", type=int, default=512, help="side of the picture in pixels")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--busy", type=int, nargs="+", default=[0, os.cpu_count() or 1], help="busy processes; first those of ×1"
    )
    parser.add_argument("--wait", nargs="+", default=list(WAITS), choices=WAITS)
    parser.add_argument("--seconds", type=float, default=1.5, help="of one turn")
    parser.add_argument("--turns", type=int, default=20, help="of each")
    parser.add_argument("--write", action="store_true", help="keep the record in benchmarks/records")
    arguments = parser.parse_args()

    entrants = [start("exact", wait, arguments) for wait in arguments.wait] + [
        start("diffusers", "default", arguments)
    ]
    made, *_ = [entrant.pipe.recv() for entrant in entrants]
    with stopped(max(arguments.busy)) as others:
        for turn in range(arguments.turns):
            # Each has its own order: who follows whom changes, too.
            first = turn % len(entrants)
            for entrant in entrants[first:] + entrants[:first]:
                for count in arguments.busy if turn % 2 else reversed(arguments.busy):
                    with continued(others[:count]):
                        entrant.decode(arguments.seconds, count)
    for entrant in entrants:
        entrant.turns.update({str(count): entrant.turns.pop(str(count)) for count in arguments.busy})
        print(report(entrant))
    if arguments.write:
        from hybridge.lab.harness import record

        asked = {name: value for name, value in vars(arguments).items() if name != "write"}
        path = RECORDS / f"beside-others-{arguments.model}-{arguments.size}.json"
        milliseconds = {entrant.name: entrant.turns for entrant in entrants}
        record.write(record.begin("beside_others", made, asked, milliseconds=milliseconds), path)
        print(path)


if __name__ == "__main__":
    main()
