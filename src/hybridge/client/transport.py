"""What the blocking and the async driver share of HTTP: timeouts, trust, and bodies that report their progress."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from urllib.request import getproxies

import httpx

from .address import Address
from .steps import Arrived, Call

#: Long enough for a large video on a slow machine; SD.Next waits as long.
ANSWER_TIMEOUT_S = 300.0

#: A machine that is up says so within seconds, however busy it is.
CONNECT_TIMEOUT_S = 10.0

#: httpx drops an idle connection after 5 s, less than it takes to make the next latents.
LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=60.0)

#: Between two reports of an upload: a hundredth of a large tensor, and more than a packet.
_REPORT_BYTES = 1 << 18


def timeout_of(timeout: float | httpx.Timeout | None) -> httpx.Timeout:
    """httpx's own, in which connecting never takes long."""
    if isinstance(timeout, httpx.Timeout):
        return timeout
    connect_s = CONNECT_TIMEOUT_S if timeout is None else min(timeout, CONNECT_TIMEOUT_S)
    # Waiting for a connection of our own pool is no fault of the server's, and ends when another call does.
    return httpx.Timeout(timeout, connect=connect_s, pool=None)


def trust(addresses: Iterable[Address]) -> ssl.SSLContext | bool:
    """What to verify certificates with."""
    # Reading the certificate store takes 35 ms, a tenth of a decode, and remote_decode would do it for every call.
    # Plain HTTP without a proxy has no use for it; a context without roots trusts nobody, should one arise.
    needs_store = any(address.url.scheme == "https" for address in addresses) or bool(getproxies())
    return True if needs_store else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class Exchange:
    """One call on its way: what goes up, what has come down, and whether there is time left.

    Args:
        call: The call.
        timeout: The driver's own, which ``call.timeout_s`` shortens.
    """

    def __init__(self, call: Call, timeout: httpx.Timeout) -> None:
        self._call = call
        self._started = time.perf_counter()
        self._parts: list[bytes] = []
        self._received = 0
        self.timeout = timeout
        if call.timeout_s is not None:
            self.timeout = httpx.Timeout(
                **{name: _least(own, call.timeout_s) for name, own in timeout.as_dict().items()}
            )
        self.headers = {**call.headers}
        if call.body:
            self.headers["content-length"] = str(len(call.body))

    def body(self) -> bytes | Iterator[bytes]:
        """The body for a blocking call."""
        return self._call.body if self._call.progress is None else self._reported()

    def async_body(self) -> bytes | AsyncIterator[bytes]:
        """The body for an async call."""
        return self._call.body if self._call.progress is None else _awaited(self._reported())

    def take(self, response: httpx.Response, part: bytes) -> None:
        """Keeps a part of the response's body.

        Raises:
            httpx.ReadTimeout: when the call has taken too long; httpx itself only looks at single reads.
        """
        self._parts.append(part)
        self._received += len(part)
        if self._call.progress is not None:
            declared = response.headers.get("content-length", "")
            is_plain = declared.isdecimal() and "content-encoding" not in response.headers
            self._call.progress("down", self._received, int(declared) if is_plain else None)
        if self._call.timeout_s is not None and time.perf_counter() - self._started > self._call.timeout_s:
            raise httpx.ReadTimeout(f"more than {self._call.timeout_s:.3g} s", request=response.request)

    def arrived(self, response: httpx.Response) -> Arrived:
        """The whole response, once every part was taken."""
        moved = response.next_request
        return Arrived(
            response.status_code,
            dict(response.headers),
            b"".join(self._parts),
            time.perf_counter() - self._started,
            None if moved is None else str(moved.url.copy_with(userinfo=b"", query=None, fragment=None)),
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


def _least(own: float | None, limit: float) -> float:
    return limit if own is None else min(own, limit)
