"""An application on a real socket: uvicorn in the foreground, or in a thread for as long as it is needed."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Clients keep connections open between pictures, which take seconds to make.
_KEEP_ALIVE_S = 75

#: How long requests that were accepted may still take once the server is told to end.
_GRACE_S = 60


class _JsonErrorsProtocol(HttpToolsProtocol):
    """uvicorn's own, except that bytes which are not HTTP are answered in JSON like every other error."""

    def send_400_response(self, msg: str) -> None:
        body = json.dumps({"error": msg, "code": "http-400"}).encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()


def configure(app: ASGIApp, *, log_level: str = "warning") -> uvicorn.Config:
    """uvicorn's configuration: no version banner, and our own log lines instead of its access log."""
    return uvicorn.Config(
        app,
        http=_JsonErrorsProtocol,
        ws="none",
        log_level=log_level,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GRACE_S,
    )


def bind(host: str, port: int) -> socket.socket:
    """A socket with its address, not listening yet; port 0 takes a free one.

    Raises:
        OSError: when the address is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def address_of(listener: socket.socket) -> str:
    """``http://host:port`` under which a bound socket is reached from this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - an address to call, not to bind
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: ASGIApp, listener: socket.socket, *, log_level: str = "info") -> None:
    """Serves until SIGINT or SIGTERM."""
    uvicorn.Server(configure(app, log_level=log_level)).run(sockets=[listener])


class _Announcing(uvicorn.Server):
    """A server that says when it has started, instead of being asked again and again."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.has_started = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.has_started.set()


@contextmanager
def running(app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serves from a thread inside the ``with`` block, which gets the address."""
    with bind(host, port) as listener:
        server = _Announcing(configure(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="hybridge-server")
        thread.start()
        try:
            server.has_started.wait()
            yield address_of(listener)
        finally:
            server.should_exit = True
            thread.join()
