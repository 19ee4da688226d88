"""The async client, which awaits the I/O of flows."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

import anyio
import anyio.to_thread
import httpx

from ..errors import BadAnswer
from ..protocol import Json, Output, Request, WireTensor
from .async_network import AsyncNetwork
from .call_types import DecodeOptions, DecodeQueueOptions, EncodeQueueOptions, TensorOutput
from .calls import Calls
from .conversion import Kind
from .fallback import Fallback
from .flow_setup import flows_to
from .flow_types import Call, Compute, Emit, Flow, More, Opened, Outcome, Progress, Settled, Step
from .hedging import race_async
from .load_balancer import Breaker
from .network import network_to
from .preview import Picture, Preview, preview_flow
from .prompts import Embeddings
from .proxies import ProxyChoice
from .queue import AsyncCallQueue, Finished, Order, Recipe
from .reply import Reply
from .retry import DEFAULT_RETRY, Retry
from .tls import Verify
from .transport import ANSWER_TIMEOUT_S, Exchange, is_opened, timeout_of
from .vae_requests import decode_request
from .videos import AsyncVideoCalls

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Unpack

    from .call_types import Decoded, Encodable, Latents, NumpyArray, Pictures, Tensor, TorchTensor

T = TypeVar("T")


class AsyncClient(
    Calls[
        "Coroutine[Any, Any, Pictures]",
        Coroutine[Any, Any, bytes],
        "Coroutine[Any, Any, TorchTensor]",
        "Coroutine[Any, Any, NumpyArray]",
        Coroutine[Any, Any, WireTensor],
        Coroutine[Any, Any, Embeddings],
    ],
    AsyncVideoCalls,
):
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
        hedge_after_s: float | None = None,
        fallback: Fallback | None = None,
        proxy: ProxyChoice = None,
        verify: Verify = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._flows = flows_to(
            base_url, api_key, headers, retries, breaker, timeout_of(timeout).read, fallback, hedge_after_s
        )
        self._deadline_s = deadline_s
        self._timeout = timeout_of(timeout)
        self._headers = dict(headers or {})
        servers = [server.address for server in self._flows.fleet.servers]
        self._transport = transport or network_to(servers, AsyncNetwork, proxy, verify)
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

    @overload
    def decode_with_preview(
        self, latents: Latents, *, output: Literal["picture"] = "picture", **options: Unpack[DecodeOptions]
    ) -> AsyncIterator[Preview | Picture[Image]]: ...
    @overload
    def decode_with_preview(
        self, latents: TorchTensor, *, output: TensorOutput, **options: Unpack[DecodeOptions]
    ) -> AsyncIterator[Preview | Picture[TorchTensor]]: ...
    @overload
    def decode_with_preview(
        self, latents: NumpyArray, *, output: TensorOutput, **options: Unpack[DecodeOptions]
    ) -> AsyncIterator[Preview | Picture[NumpyArray]]: ...
    @overload
    def decode_with_preview(
        self, latents: WireTensor, *, output: TensorOutput, **options: Unpack[DecodeOptions]
    ) -> AsyncIterator[Preview | Picture[WireTensor]]: ...
    @overload
    def decode_with_preview(
        self, latents: Latents, *, output: Output, **options: Unpack[DecodeOptions]
    ) -> AsyncIterator[Preview | Picture[Image | bytes | Tensor]]: ...
    def decode_with_preview(
        self,
        latents: Any,
        *,
        model: str | None = None,
        deadline_s: float | None = None,
        progress: Progress | None = None,
        **decode_arguments: Any,
    ) -> AsyncIterator[Preview | Picture[Any]]:
        """As :meth:`Client.decode_with_preview`, for ``async for``."""
        request, kind, model = decode_request(latents, model=model, preview=True, **decode_arguments)
        return self._stream(preview_flow(self._flows, request, model, kind, self._terms(deadline_s, progress)))

    @overload
    def decode_queue(
        self,
        *,
        output: Literal["picture"] = "picture",
        callback: Callable[[Finished[Pictures]], None] | None = None,
        **options: Unpack[DecodeQueueOptions],
    ) -> AsyncCallQueue[Latents, Pictures]: ...
    @overload
    def decode_queue(
        self,
        *,
        output: Literal["video"],
        callback: Callable[[Finished[bytes]], None] | None = None,
        **options: Unpack[DecodeQueueOptions],
    ) -> AsyncCallQueue[Latents, bytes]: ...
    @overload
    def decode_queue(
        self,
        *,
        output: TensorOutput,
        callback: Callable[[Finished[Tensor]], None] | None = None,
        **options: Unpack[DecodeQueueOptions],
    ) -> AsyncCallQueue[Latents, Tensor]: ...
    @overload
    def decode_queue(
        self,
        *,
        output: Output,
        callback: Callable[[Finished[Decoded]], None] | None = None,
        **options: Unpack[DecodeQueueOptions],
    ) -> AsyncCallQueue[Latents, Decoded]: ...
    def decode_queue(
        self,
        *,
        limit: int = 4,
        order: Order = "put",
        callback: Callable[[Finished[Any]], None] | None = None,
        progress: bool | Callable[..., Any] = False,
        total: int | None = None,
        stop_on_error: bool = False,
        **decode_arguments: Any,
    ) -> AsyncCallQueue[Any, Any]:
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

    @overload
    def encode_queue(
        self,
        *,
        kind: Literal["torch"],
        callback: Callable[[Finished[TorchTensor]], None] | None = None,
        **options: Unpack[EncodeQueueOptions],
    ) -> AsyncCallQueue[Encodable, TorchTensor]: ...
    @overload
    def encode_queue(
        self,
        *,
        kind: Literal["numpy"],
        callback: Callable[[Finished[NumpyArray]], None] | None = None,
        **options: Unpack[EncodeQueueOptions],
    ) -> AsyncCallQueue[Encodable, NumpyArray]: ...
    @overload
    def encode_queue(
        self,
        *,
        kind: Literal["wire"],
        callback: Callable[[Finished[WireTensor]], None] | None = None,
        **options: Unpack[EncodeQueueOptions],
    ) -> AsyncCallQueue[Encodable, WireTensor]: ...
    @overload
    def encode_queue(
        self,
        *,
        kind: Kind | None = None,
        callback: Callable[[Finished[Tensor]], None] | None = None,
        **options: Unpack[EncodeQueueOptions],
    ) -> AsyncCallQueue[Encodable, Tensor]: ...
    def encode_queue(
        self,
        *,
        limit: int = 4,
        order: Order = "put",
        callback: Callable[[Finished[Any]], None] | None = None,
        progress: bool | Callable[..., Any] = False,
        total: int | None = None,
        stop_on_error: bool = False,
        **encode_arguments: Any,
    ) -> AsyncCallQueue[Any, Any]:
        """As :meth:`decode_queue`, but encodes pictures to latents."""
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

    async def models(self, *, deadline_s: float | None = None) -> list[dict[str, Any]]:
        """As :meth:`Client.models`."""
        return await self._run(self._flows.models(self._terms(deadline_s, None)))

    async def model(self, name: str, *, deadline_s: float | None = None) -> Json:
        """As :meth:`Client.model`."""
        return await self._run(self._flows.model(name, self._terms(deadline_s, None)))

    async def health(self, *, deadline_s: float | None = None) -> Json:
        """As :meth:`Client.health`."""
        return await self._run(self._flows.health(self._terms(deadline_s, None)))

    async def aclose(self) -> None:
        """Close the connections."""
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
                elif isinstance(step, Call) and step.opens:
                    outcome, chunks = await self._open(step, opened)
                else:
                    outcome = await self._take(step)

    async def _take(self, step: Step) -> Any:
        if isinstance(step, Compute):
            return await anyio.to_thread.run_sync(step.work, step.request)
        if not isinstance(step, Call):
            raise AssertionError(f"{step} belongs into a stream")
        return await (self._perform(step) if step.hedge is None else race_async(step, self._perform))

    async def _perform(self, call: Call) -> Settled:
        async with contextlib.AsyncExitStack() as opened:
            return cast("Settled", (await self._open(call, opened))[0])

    async def _open(self, call: Call, opened: contextlib.AsyncExitStack) -> tuple[Outcome, AsyncIterator[bytes]]:
        if call.wait_s:
            await self._sleep(call.wait_s)
        exchange = Exchange(call, self._timeout, self._headers)
        try:
            response = await self._transport.handle_async_request(exchange.request(is_async=True))
            opened.push_async_callback(response.aclose)
            exchange.begin(response)
            if is_opened(call, response):
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
