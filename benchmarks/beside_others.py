"""A decode alone and beside busy processes, by the number of OpenMP's threads and how they wait for each other.

torch's operators and the engine's kernels end at barriers, where GNU's OpenMP spins for a while before it sleeps.
On busy processors, a thread that spins takes time from the thread that it waits for.  How long it spins is read
from the environment when the library is loaded, so each setting has its own process.  More threads than processors
get more of the processors' time, and one of them can go on while another waits for its turn.

All processes are started first.  A process decodes alone and beside the others in turns that follow each other, so
a ratio compares measurements that are seconds apart, and the printed ratio is the median of these.  Linux decides
anew in each turn which thread gets which processor, so many short turns tell more than a few long ones.

Each busy process stays on its own processor and is stopped, not ended, for the turns without it.  Linux shares the
processors among sessions first, where it groups processes by session: ``--apart`` gives the busy ones a session of
their own, as a service or another terminal has; without it, all processes belong to one.
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

_PROCESSORS = sorted(os.sched_getaffinity(0))

#: Without the second variable, MKL and with it torch take no more threads than there are processors.
_TWICE = {"OMP_NUM_THREADS": str(2 * len(_PROCESSORS)), "MKL_DYNAMIC": "false"}

#: OpenMP's variables for each way to wait.
WAITS = {
    "default": {},
    "spin 100": {"GOMP_SPINCOUNT": "100"},
    "spin 1000": {"GOMP_SPINCOUNT": "1000"},
    "spin 10000": {"GOMP_SPINCOUNT": "10000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    # With more threads than processors, GNU's OpenMP spins 100 times at most; with the active policy, 1000 times.
    "twice the threads, spin 1000": {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "1000", **_TWICE},
    "twice the threads, passive": {"OMP_WAIT_POLICY": "passive", **_TWICE},
}

_VARIABLES = {variable for variables in WAITS.values() for variable in variables}


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


def compute_forever(processors: list[int], pipe: Connection, is_apart: bool) -> None:
    """Start a process on each of these processors that computes without ever waiting; send their ids."""
    if is_apart:
        os.setsid()
    ids = []
    for processor in processors:
        ids.append(os.fork())
        if ids[-1] == 0:
            os.sched_setaffinity(0, {processor})
            while True:
                pass
    pipe.send(ids)
    signal.pause()


def start(who: str, wait: str, arguments: argparse.Namespace) -> Entrant:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=decode_on_request, args=(theirs, who, arguments.model, arguments.size, arguments.dtype), daemon=True
    )
    inherited = {name: os.environ.pop(name) for name in _VARIABLES if name in os.environ}
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
def stopped(most: int, is_apart: bool) -> Iterator[list[int]]:
    """Start so many busy processes, one on each processor in turn, and stop them; their ids."""
    context = multiprocessing.get_context("spawn")
    processors = [_PROCESSORS[index % len(_PROCESSORS)] for index in range(most)]
    ours, theirs = context.Pipe()
    parent = context.Process(target=compute_forever, args=(processors, theirs, is_apart), daemon=True)
    parent.start()
    ids = ours.recv()
    for one in ids:
        os.kill(one, signal.SIGSTOP)
    try:
        yield ids
    finally:
        for one in ids:
            os.kill(one, signal.SIGKILL)
        parent.kill()
        parent.join()


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


def report(entrant: Entrant, threads: int) -> str:
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
    return " ".join((f"{entrant.name:35}", f"{threads} threads;", *told))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter", help="a name of the catalogue; its weights are random")
    parser.add_argument("--size", type=int, default=512, help="side of the picture in pixels")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--busy", type=int, nargs="+", default=[0, os.cpu_count() or 1], help="busy processes; first those of ×1"
    )
    parser.add_argument("--apart", action="store_true", help="the busy processes have a session of their own")
    parser.add_argument("--wait", nargs="+", default=list(WAITS), choices=WAITS)
    parser.add_argument("--seconds", type=float, default=1.5, help="of one turn")
    parser.add_argument("--turns", type=int, default=20, help="of each")
    parser.add_argument("--write", action="store_true", help="keep the record in benchmarks/records")
    arguments = parser.parse_args()

    entrants = [start("exact", wait, arguments) for wait in arguments.wait] + [
        start("diffusers", "default", arguments)
    ]
    environments = [entrant.pipe.recv() for entrant in entrants]
    threads = {entrant.name: made["threads"] for entrant, made in zip(entrants, environments, strict=True)}
    with stopped(max(arguments.busy), arguments.apart) as others:
        for turn in range(arguments.turns):
            # Each has its own order: who follows whom changes, too.
            first = turn % len(entrants)
            for entrant in entrants[first:] + entrants[:first]:
                for count in arguments.busy if turn % 2 else reversed(arguments.busy):
                    with continued(others[:count]):
                        entrant.decode(arguments.seconds, count)
    for entrant in entrants:
        entrant.turns.update({str(count): entrant.turns.pop(str(count)) for count in arguments.busy})
        print(report(entrant, threads[entrant.name]))
    if arguments.write:
        from hybridge.lab.harness import record

        asked = {name: value for name, value in vars(arguments).items() if name != "write"}
        apart = "-apart" * arguments.apart
        path = RECORDS / f"beside-others-{arguments.model}-{arguments.size}{apart}.json"
        milliseconds = {entrant.name: entrant.turns for entrant in entrants}
        begun = record.begin("beside_others", environments[0], asked, threads=threads, milliseconds=milliseconds)
        record.write(begun, path)
        print(path)


if __name__ == "__main__":
    main()
