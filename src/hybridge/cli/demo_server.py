"""The server of ``hybridge demo``: ``hybridge serve`` in a process of its own, and what it logs of each request."""

from __future__ import annotations

import json
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..errors import ServerUnreachable

#: Seconds until the log has the line of a request that is answered.
_LINE_S = 30


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of the bodies of requests and of their answers."""

    up: int = 0
    down: int = 0


class DemoServer:
    """A running server.

    Attributes:
        address: Its URL.
    """

    def __init__(self, address: str, lines: queue.Queue[str]) -> None:
        self.address = address
        self._lines = lines

    def traffic(self, task: str) -> Traffic:
        """Of the next request that asked for this task; earlier ones for other tasks are passed over."""
        while True:
            try:
                line = self._lines.get(timeout=_LINE_S)
            except queue.Empty:
                raise ServerUnreachable("the server's log does not name the request", saw=f"no {task}") from None
            record = json.loads(line) if line.startswith("{") else {}
            if record.get("task") == task:
                return Traffic(record["received_bytes"], record["sent_bytes"])


@contextmanager
def demo_server(model: str, port: int) -> Iterator[DemoServer]:
    """Serve a model inside the ``with`` block.

    Raises:
        ServerUnreachable: when the server does not start, with the last line that it said.
    """
    code = "import sys; from hybridge.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", model, "--port", str(port), "--log-format", "json"]
    lines: queue.Queue[str] = queue.Queue()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:  # noqa: S603
        reading = threading.Thread(target=_read, args=(process, lines), daemon=True)
        reading.start()
        try:
            yield DemoServer(_address(lines), lines)
        finally:
            process.terminate()
            reading.join()  # it ends with the process; what it reads from is closed after this


def _read(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    for line in process.stdout or ():
        lines.put(line)
    lines.put("")


def _address(lines: queue.Queue[str]) -> str:
    last = "nothing"
    while True:
        line = lines.get()  # an empty one when the process has ended
        if not line:
            raise ServerUnreachable("the server did not start", saw=last)
        if found := re.search(r"serving on (http://\S+)", line):
            return found[1]
        last = line.strip() or last
