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

import hybridge

Served = tuple["subprocess.Popen[str]", str, Callable[[], list[str]]]


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
    command = [sys.executable, "-c", code, "serve", "--port", "0"]
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
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
