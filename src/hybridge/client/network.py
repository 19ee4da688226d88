"""HTTP over sockets: httpcore's connections, with every read and write bounded by the call's deadline.

httpx's own transports cannot do that: their timeouts apply to single reads, so a server that sends a byte now and
then is waited for without end.  Redirects are not followed, compression is not decoded, cookies are not kept.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import httpcore
import httpx

from ..errors import ClientError
from .address import Address
from .proxies import Proxies, Proxy, ProxyChoice
from .tls import Trust, Verify

#: httpx closes an idle connection after 5 s, less than the time to compute the next latents.
LIMITS: dict[str, Any] = {"max_connections": 100, "max_keepalive_connections": 20, "keepalive_expiry": 60.0}

#: A large body is written in pieces of this size, with a check of the time between them.
_WRITE_BYTES = 1 << 18

#: The endings of httpcore's names of two events.
HEAD_BEGINS = "receive_response_headers.started"
HEAD_ENDS = "receive_response_headers.complete"


class Abort:
    """Ends a call from another thread, when called, by closing its connection."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: list[httpcore.NetworkStream] = []
        self._is_set = False

    def __call__(self) -> None:
        with self._lock:
            self._is_set = True
            for stream in self._streams:
                stream.close()

    def watch(self, stream: httpcore.NetworkStream) -> None:
        """Close this connection, too.

        Raises:
            httpcore.ReadError: when the call has been ended.
        """
        with self._lock:
            if self._is_set:
                raise httpcore.ReadError("the call was given up")
            if stream not in self._streams:
                self._streams.append(stream)


class TimeLimit(threading.local):
    """The time until which this thread may wait: the call's end, and while a response's head arrives the head's.

    Attributes:
        abort: Ends the call that this thread makes; None if nothing does.
    """

    def __init__(self) -> None:
        self.ends_at: float | None = None
        self.head_ends_at: float | None = None
        self.abort: Abort | None = None

    @contextlib.contextmanager
    def until(self, ends_at: float | None, abort: Abort | None = None) -> Iterator[None]:
        """Set the call's end, in seconds of time.monotonic(), and what may end it before."""
        before, self.ends_at, self.abort = self.ends_at, ends_at, abort
        try:
            yield
        finally:
            self.ends_at, self.head_ends_at, self.abort = before, None, None

    def trace(self, timeout: float | None) -> Callable[..., None]:
        """Return httpcore's trace function, which bounds the whole head by the time of one read.

        Otherwise a server could send ``100 Continue`` for ever to a client without a deadline.
        """

        def trace(event: str, info: object) -> None:
            if timeout is not None and event.endswith(HEAD_BEGINS):
                self.head_ends_at = time.monotonic() + timeout
            elif event.endswith(HEAD_ENDS):
                self.head_ends_at = None

        return trace

    def left(self, timeout: float | None, expired: type[Exception]) -> float | None:
        """Return the shorter of ``timeout`` and the remaining time.

        Raises:
            expired: when no time is left.
        """
        ends = [end for end in (self.ends_at, self.head_ends_at) if end is not None]
        if not ends:
            return timeout
        left_s = min(ends) - time.monotonic()
        if left_s <= 0:
            raise expired("the time for this call is over")
        return left_s if timeout is None else min(timeout, left_s)


class _Stream(httpcore.NetworkStream):
    """A connection that respects the time limit."""

    def __init__(self, stream: httpcore.NetworkStream, limit: TimeLimit) -> None:
        self._stream = stream
        self._limit = limit
        self._owner = os.getpid()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._limit.abort is not None:
            self._limit.abort.watch(self)
        return self._stream.read(max_bytes, self._limit.left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self._limit.abort is not None:
            self._limit.abort.watch(self)
        view = memoryview(buffer)
        for start in range(0, len(view), _WRITE_BYTES):
            left_s = self._limit.left(timeout, httpcore.WriteTimeout)
            self._stream.write(bytes(view[start : start + _WRITE_BYTES]), left_s)

    def close(self) -> None:
        # A thread that waits for this socket does not notice a close, but it does notice a shutdown.
        # Not in a forked process: the connection belongs to its parent.
        with contextlib.suppress(OSError):
            if self._owner == os.getpid():
                # The plain socket's shutdown: that of TLS would remove the cipher that the waiting thread uses.
                socket.socket.shutdown(self._stream.get_extra_info("socket"), socket.SHUT_RDWR)
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left_s = self._limit.left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left_s), self._limit)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    """Connects to the addresses of a name, all together within the time limit."""

    def __init__(self, limit: TimeLimit) -> None:
        self._limit = limit
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        timeout = self._limit.left(timeout, httpcore.ConnectTimeout)
        started, failure = time.monotonic(), None
        for address in _addresses(host, port, timeout):
            left_s = None if timeout is None else timeout - (time.monotonic() - started)
            if left_s is not None and left_s <= 0:
                raise httpcore.ConnectTimeout("timed out")
            try:
                stream = self._sockets.connect_tcp(address, port, left_s, local_address, socket_options or ())
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _Stream(stream, self._limit)
        raise failure or httpcore.ConnectError("the name has no address")

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class _ProxyBackend(_Backend):
    """Connects to a proxy; a failure is told as the proxy's, not as that of the server behind it."""

    def __init__(self, limit: TimeLimit, proxy: Proxy) -> None:
        super().__init__(limit)
        self._proxy = proxy

    def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.NetworkStream:
        with told_of(self._proxy):
            return super().connect_tcp(*args, **kwargs)


@contextlib.contextmanager
def told_of(proxy: Proxy) -> Iterator[None]:
    """Convert the failure of a connection to a proxy to one that names it."""
    try:
        yield
    except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
        raise httpcore.ProxyError(f"{proxy.url} of {proxy.source}: {error}") from None


