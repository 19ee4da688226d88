"""Runs an application with uvicorn: in the foreground, or in a thread inside a ``with`` block."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import HANDLED_SIGNALS

from ..middleware.draining import Drain
from .connection import Connection
from .connection_limits import ConnectionLimits, Connections
from .tls_handshake import TlsHandshake, accept

#: Clients keep connections open between pictures, which take seconds to make.
_KEEP_ALIVE_S = 75

#: Seconds for what is left once all work is done: answers that are still being read, and streams of events.
_CLOSING_S = 5

#: Connections that wait until the process accepts them.
BACKLOG = 2048

#: Open files besides connections: weights, the spool, libraries.
_OTHER_FILES = 256


@dataclass(frozen=True, slots=True)
class ListenOptions:
    """Options of the listening sockets.

    Attributes:
        limits: Limits on connections.
        grace_s: Seconds for accepted work after the signal to shut down.
        tls_cert: File with the certificate chain in PEM; without it the server speaks plain HTTP.
        tls_key: File with its key; may be the same one.
        trusted_proxies: Addresses and networks of peers whose X-Forwarded-For and X-Forwarded-Proto are believed.
    """

    limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    grace_s: float = 60
    tls_cert: Path | None = None
    tls_key: Path | None = None
    trusted_proxies: tuple[str, ...] = ()


def configure(app: ASGIApp, listening: ListenOptions, *, log_level: str = "warning") -> uvicorn.Config:
    """Return uvicorn's configuration: no version banner, and our own log lines instead of its access log."""
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_config=None,
        log_level=log_level,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_CLOSING_S,
        backlog=BACKLOG,
        proxy_headers=bool(listening.trusted_proxies),
        forwarded_allow_ips=[form for proxy in listening.trusted_proxies for form in _forms_of(proxy)],
    )


def _forms_of(proxy: str) -> list[str]:
    """Return the forms in which sockets show a network: a socket for both versions of IP shows IPv4 inside IPv6."""
    network = ipaddress.ip_network(proxy, strict=False)
    if network.version == 6:
        return [str(network)]
    return [str(network), f"::ffff:{network.network_address}/{96 + network.prefixlen}"]


def bind(host: str, port: int) -> socket.socket:
    """Return a bound socket, not listening yet; port 0 takes a free port.

    Raises:
        OSError: when the address is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        # Systems differ in whether IPv4 comes in at :: as well.
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def address_of(listener: socket.socket, *, scheme: str = "http") -> str:
    """Return the URL under which this machine reaches a bound socket."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - an address to call, not to bind
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def raise_file_limit(wanted_connections: int) -> int:
    """Raise the limit on open files for so many connections; return how many connections are possible."""
    try:
        import resource
    except ModuleNotFoundError:  # not POSIX
        return wanted_connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted_connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted_connections if soft == resource.RLIM_INFINITY else min(wanted_connections, soft - _OTHER_FILES)


class Server(uvicorn.Server):
    """uvicorn's server with another shutdown.

    uvicorn closes the listening socket at once and only then waits for its requests, so new connections are refused
    meanwhile, and a proxy marks the machine as broken.  Here the signal stops admission
    (:mod:`..middleware.draining`), the socket stays open and answers 503 while accepted work is finished, and
    uvicorn's own end begins when nothing is left that it could cut off.
    """

    server_state: Connections

    def __init__(self, config: uvicorn.Config, listening: ListenOptions, drain: Drain) -> None:
        super().__init__(config)
        self.server_state = Connections(listening.limits)
        self.has_started = threading.Event()
        self._grace_s = listening.grace_s
        self._drain = drain
        self._context: ssl.SSLContext | None = None
        if listening.tls_cert is not None:
            self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._context.load_cert_chain(listening.tls_cert, listening.tls_key)
        self._accepting: list[asyncio.Task[None]] = []

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to :meth:`startup`, and raise none again: a shutdown by a signal is a success."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            if self._context is None:
                await super().startup(sockets)
            else:
                await super().startup([])
                for listener in sockets or []:
                    listener.listen(BACKLOG)
                    listener.setblocking(False)
                    self._accepting.append(asyncio.create_task(accept(listener, self._shake_hands)))
            if threading.current_thread() is threading.main_thread():
                for number in HANDLED_SIGNALS:
                    self._handle(number)
        finally:
            self.has_started.set()

    def _shake_hands(self, peer: socket.socket) -> None:
        def make_connection() -> Connection:
            return Connection(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

        assert self._context is not None  # noqa: S101 - or nobody would call
        TlsHandshake(peer, self._context, self.server_state, make_connection)

    def _handle(self, number: int) -> None:
        try:
            asyncio.get_running_loop().add_signal_handler(number, self.handle_exit, number, None)
        except NotImplementedError:  # Windows' loops
            signal.signal(number, self.handle_exit)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the shutdown at the first signal, and end at once at the second."""
        if self.should_exit:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self._drain.begin(self._grace_s)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._drain.finish(self._grace_s)
        for accepting in self._accepting:
            accepting.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        await super().shutdown(sockets)


def run(
    app: ASGIApp, listeners: list[socket.socket], listening: ListenOptions, drain: Drain, *, log_level: str = "info"
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        app: The application.
        listeners: Sockets from :func:`bind`.
        listening: The options.
        drain: The drain of the application.
        log_level: For uvicorn's messages.
    """
    Server(configure(app, listening, log_level=log_level), listening, drain).run(sockets=listeners)


@contextmanager
def running(
    app: ASGIApp,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    listening: ListenOptions | None = None,
    drain: Drain | None = None,
) -> Iterator[str]:
    """Serve in a thread inside the ``with`` block, which gets the URL."""
    listening = listening or ListenOptions()
    with bind(host, port) as listener:
        server = Server(configure(app, listening), listening, drain or Drain())
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="hybridge-server")
        thread.start()
        try:
            server.has_started.wait()
            yield address_of(listener, scheme="https" if listening.tls_cert else "http")
        finally:
            server.should_exit = True
            thread.join()
