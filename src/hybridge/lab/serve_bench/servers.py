"""Servers: one row and one function each for how it is started and what it is sent.

A server is a process of its own, in a group of its own, which is ended with whatever it started.  It is ready when
it has answered; what a foreign server says before that differs from one to the next.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO
from urllib.parse import urlencode

from ...client.address import Address
from ...errors import EngineFailure
from .cases import Kind, Load, ServeArguments
from .load_generator import OK, Bounds, PreparedRequest, closed
from .served_model import latents, packed

#: Seconds for a server to finish once it is told to end.
_GRACE_S = 10.0

#: What a process that is still starting answers: nobody listens, it is not ready, or it knows no such path yet, as
#: Ray says it.
_STARTING = ("ConnectionRefused", "ConnectionReset", "RemoteDisconnected", "503", "404 text/plain")

#: The server's own default; it is raised for larger pictures.
_LEAST_MAX_PIXELS = 2048 * 2048


@dataclass(frozen=True, slots=True)
class Server:
    """A row.

    Attributes:
        name: On the command line and in records; ``title`` is its name in tables.
        request: The request for pictures of a kind; takes the address, the kind and the arguments.
        command: Starts it on a port; None for what is no server.
    """

    name: str
    title: str
    request: Callable[[Address, Kind, ServeArguments], PreparedRequest] | None = None
    command: Callable[[int, Load, ServeArguments], list[str]] | None = None
    package: str | None = None

    def why_missing(self) -> str | None:
        """The reason why it cannot take part, or None."""
        if self.package is None or importlib.util.find_spec(self.package) is not None:
            return None
        return f"{self.package} is not installed"


def request_to_hybridge(address: Address, kind: Kind, arguments: ServeArguments) -> PreparedRequest:
    """A decode as any program would send it."""
    given = latents(kind.model, kind.size, arguments.seed)
    query = [("shape", side) for side in given.shape] + [("dtype", "float32"), ("do_scaling", "false")]
    headers = {"content-type": "tensor/binary", "accept": f"image/{arguments.picture_format}"}
    url = address.resolve(f"/v1/{kind.name}/decode", urlencode(query))
    return PreparedRequest(kind.title, str(url), headers | address.headers(), given.numpy().tobytes())


def _request_to_rival(address: Address, kind: Kind, arguments: ServeArguments) -> PreparedRequest:
    body = packed(kind.model, kind.size, arguments.seed)
    url = address.resolve(f"/{kind.name}")
    return PreparedRequest(kind.title, str(url), {"content-type": "application/octet-stream"}, body)


def _hybridge(port: int, load: Load, arguments: ServeArguments) -> list[str]:
    pixels = max(_LEAST_MAX_PIXELS, *(kind.size**2 for kind in load.kinds))
    options = ["--host", "127.0.0.1", "--port", str(port), "--max-pixels", str(pixels), "--log-level", "warning"]
    main = "from hybridge.cli import main; main()"
    return [sys.executable, "-c", main, "serve", *_models(load), "--preload", *options]


def _rival(name: str, port: int, load: Load, arguments: ServeArguments) -> list[str]:
    models = [[model.partition("=")[0], model] for model in _models(load)]
    job = {"port": port, "models": models, "format": arguments.picture_format}
    return [sys.executable, "-m", "hybridge.lab.serve_bench.competitors", name, json.dumps(job)]


def _models(load: Load) -> list[str]:
    return list(dict.fromkeys(kind.model for kind in load.kinds))


_ROWS = (
    Server("engine", "the engine alone"),
    Server("hybridge", "hybridge", request_to_hybridge, _hybridge),
    Server("litserve", "LitServe, diffusers' decode", _request_to_rival, partial(_rival, "litserve"), "litserve"),
    Server("ray", "Ray Serve, diffusers' decode", _request_to_rival, partial(_rival, "ray"), "ray"),
)

#: By name, in the order in which they take turns.
SERVERS: dict[str, Server] = {row.name: row for row in _ROWS}


@contextmanager
def started(server: Server, load: Load, arguments: ServeArguments) -> Iterator[list[PreparedRequest]]:
    """Runs a server inside the ``with`` block, which gets a request for each kind; each was answered once.

    Raises:
        EngineFailure: when it ends or does not answer, with the last that it said.
    """
    if server.command is None or server.request is None:
        raise EngineFailure("not a server", saw=server.name)
    port = _free_port()
    address = Address.parse(f"http://127.0.0.1:{port}")
    requests = [server.request(address, kind, arguments) for kind in load.kinds]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter
            server.command(port, load, arguments),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            for request in requests:
                outcome = _first_outcome(process, request, arguments.limit_s)
                if outcome != OK:
                    raise EngineFailure(f"{server.title} did not answer", saw=f"{outcome}; {_last_line(said)}")
            yield requests
        finally:
            _end(process)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def first_outcome(request: PreparedRequest, limit_s: float) -> str:
    """What becomes of one request, which also warms up what answers it."""
    (sample,) = closed([request], Bounds(None, 1, limit_s))
    return sample.outcome


def _first_outcome(process: subprocess.Popen[bytes], request: PreparedRequest, limit_s: float) -> str:
    """What becomes of one request, which is sent again for as long as the server starts."""
    until = time.monotonic() + limit_s
    while True:
        outcome = first_outcome(request, limit_s)
        if not outcome.startswith(_STARTING) or time.monotonic() > until:
            return outcome
        if process.poll() is not None:
            return f"ended with status {process.returncode}"


def _last_line(said: IO[str]) -> str:
    said.seek(0)
    lines = [line.strip() for line in said if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Tells a server to end, waits a little, and ends by force whatever is left of its group."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):  # it had its time
        process.wait(_GRACE_S)
    with contextlib.suppress(ProcessLookupError):  # nothing is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
