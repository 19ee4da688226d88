"""Every exchange with the servers, as a generator that does no I/O.

A flow yields the next :data:`~.flow_types.Step`, is sent the step's outcome, and returns the result.  So retries,
failover, deadlines, errors and conversions are written once, and :mod:`.client` and :mod:`.async_client` run them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
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
from .answer_limits import check, most_bytes
from .conversion import Kind, from_wire, pictures_of
from .documents import getter, read_document, read_model_list
from .flow_types import (
    Arrived,
    Build,
    Call,
    Compute,
    Flow,
    Local,
    Opened,
    Opens,
    Outcome,
    Settled,
    Terms,
    Until,
)
from .hedging import hedged, is_repeatable
from .load_balancer import Fleet, Server
from .redaction import Redactor
from .reply import Reply, timings_ms, warn_caller
from .retry import Retry, another_may

T = TypeVar("T")

#: Seconds in which each of several servers has to list its models.
_LIST_S = 10.0


@dataclass(frozen=True, slots=True)
class Flows:
    """The flows to a fleet of servers; :class:`Client` documents each.

    Attributes:
        fleet: The servers.
        retries: The retry policy.
        patience_s: Seconds that the client waits for an answer, which is sent to servers; None for no limit.
        fallback: Decodes and encodes if no server can.
        redact: Removes secrets from texts.
        hedge_after_s: Seconds after which a call is sent to another server as well; None for never.
    """

    fleet: Fleet
    retries: Retry
    patience_s: float | None = None
    fallback: Local | None = None
    redact: Redactor = field(default_factory=lambda: Redactor(()))
    hedge_after_s: float | None = None

    @property
    def address(self) -> Address:
        """The first server's address."""
        return self.fleet.servers[0].address

    def decode(self, request: DecodeRequest, model: str | None, kind: Kind, terms: Terms) -> Flow[Any]:
        until, convert = self.begin(terms), converter(request, kind)
        if request.output != "picture":
            return (yield from self.answer(request, model, until, convert))
        pictures = []  # one in each answer: several small files are faster to send than one large tensor
        for single in pictures_of(request):
            picture = yield from self.answer(single, model, until, convert)
            pictures.append(picture)
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

        # Retries go only to this server, without failover and fallback: the caller named this endpoint.
        only = dataclasses.replace(self, fleet=Fleet([target], clock=self.fleet.clock), fallback=None)
        return self._noted((yield from only.exchange(there, _reader(request, _itself), self.begin(terms))))

    def models(self, terms: Terms) -> Flow[list[dict[str, Any]]]:
        return (yield from self.listed(self.begin(terms)))

    def model(self, name: str, terms: Terms) -> Flow[Json]:
        path = f"/v1/models/{quote(name, safe='')}"
        return (yield from self.exchange(getter(path), read_document, self.begin(terms)))

    def health(self, terms: Terms) -> Flow[Json]:
        # Once: a program that asks again and again wants to hear how it is now.
        once = dataclasses.replace(self, retries=dataclasses.replace(self.retries, attempts=1))
        return (yield from once.exchange(getter("/health"), read_document, self.begin(terms)))

    # ------------------------------------------------------------------------------------------- parts

    def begin(self, terms: Terms) -> Until:
        """Start the clock of a call."""
        return Until(terms, None if terms.deadline_s is None else self.fleet.clock() + terms.deadline_s)

    def listed(self, until: Until) -> Flow[list[dict[str, Any]]]:
        """Return the models of all servers; of several with one name, that of the first server.

        Raises:
            ClientError: when no server answers.
        """
        servers = self.fleet.servers
        if len(servers) == 1:
            return (yield from self.exchange(getter("/v1/models"), read_model_list, until))
        found: dict[str, dict[str, Any]] = {}
        failure: ClientError | None = None
        for server in servers:
            once = Fleet([server.address], clock=self.fleet.clock)
            alone = dataclasses.replace(self, fleet=once, retries=Retry(attempts=1))
            soon = self.begin(Terms(_LIST_S))
            ends_at = min(end for end in (soon.ends_at, until.ends_at) if end is not None)
            try:
                documents = yield from alone.exchange(
                    getter("/v1/models"), read_model_list, Until(soon.terms, ends_at)
                )
            except ClientError as error:
                failure = error
                continue
            self.fleet.has_models(server, [str(document.get("name")) for document in documents])
            for document in documents:
                found.setdefault(str(document.get("name")), document)
        if failure is not None and not found:
            raise failure
        return list(found.values())

    def answer(self, request: Request, model: str | None, until: Until, convert: Callable[[Reply], T]) -> Flow[T]:
        """Answer one request by a server or, if none can, by the fallback.

        An answer that ``convert`` cannot read counts as the server's failure, after which another server is asked.
        """
        fallback = self.fallback
        if fallback is not None and not self.fleet.has_hope():
            reason = "no server has answered for a while"
            return convert((yield from self._compute(fallback, request, reason)))
        post = self.post(request, path_of(request, model), until.terms)
        try:
            read = _reader(request, convert)
            return self._noted(
                (yield from self.exchange(post, read, until, model, may_hedge=is_repeatable(request)))
            )
        except ClientError as error:
            if fallback is None or not another_may(error, getattr(error, "status", None)):
                raise
            reason = str(error)
        return convert((yield from self._compute(fallback, request, reason)))

    def exchange(
        self,
        build: Build,
        read: Callable[[Arrived, Address], T],
        until: Until,
        model: str | None = None,
        *,
        may_hedge: bool = False,
    ) -> Flow[T]:
        """Return the result of ``read`` for the first good response, within the attempts that the policy allows.

        After a failure, another server that has not failed this call is asked immediately; only when all have
        failed, the policy decides whether to ask them again, and after which wait.  A response that was only opened
        is read without its body.  The first attempt that may be hedged is, if the client asks for that.
        """
        attempt, wait_s = 1, 0.0
        failed: list[Server] = []
        while True:
            server = self.fleet.lease(failed, model)
            status = None
            if may_hedge and self.hedge_after_s is not None and not failed and attempt == 1:
                server, outcome = yield from hedged(
                    self.fleet, server, lambda one: self._call(one, build, until), self.hedge_after_s, model
                )
            else:
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
                except BaseException:  # not the server's fault, for example torch is not installed
                    self.fleet.released(server)
                    raise
                else:
                    self.fleet.answered(server, outcome.seconds, _queue_s(outcome), model)
                    return value
            self.fleet.failed(server, self.blamed(error), model)
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

    def _attempt(self, server: Server, build: Build, until: Until, wait_s: float) -> Flow[Settled]:
        """Make one call to a server; if the flow is closed meanwhile, the call no longer counts as in flight."""
        try:
            outcome: Outcome = yield dataclasses.replace(self._call(server, build, until, wait_s), wait_s=wait_s)
        except BaseException:
            self.fleet.released(server)
            raise
        return Arrived(200, outcome.headers, b"", None) if isinstance(outcome, Opened) else outcome

    def _call(self, server: Server, build: Build, until: Until, wait_s: float = 0.0) -> Call:
        left_s = None if until.ends_at is None else until.ends_at - self.fleet.clock() - wait_s
        if left_s is not None and left_s <= 0:
            raise _too_late(until, server.address)
        return build(server.address, left_s)

    def post(self, request: Request, path: str, terms: Terms, *, opens: Opens | None = None) -> Build:
        """Return the function that builds the call with a request for a given server."""
        return self.sender(write_request(request), most_bytes(request), path, terms, opens=opens)

    def sender(
        self, message: HttpRequest, most: int, path: str, terms: Terms, *, opens: Opens | None = None
    ) -> Build:
        """Return the function that builds the call with a message, for an answer of at most ``most`` bytes."""

        def build(address: Address, left_s: float | None) -> Call:
            headers = {**message.headers, **address.headers()}
            known = [seconds for seconds in (left_s, self.patience_s) if seconds is not None]
            if known:
                # So that a server stops working for a client that has given up.
                headers["request-timeout"] = f"{min(known):.3f}"
            return Call(
                "POST",
                address.resolve(path, message.query),
                headers,
                message.body,
                timeout_s=left_s,
                progress=terms.progress,
                opens=opens,
                most_bytes=most,
            )

        return build

    def _noted(self, read: tuple[T, Reply]) -> T:
        """Issue the server's warning, if any, and return the value that was read."""
        value, reply = read
        self.pass_on(reply.headers, reply.server)
        return value

    def pass_on(self, headers: Mapping[str, str], server: str) -> None:
        """Issue the server's warning to the caller, if there is one."""
        if (remark := headers.get("hybridge-warning")) is not None:
            warn_caller(f"{server}: {self.redact(remark)}")

    def blamed(self, error: ClientError) -> ClientError:
        """Return the error with its texts redacted."""
        error.reword(self.redact)
        if isinstance(error, ServerRefused) and error.code is not None:
            error.code = self.redact(error.code)
        if error.cause is not None:
            error.cause = self.redact(error.cause)
        return error

    def _at(self, endpoint: str) -> Address:
        """Return the endpoint's address with the credentials of its server."""
        addresses = [server.address for server in self.fleet.servers]
        return next((a for a in addresses if a.has(endpoint)), self.address).at(endpoint)

    def _has_time(self, until: Until, wait_s: float) -> bool:
        return until.ends_at is None or self.fleet.clock() + wait_s < until.ends_at

    def _compute(self, work: Local, request: Request, reason: str) -> Flow[Reply]:
        warn_caller(f"the fallback does the work of a server: {reason}")
        begun = self.fleet.clock()
        answer = yield Compute(work, request)
        return Reply(answer, {}, "the fallback", 0, 0, self.fleet.clock() - begun)


