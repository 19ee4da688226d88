"""Every conversation with a server, as a generator that does no I/O.

A flow yields the :class:`Call` to make and is sent what came of it; what it returns is the result.  So retries,
errors and conversions are written once, and :mod:`.client` drives them with blocking or with async calls.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import warnings
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import httpx

from ..errors import BadAnswer, ClientError, RequestError, ServerRefused, ServerTimeout, ServerUnreachable
from ..protocol import (
    Answer,
    DecodeRequest,
    EncodeRequest,
    FileAnswer,
    HttpResponse,
    Request,
    WireTensor,
    read_answer,
    read_failure,
    write_request,
)
from .address import Address
from .retry import Retry
from .values import Kind, from_wire, pictures_of

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP exchange to make, after waiting ``wait_s`` seconds."""

    method: str
    url: httpx.URL = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)
    wait_s: float = 0.0


#: What came of a call: the whole response, or why there is none.
Outcome = httpx.Response | httpx.RequestError

Flow = Generator[Call, Outcome, T]


#: Unauthorised, and forbidden: whoever says so, and in whatever form, the remedy is a key.
_KEY_STATUSES = frozenset({401, 403})


class ServerWarning(UserWarning):
    """The server answered, and has a remark about what it was sent."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and what is known about how it came.

    Attributes:
        answer: What was answered, as the wire has it.
        headers: The response's headers; names in lower case.
        server: The server's address, without secrets.
        bytes_up: Size of the body that was sent.
        bytes_down: Size of the body that came back.
        seconds: Time of the attempt that succeeded, from sending to the last byte.
    """

    answer: Answer = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    server: str
    bytes_up: int
    bytes_down: int
    seconds: float

    @property
    def model(self) -> str | None:
        """The id of the model that answered."""
        return self.headers.get("hybridge-model")

    @property
    def inferred(self) -> str | None:
        """What the server had to infer, and from what."""
        return self.headers.get("hybridge-inferred")

    @property
    def warning(self) -> str | None:
        """The server's remark about the request; it has been issued as a :class:`ServerWarning`."""
        return self.headers.get("hybridge-warning")

    @property
    def timings_ms(self) -> dict[str, float]:
        """Milliseconds by stage, as ``Server-Timing`` has them."""
        timings: dict[str, float] = {}
        for entry in self.headers.get("server-timing", "").split(","):
            name, *details = (part.strip() for part in entry.split(";"))
            for detail in details:
                key, _, value = detail.partition("=")
                if key == "dur" and value.replace(".", "", 1).isdecimal():
                    timings[name] = float(value)
        return timings

    def tensor(self) -> WireTensor:
        """The tensor that was answered.

        Raises:
            BadAnswer: when it was a file.
        """
        if isinstance(self.answer, FileAnswer):
            raise BadAnswer(f"{self.server} sent a file", saw=self.answer.media_type, expected="a tensor")
        return self.answer.tensor

    def file(self) -> bytes:
        """The file that was answered, as its bytes.

        Raises:
            BadAnswer: when it was a tensor.
        """
        if not isinstance(self.answer, FileAnswer):
            raise BadAnswer(f"{self.server} sent a tensor", saw=list(self.answer.tensor.shape), expected="a file")
        return self.answer.data

    def picture(self) -> Image:
        """The picture that was answered, loaded; its ``format`` says what file it was.

        Raises:
            BadAnswer: when it was no picture, or one cut short.
        """
        from PIL import Image

        data = self.file()
        try:
            picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
            picture.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise BadAnswer(
                f"{self.server} sent a picture that cannot be read",
                saw=f"{len(data)} bytes, {type(error).__name__}: {error}",
            ) from None
        return picture


