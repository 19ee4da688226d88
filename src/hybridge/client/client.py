"""What people call: arguments in, a flow out, and the two drivers that do its I/O, one blocking, one awaiting."""

from __future__ import annotations

import abc
import datetime
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar, cast, get_args
from urllib.request import getproxies

import anyio
import httpx

from ..errors import RequestError
from ..protocol import DecodeRequest, EncodeRequest, Output, Request, Scaling, ValueRange
from ..protocol.messages import DEFAULT_QUALITY
from .address import Address
from .flow import Call, Flow, Flows, Outcome, Reply
from .retry import DEFAULT_RETRY, Retry
from .values import Kind, image_to_wire, picture_format_from, to_wire

T = TypeVar("T")

#: Long enough for a large video on a slow machine; SD.Next waits as long.
ANSWER_TIMEOUT_S = 300.0

#: A machine that is up says so within seconds, however busy it is.
CONNECT_TIMEOUT_S = 10.0

#: httpx drops an idle connection after 5 s, less than it takes to make the next latents.
_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=60.0)


class _Calls(abc.ABC):
    """What both clients can do; an :class:`AsyncClient` gives each result as an awaitable."""

    _flows: Flows

    @abc.abstractmethod
    def _run(self, flow: Flow[Any]) -> Any:
        """Drives ``flow`` to its result."""

    def decode(
        self,
        latents: Any,
        *,
        model: str | None = None,
        scaling_factor: float | None = None,
        shift_factor: float | None = None,
        do_scaling: bool | None = None,
        height: int | None = None,
        width: int | None = None,
        output: Output = "picture",
        image_format: str = "png",
        quality: int | None = None,
    ) -> Any:
        """Latents to a picture.

        Args:
            latents: (B, C, H, W), (B, C, F, H, W) for video, or packed (B, S, C); a torch tensor, a NumPy array
                or a WireTensor.
            model: An id from :meth:`models`; without one the server infers it, and refuses where it cannot.
            scaling_factor: With ``shift_factor``, as in the VAE's config: z / scaling_factor + shift_factor.
                Without, the latents are in the VAE's own space already.
            do_scaling: True scales as the model's own pipeline does; False never scales.
            height, width: The picture's, in pixels; needed for packed latents and for nothing else.
            output: What comes back; see below.
            image_format: The file that a picture travels in: ``png`` or ``webp`` (lossless), or ``jpg``.
            quality: JPEG's, 1 to 100; 95 if None.

        Returns:
            * ``picture``: a PIL image, and for a batch a list of them, fetched one by one
            * ``unit``: (N, 3, H, W) floats in [0, 1]
            * ``signed``: (N, 3, H, W) floats as the VAE gives them, about [-1, 1]
            * ``pixels``: (N, H, W, 3) uint8
            * ``video``: the bytes of an MP4

            Tensors are of the kind that the latents were; NumPy has no bfloat16 and gets float32.
        """
        tensor, natural_kind = to_wire(latents)
        if output not in get_args(Output):
            raise RequestError("unknown output", saw=repr(output), expected="one of " + ", ".join(get_args(Output)))
        if (height is None) != (width is None):
            raise RequestError("half a size", saw=f"height={height}, width={width}", expected="both, or neither")
        request = DecodeRequest(
            tensor,
            scaling=Scaling.of(do_scaling, scaling_factor, shift_factor),
            output=output,
            picture_format=picture_format_from(image_format),
            quality=DEFAULT_QUALITY if quality is None else quality,
            height=height,
            width=width,
        )
        return self._run(self._flows.decode(request, model, natural_kind))

    def encode(
        self,
        image: Any,
        *,
        model: str | None = None,
        scaling_factor: float | None = None,
        shift_factor: float | None = None,
        do_scaling: bool | None = None,
        value_range: ValueRange = "auto",
        sample: bool = False,
        seed: int | None = None,
        kind: Kind | None = None,
    ) -> Any:
        """A picture to latents (N, C, H, W).

        Args:
            image: A PIL image, the path or the bytes of a picture file, uint8 (H, W, 3) or (N, H, W, 3), or
                floats (N, 3, H, W); arrays may be torch, NumPy or WireTensor.
            model: An id from :meth:`models`; without one the server infers it, and refuses where it cannot.
            scaling_factor: With ``shift_factor``: (z - shift_factor) * scaling_factor.  Without, the latents come
                in the VAE's own space.
            do_scaling: True scales as the model's own pipeline does; False never scales.
            value_range: What floats mean: ``unit`` [0, 1], ``signed`` [-1, 1], ``auto`` by whether any is below 0.
            sample: Draw from the posterior instead of taking its mode.
            seed: Repeats a draw.
            kind: ``torch``, ``numpy`` or ``wire``.  If None, arrays get their own kind back, and pictures the
                first of the three that is installed.
        """
        if seed is not None and not sample:
            raise RequestError("a seed without sampling", saw=f"seed={seed}", expected="sample=True as well")
        content, natural_kind = image_to_wire(image)
        request = EncodeRequest(
            content,
            scaling=Scaling.of(do_scaling, scaling_factor, shift_factor),
            value_range=value_range,
            sample=sample,
            seed=seed,
        )
        return self._run(self._flows.encode(request, model, kind or natural_kind))

    @property
    def server(self) -> str:
        """The server's address, without secrets."""
        return str(self._flows.address)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.server!r})"


