"""The HTTP code shared by the blocking and the async client: timeouts, size limits and progress of bodies."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping

import httpx

from .. import __version__
from ..errors import BadAnswer, ClientError
from .flow_types import Arrived, Call

#: Long enough for a large video on a slow machine; SD.Next has the same timeout.
ANSWER_TIMEOUT_S = 300.0

#: A running machine accepts a connection within seconds, even if it is busy.
CONNECT_TIMEOUT_S = 10.0

#: Most bytes of an error's body that are read; ours have a few hundred.
_MOST_ERROR_BYTES = 1 << 16

#: Bytes between two reports of an upload: a hundredth of a large tensor, and more than a packet.
_REPORT_BYTES = 1 << 18

#: Headers of every call.  Compression would let a few bytes expand to gigabytes, and saves nothing on latents.
_HEADERS = {"accept": "*/*", "accept-encoding": "identity", "user-agent": f"hybridge/{__version__}"}


def timeout_of(timeout: float | httpx.Timeout | None) -> httpx.Timeout:
    """Return an ``httpx.Timeout`` with a short time for connecting."""
    if isinstance(timeout, httpx.Timeout):
        return timeout
    connect_s = CONNECT_TIMEOUT_S if timeout is None else min(timeout, CONNECT_TIMEOUT_S)
    # Waiting for a connection of our own pool is not the server's fault, and ends when another call ends.
    return httpx.Timeout(timeout, connect=connect_s, pool=None)


class Exchange:
    """The transfer of one call: the request, the received body, and the checks of time and size.

    Args:
        call: The call.
        timeout: The client's timeout, which ``call.timeout_s`` shortens.
        headers: The caller's headers for every call.
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

    def request(self, *, is_async: bool = False, abort: object = None) -> httpx.Request:
        """Return the request to send; ``abort`` can end it, see :class:`.network.Network`.

        Raises:
            ClientError: for headers that cannot be sent.
        """
        headers = httpx.Headers(_HEADERS)
        try:
            headers.update(self._own_headers)
            headers.update(self._call.headers)
        except (UnicodeError, TypeError, AttributeError):
            # The value is not shown: it may be a credential.
            raise ClientError("`headers` cannot be sent", expected="names and values of ASCII characters") from None
        content: bytes | Iterator[bytes] | AsyncIterator[bytes] = self._call.body
        if self._call.body:
            headers["content-length"] = str(len(self._call.body))
            if self._call.progress is not None:
                content = _awaited(self._reported()) if is_async else self._reported()
        extensions = {"timeout": self._timeout.as_dict(), "ends_at": self.ends_at, "abort": abort}
        return httpx.Request(
            self._call.method, self._call.url, headers=headers, content=content, extensions=extensions
        )

    def begin(self, response: httpx.Response) -> None:
        """Check a response's head before its body is read.

        Raises:
            BadAnswer: for a body that is compressed, or declared to be larger than any answer to the request.
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
        if response.is_success and self._call.opens != "parts" and declared is not None:
            self._check_room(declared)

    def take(self, part: bytes) -> bool:
        """Store a part of the response's body, and return whether more of it is needed.

        Raises:
            BadAnswer: when it is larger than any answer to the request.
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
        """Raise httpx.ReadTimeout when the call has taken too long, even if the transport did not notice."""
        if self.ends_at is not None and time.monotonic() > self.ends_at:
            raise httpx.ReadTimeout(f"more than {self._call.timeout_s:.3g} s")

    def arrived(self) -> Arrived:
        """Return the complete response (for an error, its beginning) after all parts were taken."""
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


def is_opened(call: Call, response: httpx.Response) -> bool:
    """Return whether the flow reads this response as it arrives."""
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not response.is_success:
        return False
    is_file = media_type.startswith(("video/", "image/"))
    return is_file if call.opens == "file" else call.opens == "parts" and media_type == "multipart/mixed"


def _declared_bytes(response: httpx.Response) -> int | None:
    declared = response.headers.get("content-length", "")
    return int(declared[:20]) if declared.isdecimal() else None


def _moved_to(response: httpx.Response, asked: httpx.URL) -> str | None:
    """Return the target of a redirect, without secrets; None if it is not a redirect."""
    if not response.has_redirect_location:
        return None
    try:
        url = asked.join(response.headers["location"])
        return str(url.copy_with(userinfo=b"", query=None, fragment=None))
    except (httpx.InvalidURL, ValueError, TypeError):
        return "an address that cannot be one"


def _least(own: float | None, limit: float) -> float:
    return limit if own is None else min(own, limit)
