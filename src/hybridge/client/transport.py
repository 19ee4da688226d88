"""What the blocking and the async driver share of HTTP: timeouts, and bodies that are bounded and reported."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping

import httpx

from .. import __version__
from ..errors import BadAnswer, ClientError
from .flow_types import Arrived, Call

#: Long enough for a large video on a slow machine; SD.Next waits as long.
ANSWER_TIMEOUT_S = 300.0

#: A machine that is up says so within seconds, however busy it is.
CONNECT_TIMEOUT_S = 10.0

#: Of an error's body; ours take a few hundred bytes, and of a web page nobody reads more.
_MOST_ERROR_BYTES = 1 << 16

#: Between two reports of an upload: a hundredth of a large tensor, and more than a packet.
_REPORT_BYTES = 1 << 18

#: What goes with every call.  Compression would let a few bytes become gigabytes, and saves nothing on noise.
_HEADERS = {"accept": "*/*", "accept-encoding": "identity", "user-agent": f"hybridge/{__version__}"}


def timeout_of(timeout: float | httpx.Timeout | None) -> httpx.Timeout:
    """httpx's own, in which connecting never takes long."""
    if isinstance(timeout, httpx.Timeout):
        return timeout
    connect_s = CONNECT_TIMEOUT_S if timeout is None else min(timeout, CONNECT_TIMEOUT_S)
    # Waiting for a connection of our own pool is no fault of the server's, and ends when another call does.
    return httpx.Timeout(timeout, connect=connect_s, pool=None)


class Exchange:
    """One call on its way: what goes up, what has come down, and whether there is time and room left.

    Args:
        call: The call.
        timeout: The driver's own, which ``call.timeout_s`` shortens.
        headers: The caller's own, for every call.
    """

    def __init__(self, call: Call, timeout: httpx.Timeout, headers: Mapping[str, str]) -> None:
        self._call = call
        self._own_headers = headers
        self._started = time.perf_counter()
        self._parts: list[bytes] = []
        self._received = 0
        self._response = httpx.Response(500)
        self.ends_at = None if call.timeout_s is None else time.monotonic() + call.timeout_s
        self._timeout = timeout
        if call.timeout_s is not None:
            self._timeout = httpx.Timeout(
                **{name: _least(own, call.timeout_s) for name, own in timeout.as_dict().items()}
            )

    def request(self, *, is_async: bool = False) -> httpx.Request:
        """What is sent.

        Raises:
            ClientError: for headers that cannot be.
        """
        headers = httpx.Headers(_HEADERS)
        try:
            headers.update(self._own_headers)
            headers.update(self._call.headers)
        except (UnicodeError, TypeError, AttributeError):
            # Not quoted: the value may be a credential.
            raise ClientError("`headers` cannot be sent", expected="names and values of ASCII characters") from None
        content: bytes | Iterator[bytes] | AsyncIterator[bytes] = self._call.body
        if self._call.body:
            headers["content-length"] = str(len(self._call.body))
            if self._call.progress is not None:
                content = _awaited(self._reported()) if is_async else self._reported()
        extensions = {"timeout": self._timeout.as_dict(), "ends_at": self.ends_at}
        return httpx.Request(
            self._call.method, self._call.url, headers=headers, content=content, extensions=extensions
        )

    def begin(self, response: httpx.Response) -> None:
        """Looks at a response's head before its body is read.

        Raises:
            BadAnswer: for a body that is compressed, or declared to be larger than what was asked for.
        """
        self._response = response
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise BadAnswer(
                "the answer came with compression that was not asked for",
                saw=f"Content-Encoding: {encoding[:60]}",
                expected="none, as Accept-Encoding: identity asks for",
                hint="a look at the proxy before the server, if there is one",
            )
        declared = _declared_bytes(response)
        if response.is_success and not self._call.is_parted and declared is not None:
            self._check_room(declared)

    def take(self, part: bytes) -> bool:
        """Keeps a part of the response's body; whether more of it is of use.

        Raises:
            BadAnswer: when it is larger than what was asked for.
            httpx.ReadTimeout: when the call has taken too long.
        """
        self._received += len(part)
        if self._response.is_success:
            self._check_room(self._received)
        self._parts.append(part)
        if self._call.progress is not None:
            self._call.progress("down", self._received, _declared_bytes(self._response))
        self.check_time()
        return self._response.is_success or self._received < _MOST_ERROR_BYTES

    def check_time(self) -> None:
        """Raises httpx.ReadTimeout when the call has taken too long, whoever did not look at the time."""
        if self.ends_at is not None and time.monotonic() > self.ends_at:
            raise httpx.ReadTimeout(f"more than {self._call.timeout_s:.3g} s")

    def arrived(self) -> Arrived:
        """The whole response, or of an error the beginning, once every part was taken."""
        body = b"".join(self._parts)
        return Arrived(
            self._response.status_code,
            dict(self._response.headers),
            body if self._response.is_success else body[:_MOST_ERROR_BYTES],
            time.perf_counter() - self._started,
            _moved_to(self._response, self._call.url),
        )

    def _check_room(self, count: int) -> None:
        if self._call.most_bytes is not None and count > self._call.most_bytes:
            raise BadAnswer(
                "the answer is larger than what was asked for can be",
                saw=f"{count} bytes or more",
                expected=f"at most {self._call.most_bytes} bytes",
            )

    def _reported(self) -> Iterator[bytes]:
        body, progress = memoryview(self._call.body), self._call.progress
        for start in range(0, len(body), _REPORT_BYTES):
            part = body[start : start + _REPORT_BYTES]
            yield bytes(part)
            if progress is not None:
                progress("up", start + len(part), len(body))


async def _awaited(parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def is_parted(response: httpx.Response) -> bool:
    """Whether a response comes in parts."""
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return response.is_success and media_type == "multipart/mixed"


def _declared_bytes(response: httpx.Response) -> int | None:
    declared = response.headers.get("content-length", "")
    return int(declared[:20]) if declared.isdecimal() else None


def _moved_to(response: httpx.Response, asked: httpx.URL) -> str | None:
    """Where a redirect leads, without secrets; None where it is no redirect."""
    if not response.has_redirect_location:
        return None
    try:
        url = asked.join(response.headers["location"])
        return str(url.copy_with(userinfo=b"", query=None, fragment=None))
    except (httpx.InvalidURL, ValueError, TypeError):
        return "an address that cannot be one"


def _least(own: float | None, limit: float) -> float:
    return limit if own is None else min(own, limit)
