"""Every conversation with the servers, as a generator that does no I/O.

A flow yields the :data:`~.steps.Step` to take and is sent what came of it; what it returns is the result.  So
retries, failover, deadlines, errors and conversions are written once, and :mod:`.client` and :mod:`.async_client`
drive them.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast
from urllib.parse import quote

import httpx

from ..errors import BadAnswer, ClientError, RequestError, ServerRefused, ServerTimeout
from ..protocol import (
    DecodeRequest,
    EncodeRequest,
    HttpRequest,
    HttpResponse,
    Json,
    Request,
    read_answer,
    write_request,
)
from . import transport_errors
from .address import Address
from .answer_limits import MOST_DOCUMENT_BYTES, check, most_bytes
from .conversion import Kind, from_wire, pictures_of
from .fallback import Fallback, local_of
from .flow_types import Arrived, Build, Call, Compute, Flow, Local, Opened, Outcome, Terms, Until
from .load_balancer import Breaker, Fleet, Server
from .redaction import Redactor
from .reply import Reply, ServerWarning, timings_ms
from .retry import Retry, another_may

T = TypeVar("T")

#: Headers of a caller's that hold no credential.
_OPEN_HEADERS = frozenset({"accept", "accept-language", "content-type", "user-agent"})


@dataclass(frozen=True, slots=True)
class Flows:
    """The conversations that can be had with a fleet; :class:`Client` documents each.

    Attributes:
        fleet: The servers.
        retries: When to try again.
        patience_s: How long the driver waits for an answer, which servers are told; None for ever.
        fallback: Decodes and encodes where no server can.
        redact: Takes out of texts what must not be shown.
    """

    fleet: Fleet
    retries: Retry
    patience_s: float | None = None
    fallback: Local | None = None
    redact: Redactor = field(default_factory=lambda: Redactor(()))

    @property
    def address(self) -> Address:
        """The first server's."""
        return self.fleet.servers[0].address

    def decode(self, request: DecodeRequest, model: str | None, kind: Kind, terms: Terms) -> Flow[Any]:
        until, convert = self.begin(terms), converter(request, kind)
        if request.output != "picture":
            return (yield from self.answer(request, model, until, convert))
        # A picture answer holds one picture.  Several small files are sent faster than one large tensor.
        pictures = []
        for part in pictures_of(request):
            single = dataclasses.replace(request, latents=part)
            pictures.append((yield from self.answer(single, model, until, convert)))
        return pictures if len(pictures) > 1 else pictures[0]

    def encode(self, request: EncodeRequest, model: str | None, kind: Kind, terms: Terms) -> Flow[Any]:
        return (yield from self.answer(request, model, self.begin(terms), converter(request, kind)))

    def send(self, request: Request, model: str | None, endpoint: str | None, terms: Terms) -> Flow[Reply]:
        if endpoint is None:
            return (yield from self.answer(request, model, self.begin(terms), _itself))
        if model is not None:
            raise RequestError("two destinations", saw="model and endpoint", expected="one of them")
        target = self._at(endpoint)
        post = self.post(request, "", terms)

        def there(_: Address, left_s: float | None) -> Call:
            return post(target, left_s)

        # The server's own retries, but nobody else's help: the caller named this endpoint.
        only = dataclasses.replace(self, fleet=Fleet([target], clock=self.fleet.clock), fallback=None)
        return self._noted((yield from only.exchange(there, _reader(request, _itself), self.begin(terms))))

    def models(self, terms: Terms) -> Flow[list[dict[str, Any]]]:
        return (yield from self.exchange(getter("/v1/models"), read_model_list, self.begin(terms)))

    def health(self, terms: Terms) -> Flow[Json]:
        return (yield from self.exchange(getter("/health"), _read_document, self.begin(terms)))

    # ------------------------------------------------------------------------------------------- parts

    def begin(self, terms: Terms) -> Until:
        """Starts the clock of a call."""
        return Until(terms, None if terms.deadline_s is None else self.fleet.clock() + terms.deadline_s)

    def answer(self, request: Request, model: str | None, until: Until, convert: Callable[[Reply], T]) -> Flow[T]:
        """One request, answered by a server or, where none can, by the fallback.

        What ``convert`` cannot read is the server's failure, after which another one is asked.
        """
        fallback = self.fallback
        if fallback is not None and not self.fleet.has_hope():
            reason = "no server has answered for a while"
            return convert((yield from self._compute(fallback, request, reason)))
        post = self.post(request, path_of(request, model), until.terms)
        try:
            return self._noted((yield from self.exchange(post, _reader(request, convert), until)))
        except ClientError as error:
            if fallback is None or not another_may(error, getattr(error, "status", None)):
                raise
            reason = str(error)
        return convert((yield from self._compute(fallback, request, reason)))

    def exchange(self, build: Build, read: Callable[[Arrived, Address], T], until: Until) -> Flow[T]:
        """What ``read`` makes of the first good response, of as many attempts as the policy allows.

        A server that fails is left at once for another that has not failed this call; only when all have, the
        policy says whether to go round again, and after which wait.  A response that was only opened is read as
        one without a body.
        """
        attempt, wait_s = 1, 0.0
        failed: list[Server] = []
        while True:
            server = self.fleet.lease(failed)
            status = None
            outcome = yield from self._attempt(server, build, until, wait_s)
            if isinstance(outcome, httpx.RequestError):
                error = transport_errors.loss(outcome, server.address)
            elif isinstance(outcome, BadAnswer):
                error = transport_errors.named(outcome, server.address)
            else:
                status = outcome.status
                try:
                    value = _accepted(outcome, read, server.address)
                except ClientError as refused:
                    error = refused
                except BaseException:  # no fault of the server's: torch is not installed
                    self.fleet.released(server)
                    raise
                else:
                    self.fleet.answered(server, outcome.seconds, _queue_s(outcome))
                    return value
            self.fleet.failed(server, self.blamed(error))
            failed.append(server)
            wait_s = 0.0
            if another_may(error, status) and self.fleet.can_spare(failed) and self._has_time(until, 0.0):
                continue
            next_wait_s = self.retries.wait_s(attempt, error, status)
            if next_wait_s is not None and len(failed) > 1:
                next_wait_s = min(next_wait_s, max(self.fleet.soonest_s(), self.retries.first_wait_s))
            if next_wait_s is None or not self._has_time(until, next_wait_s):
                raise error
            attempt, wait_s, failed = attempt + 1, next_wait_s, []

    def _attempt(
        self, server: Server, build: Build, until: Until, wait_s: float
    ) -> Flow[Arrived | httpx.RequestError | BadAnswer]:
        """One call to a server, which gets its place back if nobody waits for what comes of it."""
        try:
            left_s = None if until.ends_at is None else until.ends_at - self.fleet.clock() - wait_s
            if left_s is not None and left_s <= 0:
                raise _too_late(until, server.address)
            outcome: Outcome = yield dataclasses.replace(build(server.address, left_s), wait_s=wait_s)
        except BaseException:
            self.fleet.released(server)
            raise
        return Arrived(200, outcome.headers, b"", None) if isinstance(outcome, Opened) else outcome

    def post(self, request: Request, path: str, terms: Terms, *, is_parted: bool = False) -> Build:
        """The call that sends a request to whichever server it will be."""
        return self.sender(write_request(request), most_bytes(request), path, terms, is_parted=is_parted)

    def sender(self, message: HttpRequest, most: int, path: str, terms: Terms, *, is_parted: bool = False) -> Build:
        """The call that sends a message to whichever server it will be, for an answer of ``most`` bytes at most."""

        def build(address: Address, left_s: float | None) -> Call:
            headers = {**message.headers, **address.headers()}
            known = [seconds for seconds in (left_s, self.patience_s) if seconds is not None]
            if known:
                # So that a server does not work for somebody who has gone.
                headers["request-timeout"] = f"{min(known):.3f}"
            return Call(
                "POST",
                address.resolve(path, message.query),
                headers,
                message.body,
                timeout_s=left_s,
                progress=terms.progress,
                is_parted=is_parted,
                most_bytes=most,
            )

        return build

    def _noted(self, read: tuple[T, Reply]) -> T:
        """What was read of a reply, once the server's remark has been passed on."""
        value, reply = read
        self.pass_on(reply.headers, reply.server)
        return value

    def pass_on(self, headers: Mapping[str, str], server: str) -> None:
        """Warns the caller of the server's remark, if there is one."""
        if (remark := headers.get("hybridge-warning")) is not None:
            warn_caller(f"{server}: {self.redact(remark)}")

    def blamed(self, error: ClientError) -> ClientError:
        """The error with texts that may be shown."""
        error.reword(self.redact)
        if isinstance(error, ServerRefused) and error.code is not None:
            error.code = self.redact(error.code)
        return error

    def _at(self, endpoint: str) -> Address:
        """The endpoint's address, with the credentials of the server that it is on."""
        addresses = [server.address for server in self.fleet.servers]
        return next((a for a in addresses if a.has(endpoint)), self.address).at(endpoint)

    def _has_time(self, until: Until, wait_s: float) -> bool:
        return until.ends_at is None or self.fleet.clock() + wait_s < until.ends_at

    def _compute(self, work: Local, request: Request, reason: str) -> Flow[Reply]:
        warn_caller(f"the fallback does the work of a server: {reason}")
        begun = self.fleet.clock()
        answer = yield Compute(work, request)
        return Reply(answer, {}, "the fallback", 0, 0, self.fleet.clock() - begun)


