"""``hybridge serve`` as somebody starts it: a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from forks import Forked

import hybridge

Process = subprocess.Popen[str] | Forked
Served = tuple[Process, str, Callable[[], list[str]]]


@contextmanager
def serving_process(*arguments: object, before: str = "", **variables: str) -> Iterator[Served]:
    """The process, its address, and what it logged until it ended; killed at the end, if it still runs.

    Args:
        arguments: What follows ``hybridge serve --port 0``.
        before: Python that the process runs before the command.
        variables: Of its environment, besides those of this process.
    """
    source = str(Path(hybridge.__file__).parent.parent)
    environment = {
        **os.environ,
        "PYTHONPATH": source,
        "COLUMNS": "200",
        "NO_COLOR": "1",
        "PYTHONWARNINGS": "ignore",
        **variables,
    }
    code = f"{before}\nfrom hybridge.cli import main; main()"
    given = ["serve", "--port", "0", *map(str, arguments)]
    process: Process
    if any(name.startswith("HF_") for name in variables):  # which the hub's client reads when it is imported
        command, pipe = [sys.executable, "-c", code, *given], subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)
    else:
        process = Forked(code, *given, env=environment)
    lines: list[str] = []
    reading = threading.Thread(target=lambda: lines.extend(process.stderr))
    reading.start()

    def log() -> list[str]:
        reading.join()
        return lines

    try:
        for line in process.stdout:
            if (found := re.search(r"serving on (\S+)", line)) is not None:
                break
        else:
            raise AssertionError("".join(lines))
        yield process, found[1], log
    finally:
        process.kill()
        process.wait()
        reading.join()
        process.stdout.close()
        process.stderr.close()
