"""Bodies coming in: all of them together within one bound, and no sender for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import fail_after
from starlette.requests import Request

from ..errors import Overloaded, RequestError, TooSlow
from .limits import Limits

#: Slower than any line on which somebody would wait for a picture; a body that comes in drops is an attack.
_SLOWEST_BYTES_PER_S = 4096


#: Bytes that are joined on the event loop; that takes a millisecond.
_JOINED_HERE = 4 * 2**20


class _Received:
    """A body as it comes.

    Attributes:
        nbytes: What has come.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.nbytes = 0

    def add(self, part: bytes) -> None:
        """Takes the next part."""
        self._parts.append(part)
        self.nbytes += len(part)

    async def joined(self) -> bytes:
        """All of it; the parts are let go, so that nothing is held twice while the body is read."""
        parts, self._parts = self._parts, []
        if self.nbytes <= _JOINED_HERE:
            return b"".join(parts)
        # In a thread, because joining as much gives the interpreter's lock back.
        return await asyncio.to_thread(b"".join, parts)


class Intake:
    """Reads bodies.

    Attributes:
        held_bytes: Of all bodies that are being received or read now.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.held_bytes = 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request, counted until the block ends.

        What has come is counted, not what was declared: a sender who declares much and sends nothing takes no room
        from others.

        Raises:
            TooLarge: when it is larger than one body may be.
            Overloaded: when there is no room for it beside the others.
            TooSlow: when its sender pauses or drips.
            RequestError: when its sender leaves.
        """
        received = _Received()
        try:
            declared = request.headers.get("content-length", "")
            if declared.isdecimal():
                self._limits.check_body(int(declared[:20]))
                self._check_room(int(declared[:20]))
            await self._receive(request, received)
            yield await received.joined()
        finally:
            self.held_bytes -= received.nbytes

    def _check_room(self, more_bytes: int) -> None:
        if self.held_bytes + more_bytes > self._limits.max_inflight_bytes:
            raise Overloaded(
                "too many bytes are being received already",
                retry_after_s=1,
                hint="again after the seconds in Retry-After, or a server with a higher --max-inflight-mib",
            )

    async def _receive(self, request: Request, received: _Received) -> None:
        """Fills ``received``, whose bytes are counted as they come."""
        pause_s, now = self._limits.body_pause_s, asyncio.get_running_loop().time
        begun = now()
        try:
            with fail_after(pause_s) as patience:
                while True:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise RequestError("the body was cut short", saw=f"{received.nbytes} bytes")
                    if part := message.get("body", b""):
                        self._check_room(len(part))
                        received.add(part)
                        self.held_bytes += len(part)
                        self._limits.check_body(received.nbytes)
                    if not message.get("more_body", False):
                        return
                    patience.deadline = min(now(), begun + received.nbytes / _SLOWEST_BYTES_PER_S) + pause_s
        except TimeoutError:
            raise TooSlow(
                "the body stopped coming, or nearly so",
                saw=f"{received.nbytes} bytes in {now() - begun:.0f} s",
                expected=f"no pause of {pause_s:g} s, and {_SLOWEST_BYTES_PER_S} bytes a second after that",
            ) from None