def converter(request: Request, kind: Kind) -> Callable[[Reply], Any]:
    """Return the function from a reply to a call's result: a picture, a video's bytes, or a tensor of ``kind``."""
    if isinstance(request, DecodeRequest) and request.output == "picture":
        return Reply.picture
    if isinstance(request, DecodeRequest) and request.output == "video":
        return Reply.file
    return lambda reply: from_wire(reply.tensor(), kind)


def _itself(reply: Reply) -> Reply:
    return reply


def path_of(request: Request, model: str | None) -> str:
    """Return the URL path of a request for a model; if None, the server infers the model."""
    if model is None:
        return "/"
    return f"/v1/{quote(model, safe='')}/{'decode' if isinstance(request, DecodeRequest) else 'encode'}"


def _accepted(arrived: Arrived, read: Callable[[Arrived, Address], T], address: Address) -> T:
    """Return the result of ``read`` for a 2xx response.

    Raises:
        ClientError: for any other status, and for an answer that cannot be read; it names the server.
    """
    if not 200 <= arrived.status < 300:
        raise transport_errors.refusal(_plain(arrived), arrived.moved_to, address)
    try:
        return read(arrived, address)
    except BadAnswer as error:
        raise transport_errors.named(error, address) from None


def _reader(request: Request, convert: Callable[[Reply], T]) -> Callable[[Arrived, Address], tuple[T, Reply]]:
    bytes_up = request.nbytes

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


def _plain(arrived: Arrived) -> HttpResponse:
    return HttpResponse(arrived.status, dict(arrived.headers), arrived.body)


def _queue_s(arrived: Arrived) -> float:
    """Return the seconds that the request waited in the server's queue, as the server reports them."""
    return timings_ms(arrived.headers).get("queue", 0.0) / 1e3


def _too_late(until: Until, address: Address) -> ServerTimeout:
    return ServerTimeout(
        f"{address} was not asked in time",
        saw=f"a deadline of {until.terms.deadline_s:g} s that has passed",
        hint="a longer deadline_s, or another server beside this one",
    )