class Client(_Calls):
    """A hybridge server, from Python.  Keeps its connections; safe to share between threads.

    ::

        with Client("http://gpu-box:8000") as client:
            picture = client.decode(latents, model="sd-v1", scaling_factor=0.18215)

    Args:
        base_url: ``http://user:token@host:port/prefix?key=…``; what there is of user, prefix and query goes with
            every call.  No error shows them, but httpx logs a query (at level INFO).
        api_key: Sent as ``Authorization: Bearer``.
        headers: More headers for every call.
        timeout: Seconds to wait for an answer (connecting never takes more than 10), None to wait for ever, or
            httpx's own finer ``Timeout``.
        retries: When to try again.
        transport: Takes the place of the network, for tests.
        sleep: Waits between attempts.

    Every call raises a :class:`~hybridge.errors.ClientError`: ServerUnreachable, ServerTimeout, ServerRefused with
    the server's reason, or BadAnswer.  What cannot be sent is a :class:`~hybridge.errors.RequestError`.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | httpx.Timeout | None = ANSWER_TIMEOUT_S,
        retries: Retry = DEFAULT_RETRY,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._flows = Flows(Address.parse(base_url, api_key), retries)
        self._http = httpx.Client(
            headers=headers,
            timeout=_timeout(timeout),
            limits=_LIMITS,
            transport=transport,
            verify=_trust(self._flows.address),
        )
        self._sleep = sleep

    def send(self, request: Request, *, model: str | None = None, endpoint: str | None = None) -> Reply:
        """One request as the wire has it, answered with all that is known about the answer.

        Args:
            request: A DecodeRequest or an EncodeRequest of :mod:`hybridge.protocol`.
            model: As for :meth:`decode`.
            endpoint: A full URL on this server to post to, instead of a model's.
        """
        return self._run(self._flows.send(request, model=model, endpoint=endpoint))

    def models(self) -> list[dict[str, Any]]:
        """What the server serves."""
        return self._run(self._flows.models())

    def health(self) -> Any:
        """What the server says of its health, as JSON or text; raises where it cannot be asked."""
        return self._run(self._flows.health())

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self, flow: Flow[T]) -> T:
        try:
            call = next(flow)
            while True:
                call = flow.send(self._try(call))
        except StopIteration as end:
            return cast(T, end.value)

    def _try(self, call: Call) -> Outcome:
        if call.wait_s:
            self._sleep(call.wait_s)
        started = time.perf_counter()
        try:
            response = self._http.request(call.method, call.url, headers=call.headers, content=call.body)
        except httpx.RequestError as error:
            return error
        return _timed(response, started)


class AsyncClient(_Calls):
    """:class:`Client`, awaited.  Arguments and results are the same.

    ::

        async with AsyncClient("http://gpu-box:8000") as client:
            picture = await client.decode(latents, model="sd-v1", scaling_factor=0.18215)
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | httpx.Timeout | None = ANSWER_TIMEOUT_S,
        retries: Retry = DEFAULT_RETRY,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._flows = Flows(Address.parse(base_url, api_key), retries)
        self._http = httpx.AsyncClient(
            headers=headers,
            timeout=_timeout(timeout),
            limits=_LIMITS,
            transport=transport,
            verify=_trust(self._flows.address),
        )
        self._sleep = sleep

    async def send(self, request: Request, *, model: str | None = None, endpoint: str | None = None) -> Reply:
        """As :meth:`Client.send`."""
        return await self._run(self._flows.send(request, model=model, endpoint=endpoint))

    async def models(self) -> list[dict[str, Any]]:
        """As :meth:`Client.models`."""
        return await self._run(self._flows.models())

    async def health(self) -> Any:
        """As :meth:`Client.health`."""
        return await self._run(self._flows.health())

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def _run(self, flow: Flow[T]) -> T:
        try:
            call = next(flow)
            while True:
                call = flow.send(await self._try(call))
        except StopIteration as end:
            return cast(T, end.value)

    async def _try(self, call: Call) -> Outcome:
        if call.wait_s:
            await self._sleep(call.wait_s)
        started = time.perf_counter()
        try:
            response = await self._http.request(call.method, call.url, headers=call.headers, content=call.body)
        except httpx.RequestError as error:
            return error
        return _timed(response, started)


def _timeout(timeout: float | httpx.Timeout | None) -> httpx.Timeout:
    if isinstance(timeout, httpx.Timeout):
        return timeout
    connect_s = CONNECT_TIMEOUT_S if timeout is None else min(timeout, CONNECT_TIMEOUT_S)
    # Waiting for a connection of our own pool is no fault of the server's, and ends when another call does.
    return httpx.Timeout(timeout, connect=connect_s, pool=None)


def _trust(address: Address) -> ssl.SSLContext | bool:
    # Reading the certificate store takes 35 ms, a tenth of a decode, and remote_decode would do it for every call.
    # Plain HTTP without a proxy has no use for it; a context without roots trusts nobody, should one arise.
    needs_store = address.url.scheme == "https" or bool(getproxies())
    return True if needs_store else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _timed(response: httpx.Response, started: float) -> httpx.Response:
    # httpx sets this itself, but not for in-process transports that answer with a whole body.
    response.elapsed = datetime.timedelta(seconds=time.perf_counter() - started)
    return response
