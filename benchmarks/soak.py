"""Growth of memory under many clients, with models that do not fit together and requests of every kind.

::

    python benchmarks/soak.py --minutes 10

The server runs in a process of its own, with room for two of its models.  Clients hang up at random, ask for work
later, and send invalid requests.  The first minute fills caches; growth is counted from its end, as the resident
memory that the kernel reports.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import IO

import httpx

from hybridge.engine import Engine, resolve

#: Latents on a side.
_SIDES = (8, 16, 32)
#: Of what the largest of them takes while it runs, so little that models have to leave for it again and again.
_PLAN_BYTES = 20 * 2**20

_WARM_UP_S = 60
#: Models come and go, and a tenth of the memory with them: only many samples have a mean that says something.
_SAMPLE_S = 1
_TOLD_S = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--warm-up-s", type=float, default=_WARM_UP_S)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--models", nargs="+", help="at least three; copies of the starter otherwise")
    given = parser.parse_args()
    starter = resolve("starter")
    models = given.models or [f"copy-{number}={starter.source}" for number in range(3)]
    specs = [resolve(model) for model in models]
    sizes = sorted(Engine.expected_bytes(spec) for spec in specs)
    memory = sizes[-1] + sizes[-2] + _PLAN_BYTES

    with tempfile.TemporaryDirectory() as spool:
        counts: Counter[str] = Counter()
        server, address = _serve(models, memory, Path(spool), counts)
        try:
            _soak(server, address, [spec.name for spec in specs], given, counts)
        finally:
            server.terminate()
            server.wait()


def _serve(models: list[str], memory: int, spool: Path, counts: Counter[str]) -> tuple[subprocess.Popen[str], str]:
    options = ["--port", "0", "--memory", str(memory), "--spool", str(spool), "--job-ttl-s", "5"]
    command = [sys.executable, "-c", "from hybridge.cli import main; main()", "serve", *models, *options]
    server = subprocess.Popen(  # noqa: S603 - our own command
        [*command, "--log-level", "info"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert server.stdout is not None  # noqa: S101 - it was asked for
    for line in server.stdout:
        if found := re.search(r"serving on (http://\S+)", line):
            threading.Thread(target=_count_lines, args=(server.stdout, counts), daemon=True).start()
            return server, found[1]
    raise SystemExit("the server did not start")


def _count_lines(log: IO[str], counts: Counter[str]) -> None:
    for line in log:
        counts["evictions"] += "leaves, to make room" in line
        counts["errors in the log"] += " ERROR " in line


def _soak(
    server: subprocess.Popen[str],
    address: str,
    models: list[str],
    given: argparse.Namespace,
    counts: Counter[str],
) -> None:
    end = threading.Event()
    clients = [
        threading.Thread(target=_client, args=(address, models, random.Random(seed), counts, end))  # noqa: S311
        for seed in range(given.clients)
    ]
    for client in clients:
        client.start()
    begun, samples = time.monotonic(), []
    while (elapsed := time.monotonic() - begun) < 60 * given.minutes:
        end.wait(_SAMPLE_S)
        samples.append((elapsed, _resident_bytes(server.pid)))
        if elapsed % _TOLD_S < _SAMPLE_S:
            print(f"{elapsed:6.0f} s  {samples[-1][1] / 2**20:7.1f} MiB  {dict(counts)}", flush=True)
    end.set()
    for client in clients:
        client.join()
    for row in httpx.get(f"{address}/v1/models", timeout=60).json()["models"]:
        print(row["name"], row["state"], row["weights_bytes"])
    late = [resident for at, resident in samples if at >= given.warm_up_s]
    if len(late) >= 2:
        half = max(1, len(late) // 4)
        first, last = sum(late[:half]) / half, sum(late[-half:]) / half
        grown = f"{first / 2**20:.1f} → {last / 2**20:.1f} MiB ({last / first - 1:+.1%})"
        print(f"after {given.warm_up_s:.0f} s: {grown}")


def _client(
    address: str, models: list[str], rng: random.Random, counts: Counter[str], end: threading.Event
) -> None:
    with httpx.Client(timeout=120) as client:
        while not end.is_set():
            model, side = rng.choice(models), rng.choice(_SIDES)
            query = {"shape": [1, 4, side, side], "dtype": "float32"}
            headers = {"content-type": "tensor/binary"}
            what = rng.choice(["now"] * 8 + ["later", "nonsense", "hang up", "encode"])
            body = rng.randbytes(16 * side * side) if what == "nonsense" else bytes(16 * side * side)
            url, timeout = f"{address}/v1/{model}/decode", 120.0
            if what == "encode":
                url = f"{address}/v1/{model}/encode"
                query, body = {"shape": [64, 64, 3], "dtype": "uint8"}, rng.randbytes(64 * 64 * 3)
            elif what == "later":
                headers["prefer"] = "respond-async"
            elif what == "hang up":
                timeout = rng.uniform(0.001, 0.3)
            try:
                answer = client.post(url, params=query, content=body, headers=headers, timeout=timeout)
                counts[f"{what} {answer.status_code}"] += 1
            except httpx.TimeoutException:
                counts[f"{what} left"] += 1


def _resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])  # type: ignore[index]


if __name__ == "__main__":
    main()