def flows_to(
    servers: str | Sequence[str],
    api_key: str | None,
    headers: Mapping[str, str] | None,
    retries: Retry,
    breaker: Breaker | None,
    patience_s: float | None,
    fallback: Fallback | None,
) -> Flows:
    """The flows to one server or to several, from what a client is given.

    Raises:
        ClientError: for what is no address, no key or no fallback.
    """
    # An empty list is refused as an empty address is.
    urls = [servers] if isinstance(servers, str) else list(servers) or [""]
    fleet = Fleet([Address.parse(url, api_key) for url in urls], breaker=breaker)
    secrets = [secret for server in fleet.servers for secret in server.address.secrets()]
    secrets += [secret for name, value in (headers or {}).items() for secret in _secrets_of(name, value)]
    local = None if fallback is None else local_of(fallback)
    return Flows(fleet, retries, patience_s, local, Redactor(secrets))


def _secrets_of(name: str, value: str) -> list[str]:
    """What of a header of the caller's own may be a credential: all of it, and what follows ``Bearer``."""
    return [] if str(name).lower() in _OPEN_HEADERS else [str(value), *str(value).split()[1:]]


def converter(request: Request, kind: Kind) -> Callable[[Reply], Any]:
    """What a call gives for a reply: a picture, the bytes of a video, or a tensor of ``kind``."""
    if isinstance(request, DecodeRequest) and request.output == "picture":
        return Reply.picture
    if isinstance(request, DecodeRequest) and request.output == "video":
        return Reply.file
    return lambda reply: from_wire(reply.tensor(), kind)