def _addresses(host: str, port: int, timeout: float | None) -> list[str]:
    """Return the addresses of a host.  The system's resolver has no timeout, so a separate thread waits for it.

    Raises:
        httpcore.ConnectError, httpcore.ConnectTimeout: as for a connection.
    """
    with contextlib.suppress(ValueError):
        return [str(ipaddress.ip_address(host))]
    found: list[str] = []
    failure: list[Exception] = []

    def look_up() -> None:
        try:
            found.extend(str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            failure.append(error)

    thread = threading.Thread(target=look_up, name="hybridge-resolver", daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise httpcore.ConnectTimeout("the name could not be looked up in time")
    if failure:
        raise httpcore.ConnectError(str(failure[0]))
    return list(dict.fromkeys(found))


class Network(httpx.BaseTransport):
    """The blocking transport.  It is safe to share between threads and with forked processes.

    A request's extension ``ends_at`` is the deadline of its call, on time.monotonic()'s clock; its extension
    ``abort`` an :class:`Abort` or None.

    Args:
        proxies: Chooses the proxy of a URL.
        trust: Verifies certificates.
    """

    def __init__(self, proxies: Proxies, trust: Trust) -> None:
        self._proxies = proxies
        self._trust = trust
        self._limit = TimeLimit()
        self._lock = threading.Lock()
        self._pools: dict[tuple[Proxy | None, ssl.SSLContext], httpcore.ConnectionPool] = {}
        self._inherited: list[Any] = []
        self._owner = os.getpid()
        self._is_closed = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return the response before its body has arrived."""
        pool = self._pool(request.url)
        trace = self._limit.trace(read_timeout(request))
        ends_at, abort = request.extensions.get("ends_at"), request.extensions.get("abort")
        with translated(), self._limit.until(ends_at, abort):
            response = pool.handle_request(core_request(request, trace))
        body = _Body(response, self._limit, ends_at, abort)
        return httpx.Response(response.status, headers=response.headers, stream=body)

    def close(self) -> None:
        """Close all connections; calls in progress fail."""
        with self._lock:
            pools, self._pools = list(self._pools.values()), {}
            self._is_closed = True
        for pool in pools:
            pool.close()

    def _pool(self, url: httpx.URL) -> httpcore.ConnectionPool:
        way = self._proxies.of(url), self._trust.of(url)
        if self._owner != os.getpid():
            # Two processes cannot use the parent's connections, and only the parent may close them.
            self._inherited.append(self._pools)
            self._lock, self._pools, self._owner = threading.Lock(), {}, os.getpid()
        with self._lock:
            if self._is_closed:
                raise closed()
            if way not in self._pools:
                self._pools[way] = self._new_pool(*way)
            return self._pools[way]

    def _new_pool(self, proxy: Proxy | None, context: ssl.SSLContext) -> httpcore.ConnectionPool:
        backend = _Backend(self._limit) if proxy is None else _ProxyBackend(self._limit, proxy)
        options: dict[str, Any] = {**LIMITS, "ssl_context": context, "network_backend": backend}
        if proxy is None:
            return httpcore.ConnectionPool(**options)
        if proxy.is_socks:
            return httpcore.SOCKSProxy(str(proxy.url), proxy.auth, **options)
        if proxy.url.scheme == "https":
            options["proxy_ssl_context"] = httpx.create_ssl_context()
        return httpcore.HTTPProxy(str(proxy.url), proxy.auth, **options)


N = TypeVar("N")


def network_to(
    servers: Sequence[Address], kind: Callable[[Proxies, Trust], N], proxy: ProxyChoice, verify: Verify
) -> N:
    """Return the transport to the given servers.

    Raises:
        ClientError: for an unusable proxy or certificates, if one of the servers needs them.
    """
    proxies = Proxies(proxy)
    taken = [proxies.of(server.url) for server in servers]
    is_needed = any(one and one.url.scheme == "https" for one in taken)
    return kind(proxies, Trust.to(servers, verify, is_needed=is_needed))


def closed() -> ClientError:
    """Return the error for a call of a closed client."""
    return ClientError("this client is closed", hint="a new one, or calls inside of its `with` block")


class _Body(httpx.SyncByteStream):
    def __init__(
        self, response: httpcore.Response, limit: TimeLimit, ends_at: float | None, abort: Abort | None
    ) -> None:
        self._response = response
        self._limit = limit
        self._ends_at, self._abort = ends_at, abort

    def __iter__(self) -> Iterator[bytes]:
        parts = self._response.iter_stream()
        while True:
            # Not around the yield: in between, this thread does other work than this call.
            with translated(), self._limit.until(self._ends_at, self._abort):
                part = next(parts, None)
            if part is None:
                return
            yield part

    def close(self) -> None:
        self._response.close()


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Convert httpcore's errors to httpx's, which have the same names."""
    try:
        yield
    except (
        httpcore.TimeoutException,
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.ProxyError,
        httpcore.UnsupportedProtocol,
    ) as error:
        kind = getattr(httpx, type(error).__name__, httpx.NetworkError)
        raise kind(str(error)) from None


def core_request(request: httpx.Request, trace: Callable[..., Any]) -> httpcore.Request:
    """Convert an httpx request to an httpcore request."""
    url = request.url
    return httpcore.Request(
        method=request.method,
        url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
        headers=request.headers.raw,
        content=request.stream,
        extensions={**request.extensions, "trace": trace},
    )


def read_timeout(request: httpx.Request) -> float | None:
    """Return the seconds for a single read, and for a response's whole head."""
    timeout: float | None = request.extensions.get("timeout", {}).get("read")
    return timeout
