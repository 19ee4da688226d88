"""The async driver: it awaits the I/O of a flow."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import anyio
import anyio.to_thread
import httpx

from ..errors import BadAnswer
from ..protocol import Request
from .async_network import AsyncNetwork
from .calls import Calls, decode_request
from .fallback import Fallback
from .flow import flows_to
from .flow_types import Call, Compute, Emit, Flow, More, Opened, Outcome, Progress, Step
from .load_balancer import Breaker
from .network import network_to
from .preview import Picture, Preview, preview_flow
from .proxies import ProxyChoice
from .queue import AsyncCallQueue, Finished, Order, Recipe
from .reply import Reply
from .retry import DEFAULT_RETRY, Retry
from .tls import Verify
from .transport import ANSWER_TIMEOUT_S, Exchange, is_parted, timeout_of

T = TypeVar("T")


class AsyncClient(Calls):
    """:class:`Client`, awaited.  Arguments and results are the same.

    ::

        async with AsyncClient("http://gpu-box:8000") as client:
            picture = await client.decode(latents, model="sd-v1", scaling_factor=0.18215)
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | httpx.Timeout | None = ANSWER_TIMEOUT_S,
        deadline_s: float | None = None,
        retries: Retry = DEFAULT_RETRY,
        breaker: Breaker | None = None,
        fallback: Fallback | None = None,
        proxy: ProxyChoice = None,
        verify: Verify = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._flows = flows_to(base_url, api_key, headers, retries, breaker, timeout_of(timeout).read, fallback)
        self._deadline_s = deadline_s
        self._timeout = timeout_of(timeout)
        self._headers = dict(headers or {})
        urls = [server.address.url for server in self._flows.fleet.servers]
        self._transport = transport or network_to(urls, AsyncNetwork, proxy, verify)
        self._sleep = sleep

    async def send(
        self,
        request: Request,
        *,
        model: str | None = None,
        endpoint: str | None = None,
        deadline_s: float | None = None,
        progress: Progress | None = None,
    ) -> Reply:
        """As :meth:`Client.send`."""
        return await self._run(self._flows.send(request, model, endpoint, self._terms(deadline_s, progress)))

    def decode_with_preview(
        self,
        latents: Any,
        *,
        model: str | None = None,
        deadline_s: float | None = None,
        progress: Progress | None = None,
        **decode_arguments: Any,
    ) -> AsyncIterator[Preview | Picture]:
        """As :meth:`Client.decode_with_preview`, for ``async for``."""
        request, kind = decode_request(latents, preview=True, **decode_arguments)
        return self._stream(preview_flow(self._flows, request, model, kind, self._terms(deadline_s, progress)))

    def decode_queue(
        self,
        *,
        limit: int = 4,
        order: Order = "put",
        callback: Callable[[Finished], None] | None = None,
        progress: bool | Callable[..., Any] = False,
        total: int | None = None,
        stop_on_error: bool = False,
        **decode_arguments: Any,
    ) -> AsyncCallQueue:
        """As :meth:`Client.decode_queue`, for ``async with``; the callback runs on the event loop."""
        recipe = Recipe(
            self._begin_decode,
            self.decode,
            decode_arguments,
            limit,
            order,
            callback,
            progress,
            total,
            stop_on_error,
        )
        return AsyncCallQueue(recipe, self._run)

    def encode_queue(
        self,
        *,
        limit: int = 4,
        order: Order = "put",
        callback: Callable[[Finished], None] | None = None,
        progress: bool | Callable[..., Any] = False,
        total: int | None = None,
        stop_on_error: bool = False,
        **encode_arguments: Any,
    ) -> AsyncCallQueue:
        """As :meth:`decode_queue`, from pictures to latents."""
        recipe = Recipe(
            self._begin_encode,
            self.encode,
            encode_arguments,
            limit,
            order,
            callback,
            progress,
            total,
            stop_on_error,
        )
        return AsyncCallQueue(recipe, self._run)

    async def models(self) -> list[dict[str, Any]]:
        """As :meth:`Client.models`."""
        return await self._run(self._flows.models(self._terms(None, None)))

    async def health(self) -> Any:
        """As :meth:`Client.health`."""
        return await self._run(self._flows.health(self._terms(None, None)))

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._transport.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def _run(self, flow: Flow[T]) -> T:
        with contextlib.closing(flow):
            try:
                step = next(flow)
                while True:
                    step = flow.send(await self._take(step))
            except StopIteration as end:
                return cast(T, end.value)

    async def _stream(self, flow: Flow[Any]) -> AsyncIterator[Any]:
        async with contextlib.AsyncExitStack() as opened:
            opened.callback(flow.close)
            chunks: AsyncIterator[bytes] = _nothing()
            outcome: Any = None
            while True:
                try:
                    step = flow.send(outcome)
                except StopIteration:
                    return
                outcome = None
                if isinstance(step, Emit):
                    yield step.value
                elif isinstance(step, More):
                    try:
                        outcome = await anext(chunks, b"")
                    except httpx.RequestError as error:
                        outcome = error
                elif isinstance(step, Call) and step.is_parted:
                    outcome, chunks = await self._open(step, opened)
                else:
                    outcome = await self._take(step)

    async def _take(self, step: Step) -> Any:
        if isinstance(step, Compute):
            return await anyio.to_thread.run_sync(step.work, step.request)
        if not isinstance(step, Call):
            raise AssertionError(f"{step} belongs into a stream")
        async with contextlib.AsyncExitStack() as opened:
            return (await self._open(step, opened))[0]

    async def _open(self, call: Call, opened: contextlib.AsyncExitStack) -> tuple[Outcome, AsyncIterator[bytes]]:
        if call.wait_s:
            await self._sleep(call.wait_s)
        exchange = Exchange(call, self._timeout, self._headers)
        try:
            response = await self._transport.handle_async_request(exchange.request(is_async=True))
            opened.push_async_callback(response.aclose)
            exchange.begin(response)
            if call.is_parted and is_parted(response):
                return Opened(dict(response.headers)), _in_time(response, exchange)
            async for part in cast(httpx.AsyncByteStream, response.stream):
                if not exchange.take(part):
                    break
        except (httpx.RequestError, BadAnswer) as error:
            return error, _nothing()
        return exchange.arrived(), _nothing()


async def _in_time(response: httpx.Response, exchange: Exchange) -> AsyncIterator[bytes]:
    async for part in cast(httpx.AsyncByteStream, response.stream):
        yield part
        exchange.check_time()


async def _nothing() -> AsyncIterator[bytes]:
    for part in cast(tuple[bytes, ...], ()):
        yield part
