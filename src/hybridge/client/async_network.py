"""Asynchronous HTTP over sockets: as :mod:`.network`, with cancel scopes instead of timeouts."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import anyio
import anyio.lowlevel
import httpcore
import httpx

from .network import HEAD_BEGINS, HEAD_ENDS, LIMITS, closed, core_request, read_timeout, told_of, translated
from .proxies import Proxies, Proxy
from .tls import Trust

#: The proxy and the context of a connection.
_Way = tuple[Proxy | None, ssl.SSLContext]


class AsyncNetwork(httpx.AsyncBaseTransport):
    """:class:`Network`, awaited.  Each event loop has connections of its own, because none can be used in two."""

    def __init__(self, proxies: Proxies, trust: Trust) -> None:
        self._proxies = proxies
        self._trust = trust
        self._pools: WeakKeyDictionary[Any, dict[_Way, httpcore.AsyncConnectionPool]] = WeakKeyDictionary()
        self._is_closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return the response before its body has arrived."""
        pool = self._pool(request.url)
        ends_at = request.extensions.get("ends_at")
        with translated(), _ending(ends_at) as scope:
            trace = _head_trace(scope, read_timeout(request))
            response = await pool.handle_async_request(core_request(request, trace))
        return httpx.Response(response.status, headers=response.headers, stream=_AsyncBody(response, ends_at))

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        self._is_closed = True
        for pool in self._loop_pools().values():
            await pool.aclose()

    def _loop_pools(self) -> dict[_Way, httpcore.AsyncConnectionPool]:
        token: Any = anyio.lowlevel.current_token()
        return self._pools.setdefault(getattr(token, "native_token", token), {})

    def _pool(self, url: httpx.URL) -> httpcore.AsyncConnectionPool:
        if self._is_closed:
            raise closed()
        way, pools = (self._proxies.of(url), self._trust.of(url)), self._loop_pools()
        if way not in pools:
            pools[way] = self._new_pool(*way)
        return pools[way]

    def _new_pool(self, proxy: Proxy | None, context: ssl.SSLContext) -> httpcore.AsyncConnectionPool:
        options: dict[str, Any] = {**LIMITS, "ssl_context": context}
        if proxy is None:
            return httpcore.AsyncConnectionPool(**options)
        options["network_backend"] = _AsyncProxyBackend(proxy)
        if proxy.is_socks:
            return httpcore.AsyncSOCKSProxy(str(proxy.url), proxy.auth, **options)
        if proxy.url.scheme == "https":
            options["proxy_ssl_context"] = httpx.create_ssl_context()
        return httpcore.AsyncHTTPProxy(str(proxy.url), proxy.auth, **options)


class _AsyncProxyBackend(httpcore.AnyIOBackend):
    """Connects to a proxy; a failure is told as the proxy's."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    async def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        with told_of(self._proxy):
            return await super().connect_tcp(*args, **kwargs)


class _AsyncBody(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response, ends_at: float | None) -> None:
        self._response = response
        self._ends_at = ends_at

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = self._response.aiter_stream()
        while True:
            with translated(), _ending(self._ends_at):
                part = await anext(parts, None)
            if part is None:
                return
            yield part

    async def aclose(self) -> None:
        await self._response.aclose()


@contextlib.contextmanager
def _ending(ends_at: float | None) -> Iterator[anyio.CancelScope]:
    """Cancel the block when the time is over.

    Raises:
        httpcore.ReadTimeout: when the time is over.
    """
    left_s = None if ends_at is None else ends_at - time.monotonic()
    with anyio.move_on_after(left_s) as scope:
        yield scope
    if scope.cancelled_caught:
        raise httpcore.ReadTimeout("the time for this call is over")


def _head_trace(scope: anyio.CancelScope, timeout: float | None) -> Callable[..., Awaitable[None]]:
    """:meth:`TimeLimit.trace`, awaited."""
    ends_at = scope.deadline

    async def trace(event: str, info: object) -> None:
        if timeout is not None and event.endswith(HEAD_BEGINS):
            scope.deadline = min(ends_at, anyio.current_time() + timeout)
        elif event.endswith(HEAD_ENDS):
            scope.deadline = ends_at

    return trace