@dataclass(frozen=True, slots=True)
class Flows:
    """The conversations that can be had with the server at ``address``; :class:`Client` documents each."""

    address: Address
    retries: Retry

    def decode(self, request: DecodeRequest, model: str | None, kind: Kind) -> Flow[Any]:
        if request.output == "picture":
            # A picture answer holds one picture.  Several small files are sent faster than one large tensor.
            pictures = []
            for part in pictures_of(request):
                reply = yield from self.send(dataclasses.replace(request, latents=part), model=model)
                pictures.append(reply.picture())
            return pictures if len(pictures) > 1 else pictures[0]
        reply = yield from self.send(request, model=model)
        return reply.file() if request.output == "video" else from_wire(reply.tensor(), kind)

    def encode(self, request: EncodeRequest, model: str | None, kind: Kind) -> Flow[Any]:
        reply = yield from self.send(request, model=model)
        return from_wire(reply.tensor(), kind)

    def send(self, request: Request, *, model: str | None = None, endpoint: str | None = None) -> Flow[Reply]:
        if endpoint is not None:
            if model is not None:
                raise RequestError("two destinations", saw="model and endpoint", expected="one of them")
            address, path = self.address.at(endpoint), ""
        elif model is not None:
            task = "decode" if isinstance(request, DecodeRequest) else "encode"
            address, path = self.address, f"/v1/{quote(model, safe='')}/{task}"
        else:
            address, path = self.address, "/"
        message = write_request(request)
        url = address.resolve(path, message.query)
        call = Call("POST", url, {**message.headers, **address.headers()}, message.body)
        response = yield from self._exchange(call, address)
        try:
            answer = read_answer(_plain(response))
        except BadAnswer as error:
            raise _named(error, address) from None
        reply = Reply(
            answer,
            headers=dict(response.headers),
            server=str(address),
            bytes_up=len(message.body),
            bytes_down=len(response.content),
            seconds=response.elapsed.total_seconds(),
        )
        if reply.warning is not None:
            _warn_caller(f"{address}: {reply.warning}")
        return reply

    def models(self) -> Flow[list[dict[str, Any]]]:
        document = yield from self._get("/v1/models")
        models = document.get("models") if isinstance(document, dict) else None
        if not isinstance(models, list):
            saw = f"JSON with the keys {list(document)[:8]}" if isinstance(document, dict) else repr(document)[:60]
            raise BadAnswer(f"{self.address} did not list its models", saw=saw, expected="them under `models`")
        return models

    def health(self) -> Flow[Any]:
        return (yield from self._get("/health"))

    def _get(self, path: str) -> Flow[Any]:
        """The JSON document, or the plain text, at ``path``."""
        headers = {"accept": "application/json", **self.address.headers()}
        response = yield from self._exchange(Call("GET", self.address.resolve(path), headers), self.address)
        media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type == "text/plain":
            return response.text
        try:
            return json.loads(response.content)
        except (ValueError, RecursionError):
            raise BadAnswer(
                f"{self.address} is not a hybridge server",
                saw=f"{media_type or 'no Content-Type'}, beginning with {response.content[:60]!r}",
                expected="JSON",
                hint="check the address: a web page or a proxy may be answering",
            ) from None

    def _exchange(self, call: Call, address: Address) -> Flow[httpx.Response]:
        """The first 2xx response, of as many attempts as the policy allows."""
        attempt, wait_s = 1, 0.0
        while True:
            outcome = yield dataclasses.replace(call, wait_s=wait_s)
            if isinstance(outcome, httpx.Response):
                if outcome.is_success:
                    return outcome
                error, status = _refusal(outcome, address), outcome.status_code
            else:
                error, status = _loss(outcome, address), None
            next_wait_s = self.retries.wait_s(attempt, error, status)
            if next_wait_s is None:
                raise error
            attempt, wait_s = attempt + 1, next_wait_s


def _plain(response: httpx.Response) -> HttpResponse:
    return HttpResponse(response.status_code, dict(response.headers), response.content)


def _named(error: BadAnswer, address: Address) -> BadAnswer:
    return BadAnswer(f"{address}: {error.what}", saw=error.saw, expected=error.expected, hint=error.hint)


def _refusal(response: httpx.Response, address: Address) -> ClientError:
    """The error for a response that is not 2xx."""
    if response.next_request is not None:
        moved_to = response.next_request.url.copy_with(userinfo=b"", query=None, fragment=None)
        return BadAnswer(
            f"{address} sends its callers elsewhere",
            saw=f"HTTP {response.status_code} to {moved_to}",
            hint="that address, if it is one to trust",
        )
    error = read_failure(_plain(response))
    if response.status_code in _KEY_STATUSES:
        return ServerRefused(
            f"{address} does not let this caller in",
            status=response.status_code,
            code=None if isinstance(error, BadAnswer) else error.code,
            saw=f"HTTP {response.status_code}" + ("" if isinstance(error, BadAnswer) else f": {error.what}"),
            hint="the server's key as api_key, or user:password@ in the address",
        )
    if isinstance(error, BadAnswer):
        return _named(error, address)
    return ServerRefused(
        f"{address} answered {error.status}: {error.what}",
        status=error.status,
        code=error.code,
        retry_after_s=error.retry_after_s,
    )


def _loss(error: httpx.RequestError, address: Address) -> ClientError:
    """The error for a call without a response."""
    seen = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)):
        hint = "`hybridge serve` on that machine, or another address"
        return ServerUnreachable(f"{address} cannot be reached", saw=seen, hint=hint)
    if isinstance(error, httpx.TimeoutException):
        hint = "a longer timeout; the first call for a model may have to load it"
        return ServerTimeout(f"{address} did not answer in time", saw=seen, hint=hint)
    if isinstance(error, httpx.DecodingError):
        return BadAnswer(f"{address}: the answer's compression is broken", saw=seen)
    if isinstance(error, (httpx.LocalProtocolError, httpx.UnsupportedProtocol)):
        # The text would quote the header that is wrong, and that may be a credential.
        return ClientError(f"the call to {address} is not valid HTTP", hint="look for line breaks in `headers`")
    return ServerUnreachable(f"{address} broke off the connection", saw=seen, hint="a look at the server's log")


def _warn_caller(text: str) -> None:
    """Warns at the line outside this package that made the call, however deep below it this is."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(__package__):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, ServerWarning, stacklevel=level)