def _itself(reply: Reply) -> Reply:
    return reply


def path_of(request: Request, model: str | None) -> str:
    """Where a request for a model goes; without one the server infers it."""
    if model is None:
        return "/"
    return f"/v1/{quote(model, safe='')}/{'decode' if isinstance(request, DecodeRequest) else 'encode'}"


def _accepted(arrived: Arrived, read: Callable[[Arrived, Address], T], address: Address) -> T:
    """What ``read`` makes of a 2xx response.

    Raises:
        ClientError: for any other, and for what cannot be read; it names the server.
    """
    if not 200 <= arrived.status < 300:
        raise transport_errors.refusal(_plain(arrived), arrived.moved_to, address)
    try:
        return read(arrived, address)
    except BadAnswer as error:
        raise transport_errors.named(error, address) from None


def _reader(request: Request, convert: Callable[[Reply], T]) -> Callable[[Arrived, Address], tuple[T, Reply]]:
    data = request.latents.data if isinstance(request, DecodeRequest) else request.image.data
    bytes_up = memoryview(data).nbytes

    def read(arrived: Arrived, address: Address) -> tuple[T, Reply]:
        answer = read_answer(_plain(arrived))
        check(request, answer)
        reply = Reply(
            answer,
            headers=arrived.headers,
            server=str(address),
            bytes_up=bytes_up,
            bytes_down=len(arrived.body),
            seconds=arrived.seconds or 0.0,
        )
        return convert(reply), reply

    return read


def getter(path: str) -> Build:
    """The call that asks for a document."""

    def build(address: Address, left_s: float | None) -> Call:
        headers = {"accept": "application/json", **address.headers()}
        return Call("GET", address.resolve(path), headers, timeout_s=left_s, most_bytes=MOST_DOCUMENT_BYTES)

    return build


def read_model_list(arrived: Arrived, address: Address) -> list[dict[str, Any]]:
    """What a server says of its models.

    Raises:
        BadAnswer: when it does not.
    """
    document = _read_document(arrived, address)
    models = document.get("models") if isinstance(document, dict) else None
    if not isinstance(models, list):
        keys = f"JSON with the keys {list(document)[:8]}" if isinstance(document, dict) else None
        saw = keys or repr(document)[:60]
        raise BadAnswer("this did not list its models", saw=saw, expected="them under `models`")
    return cast("list[dict[str, Any]]", models)


def _read_document(arrived: Arrived, _: Address) -> Json:
    """The JSON document, or the plain text, that came."""
    media_type = arrived.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "text/plain":
        return arrived.body.decode("utf-8", "replace")
    try:
        return cast(Json, json.loads(arrived.body))
    except (ValueError, RecursionError):
        raise BadAnswer(
            "this is not a hybridge server",
            saw=f"{media_type or 'no Content-Type'}, beginning with {arrived.body[:60]!r}",
            expected="JSON",
            hint="check the address: a web page or a proxy may be answering",
        ) from None


def _plain(arrived: Arrived) -> HttpResponse:
    return HttpResponse(arrived.status, dict(arrived.headers), arrived.body)


def _queue_s(arrived: Arrived) -> float:
    """How long the request stood in the server's line, by its own word."""
    return timings_ms(arrived.headers).get("queue", 0.0) / 1e3


def _too_late(until: Until, address: Address) -> ServerTimeout:
    return ServerTimeout(
        f"{address} was not asked in time",
        saw=f"a deadline of {until.terms.deadline_s:g} s that has passed",
        hint="a longer deadline_s, or another server beside this one",
    )


def warn_caller(text: str) -> None:
    """Warns at the line outside this package that made the call, however deep below it this is."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(__package__):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, ServerWarning, stacklevel=level)
