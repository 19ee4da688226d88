"""The blocking client, which does the I/O of flows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

import httpx

from ..errors import BadAnswer
from ..protocol import Json, Output, Request, WireTensor
from .call_types import DecodeOptions, DecodeQueueOptions, EncodeQueueOptions, TensorOutput
from .calls import Calls
from .conversion import Kind
from .fallback import Fallback
from .flow_setup import flows_to
from .flow_types import Call, Compute, Emit, Flow, More, Opened, Outcome, Progress, Settled, Step
from .hedging import race
from .load_balancer import Breaker
from .network import Abort, Network, network_to
from .preview import Picture, Preview, preview_flow
from .prompts import Embeddings
from .proxies import ProxyChoice
from .queue import CallQueue, Finished, Order, Recipe
from .reply import Reply
from .retry import DEFAULT_RETRY, Retry
from .tls import Verify
from .transport import ANSWER_TIMEOUT_S, Exchange, is_opened, timeout_of
from .vae_requests import decode_request
from .videos import VideoCalls

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Unpack

    from .call_types import Decoded, Encodable, Latents, NumpyArray, Pictures, Tensor, TorchTensor

T = TypeVar("T")


class Client(Calls["Pictures", bytes, "TorchTensor", "NumpyArray", WireTensor, Embeddings], VideoCalls):
    """A client of one or several hybridge servers, with kept connections; safe to share between threads.

    ::

        with Client("http://gpu-box:8000") as client:
            picture = client.decode(latents, model="sd-v1", scaling_factor=0.18215)

    Args:
        base_url: ``http://user:token@host:port/prefix?key=…``; user, prefix and query are optional and used for
            every call.  No error and no log shows them.  A text without scheme, dot and colon is the name of a
            profile (:mod:`hybridge.client.profiles`).  With a list, each server gets calls in proportion to its
            speed, and if one fails another is asked.
        api_key: Sent as ``Authorization: Bearer`` to all servers; not together with a profile that has a key.
        headers: More headers for every call.
        timeout: Seconds to wait for an answer (at most 10 for connecting), None to wait for ever, or an
            ``httpx.Timeout``.
        deadline_s: Default of the calls' ``deadline_s``: seconds for a whole call, attempts and waits included.
        retries: The retry policy.
        breaker: When one of several servers is not asked for a while.
        hedge_after_s: With several servers, the seconds after which a decode or an encode that was not answered is
            sent to another one as well; the sooner answer counts, and the other server drops the job.  Sampling
            without a seed, previews and video streams are sent once.  None: all are sent once.
        fallback: A diffusers VAE, or a function from Request to Answer, that is used if no server can answer; if
            None, the error is raised.
        proxy: None: the environment's proxy, for public addresses.  True: also for addresses of the local network.
            False: no proxy.  A URL: this proxy.  This machine is never called through a proxy.
        verify: A file or folder of certificates that are trusted instead of the public ones, an ssl.SSLContext, or
            False to trust any server.  None: the environment's HYBRIDGE_CA, SSL_CERT_FILE or SSL_CERT_DIR.  The
            server of a profile with a certificate has to show that one in any case.
        transport: Replaces the network, for tests.
        sleep: Function that waits between attempts.

    Every call raises a :class:`~hybridge.errors.ClientError`: ServerUnreachable, ServerTimeout, ServerRefused with
    the server's reason, or BadAnswer.  Input that cannot be sent raises a :class:`~hybridge.errors.RequestError`.
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
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._flows = flows_to(
            base_url, api_key, headers, retries, breaker, timeout_of(timeout).read, fallback, hedge_after_s
        )
        self._deadline_s = deadline_s
        self._timeout = timeout_of(timeout)
        self._headers = dict(headers or {})
        servers = [server.address for server in self._flows.fleet.servers]
        self._transport = transport or network_to(servers, Network, proxy, verify)
        self._sleep = sleep

    def send(
        self,
        request: Request,
        *,
        model: str | None = None,
        endpoint: str | None = None,
        deadline_s: float | None = None,
        progress: Progress | None = None,
    ) -> Reply:
        """Send one request of the protocol, and return the answer with all facts about it.

        Args:
            request: A DecodeRequest or an EncodeRequest of :mod:`hybridge.protocol`.
            model: As for :meth:`decode`.
            endpoint: A full URL on one of the servers to post to, instead of a model's.
            deadline_s, progress: As for :meth:`decode`.
        """
        return self._run(self._flows.send(request, model, endpoint, self._terms(deadline_s, progress)))

    @overload
    def decode_with_preview(
        self, latents: Latents, *, output: Literal["picture"] = "picture", **options: Unpack[DecodeOptions]
    ) -> Iterator[Preview | Picture[Image]]: ...
    @overload
    def decode_with_preview(
        self, latents: TorchTensor, *, output: TensorOutput, **options: Unpack[DecodeOptions]
    ) -> Iterator[Preview | Picture[TorchTensor]]: ...
    @overload
    def decode_with_preview(
        self, latents: NumpyArray, *, output: TensorOutput, **options: Unpack[DecodeOptions]
    ) -> Iterator[Preview | Picture[NumpyArray]]: ...
    @overload
    def decode_with_preview(
        self, latents: WireTensor, *, output: TensorOutput, **options: Unpack[DecodeOptions]
    ) -> Iterator[Preview | Picture[WireTensor]]: ...
    @overload
    def decode_with_preview(
        self, latents: Latents, *, output: Output, **options: Unpack[DecodeOptions]
    ) -> Iterator[Preview | Picture[Image | bytes | Tensor]]: ...
    def decode_with_preview(
        self,
        latents: Any,
        *,
        model: str | None = None,
        deadline_s: float | None = None,
        progress: Progress | None = None,
        **decode_arguments: Any,
    ) -> Iterator[Preview | Picture[Any]]:
        """Decode latents of one picture: yield a :class:`Preview` as soon as possible, then the :class:`Picture`.

        Args:
            latents, model, deadline_s, progress: As for :meth:`decode`.
            decode_arguments: The other arguments of :meth:`decode`.

        Raises:
            ServerRefused: with the code ``NoPreview`` if the server cannot make a preview.
        """
        request, kind, model = decode_request(latents, model=model, preview=True, **decode_arguments)
        return self._stream(preview_flow(self._flows, request, model, kind, self._terms(deadline_s, progress)))

    @overload
    def decode_queue(
        self,
        *,
        output: Literal["picture"] = "picture",
        callback: Callable[[Finished[Pictures]], None] | None = None,
        **options: Unpack[DecodeQueueOptions],
    ) -> CallQueue[Latents, Pictures]: ...
    @overload
    def decode_queue(
        self,
        *,
        output: Literal["video"],
        callback: Callable[[Finished[bytes]], None] | None = None,
        **options: Unpack[DecodeQueueOptions],
    ) -> CallQueue[Latents, bytes]: ...
    @overload
    def decode_queue(
        self,
        *,
        output: TensorOutput,
        callback: Callable[[Finished[Tensor]], None] | None = None,
        **options: Unpack[DecodeQueueOptions],
    ) -> CallQueue[Latents, Tensor]: ...
    @overload
    def decode_queue(
        self,
        *,
        output: Output,
        callback: Callable[[Finished[Decoded]], None] | None = None,
        **options: Unpack[DecodeQueueOptions],
    ) -> CallQueue[Latents, Decoded]: ...
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
    ) -> CallQueue[Any, Any]:
        """Return a queue that decodes latents while the next ones are computed; see :class:`CallQueue`.

        Args:
            limit: Most calls at a time; at the limit, :meth:`CallQueue.put` waits.
            order: The order of results: as items were ``put``, or as they are ``done``.
            callback: Called with every result, one at a time, from a thread of the queue; iteration then gives
                nothing.
            progress: True draws two tqdm bars, put and done; a class such as ``tqdm.notebook.tqdm`` is used
                instead.
            total: Number of items that will be put, for the bars.
            stop_on_error: Whether the first failure ends the queue; otherwise a failure affects only its item.
            decode_arguments: Arguments of :meth:`decode` that all items share.
        """
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
        return CallQueue(recipe, self._run)

    @overload
    def encode_queue(
        self,
        *,
        kind: Literal["torch"],
        callback: Callable[[Finished[TorchTensor]], None] | None = None,
        **options: Unpack[EncodeQueueOptions],
    ) -> CallQueue[Encodable, TorchTensor]: ...
    @overload
    def encode_queue(
        self,
        *,
        kind: Literal["numpy"],
        callback: Callable[[Finished[NumpyArray]], None] | None = None,
        **options: Unpack[EncodeQueueOptions],
    ) -> CallQueue[Encodable, NumpyArray]: ...
    @overload
    def encode_queue(
        self,
        *,
        kind: Literal["wire"],
        callback: Callable[[Finished[WireTensor]], None] | None = None,
        **options: Unpack[EncodeQueueOptions],
    ) -> CallQueue[Encodable, WireTensor]: ...
    @overload
    def encode_queue(
        self,
        *,
        kind: Kind | None = None,
        callback: Callable[[Finished[Tensor]], None] | None = None,
        **options: Unpack[EncodeQueueOptions],
    ) -> CallQueue[Encodable, Tensor]: ...
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
    ) -> CallQueue[Any, Any]:
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
        return CallQueue(recipe, self._run)

    def models(self, *, deadline_s: float | None = None) -> list[dict[str, Any]]:
        """Return the server's models; with several servers, those of one that answers."""
        return self._run(self._flows.models(self._terms(deadline_s, None)))

    def model(self, name: str, *, deadline_s: float | None = None) -> Json:
        """Return what the server says of one model, with the fingerprint of its text encoders."""
        return self._run(self._flows.model(name, self._terms(deadline_s, None)))

    def health(self, *, deadline_s: float | None = None) -> Json:
        """Return the server's health report as JSON or text; raise an error at once if no server answers."""
        return self._run(self._flows.health(self._terms(deadline_s, None)))

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self, flow: Flow[T]) -> T:
        with contextlib.closing(flow):
            try:
                step = next(flow)
                while True:
                    step = flow.send(self._take(step))
            except StopIteration as end:
                return cast(T, end.value)

    def _stream(self, flow: Flow[Any]) -> Iterator[Any]:
        """Run a flow that yields results before it ends."""
        with contextlib.ExitStack() as opened, contextlib.closing(flow):
            chunks: Iterator[bytes] = iter(())
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
                        outcome = next(chunks, b"")
                    except httpx.RequestError as error:
                        outcome = error
                elif isinstance(step, Call) and step.opens:
                    outcome, chunks = self._open(step, opened)
                else:
                    outcome = self._take(step)

    def _take(self, step: Step) -> Any:
        if isinstance(step, Compute):
            return step.work(step.request)
        if not isinstance(step, Call):
            raise AssertionError(f"{step} belongs into a stream")
        return self._perform(step) if step.hedge is None else race(step, self._perform)

    def _perform(self, call: Call, abort: Abort | None = None) -> Settled:
        with contextlib.ExitStack() as opened:
            return cast("Settled", self._open(call, opened, abort)[0])

    def _open(
        self, call: Call, opened: contextlib.ExitStack, abort: Abort | None = None
    ) -> tuple[Outcome, Iterator[bytes]]:
        """Make a call; return its outcome and the rest of the body.  ``opened`` closes the response."""
        if call.wait_s:
            self._sleep(call.wait_s)
        exchange = Exchange(call, self._timeout, self._headers)
        try:
            response = self._transport.handle_request(exchange.request(abort=abort))
            opened.callback(response.close)
            exchange.begin(response)
            if is_opened(call, response):
                return Opened(dict(response.headers)), _in_time(response, exchange)
            for part in cast(httpx.SyncByteStream, response.stream):
                if not exchange.take(part):
                    break
        except (httpx.RequestError, BadAnswer) as error:
            return error, iter(())
        return exchange.arrived(), iter(())


def _in_time(response: httpx.Response, exchange: Exchange) -> Iterator[bytes]:
    for part in cast(httpx.SyncByteStream, response.stream):
        yield part
        exchange.check_time()
