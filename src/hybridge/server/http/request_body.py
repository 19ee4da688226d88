"""Reads request bodies within limits: on the bytes of all bodies together, and on the time of each.

When there is no room left, the client that holds most bytes loses its oldest unfinished body, if a client that
holds less needs the room.  So a few clients that send much and slowly cannot keep others out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import CancelScope
from starlette.requests import Request

from ...errors import ClientGone, Overloaded, TooSlow
from ..scheduling.limits import SLOWEST_BYTES_PER_S, Limits
from .request_headers import client_of

#: Least speed over a whole body, after as many pauses as it may have: below it, a large body would take hours.
_SLOWEST_MEAN_BYTES_PER_S = 16 * SLOWEST_BYTES_PER_S
_PAUSES = 10

#: Bytes that are joined on the event loop; that takes a millisecond.
_JOINED_HERE = 4 * 2**20


class _Received:
    """A body while it is received.

    Args:
        client: Who sends it.

    Attributes:
        client: Who sends it.
        nbytes: Bytes that were received.
        patience: The cancel scope of its reception.
        is_coming: Whether more of it may come.
        is_given_up: Whether it was dropped, because others needed its room.
    """

    def __init__(self, client: str) -> None:
        self._parts: list[bytes] = []
        self.client = client
        self.nbytes = 0
        self.patience = CancelScope()
        self.is_coming = True
        self.is_given_up = False

    def give_up(self) -> int:
        """Drop what was received, and return the number of its bytes."""
        freed, self.nbytes = self.nbytes, 0
        self._parts.clear()
        self.is_given_up, self.is_coming = True, False
        self.patience.cancel()
        return freed

    def add(self, part: bytes) -> None:
        """Add the next part."""
        self._parts.append(part)
        self.nbytes += len(part)

    async def joined(self) -> bytes:
        """Return the whole body and drop its parts, so that nothing is held twice while the body is read."""
        parts, self._parts = self._parts, []
        if self.nbytes <= _JOINED_HERE:
            return b"".join(parts)
        # In a thread, because joining as much gives the interpreter's lock back.
        return await asyncio.to_thread(b"".join, parts)


class BodyReader:
    """Reads bodies.

    Attributes:
        held_bytes: Bytes of all bodies that are being received or read now.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.held_bytes = 0
        self._bodies: dict[_Received, None] = {}  # the oldest first

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request, counted until the block ends.

        Bytes that were received count, not those that were declared: a client that declares much and sends nothing
        takes no room from others.

        Raises:
            TooLarge: when it is above the limit of one body.
            Overloaded: when there is no room for it beside the others; may come in the middle of it.
            TooSlow: when the client pauses for too long or sends too slowly.
            ClientGone: when the client closes the connection.
        """
        received = _Received(client_of(request))
        self._bodies[received] = None
        try:
            declared = request.headers.get("content-length", "")
            if declared.isdecimal():
                self._limits.check_body(int(declared[:20]))
                if not self._has_room(int(declared[:20])) and self._heaviest(received, int(declared[:20])) is None:
                    raise _no_room()
            await self._receive(request, received)
            yield await received.joined()
        finally:
            self.held_bytes -= received.nbytes
            del self._bodies[received]

    def _has_room(self, more_bytes: int) -> bool:
        return self.held_bytes + more_bytes <= self._limits.max_inflight_bytes

    def _make_room(self, received: _Received, more_bytes: int) -> None:
        """Make room for a part that has come; other bodies may be dropped for it."""
        while not self._has_room(more_bytes):
            heaviest = self._heaviest(received, more_bytes)
            if heaviest is None:
                raise _no_room()
            self.held_bytes -= heaviest.give_up()

    def _heaviest(self, received: _Received, more_bytes: int) -> _Received | None:
        """Return the oldest body of the client that holds most, if it holds more than this body's client would."""
        held: dict[str, int] = {}
        for body in self._bodies:
            held[body.client] = held.get(body.client, 0) + body.nbytes
        bound = held[received.client] + more_bytes
        giving = [body for body in self._bodies if body.is_coming and body.nbytes and held[body.client] > bound]
        return max(giving, key=lambda body: held[body.client], default=None)

    async def _receive(self, request: Request, received: _Received) -> None:
        """Receive the body into ``received``, counting its bytes."""
        pause_s, now = self._limits.body_pause_s, asyncio.get_running_loop().time
        begun = now()
        until = begun + pause_s
        with received.patience as patience:
            while received.is_coming:
                # However much came before: at least so much in every stretch of time, and in all.
                latest = begun + _PAUSES * pause_s + received.nbytes / _SLOWEST_MEAN_BYTES_PER_S
                patience.deadline = min(until, latest)
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone(
                        "the client closed the connection before its body was complete",
                        saw=f"{received.nbytes} bytes",
                    )
                if part := message.get("body", b""):
                    self._make_room(received, len(part))
                    received.add(part)
                    self.held_bytes += len(part)
                    self._limits.check_body(received.nbytes)
                    until = min(now() + pause_s, until + len(part) / SLOWEST_BYTES_PER_S)
                received.is_coming = message.get("more_body", False)
        if received.is_given_up:
            raise _no_room()
        if patience.cancelled_caught:
            raise TooSlow(
                "the body stopped coming, or nearly so",
                saw=f"{received.nbytes} bytes in {now() - begun:.0f} s",
                expected=f"no pause of {pause_s:g} s, at least {SLOWEST_BYTES_PER_S} bytes a second, and of a body"
                f" that takes more than {_PAUSES * pause_s:g} s {_SLOWEST_MEAN_BYTES_PER_S} on average",
            )


def _no_room() -> Overloaded:
    return Overloaded(
        "too many bytes are being received already",
        retry_after_s=1,
        hint="again after the seconds in Retry-After, or a server with a higher --max-inflight-mib",
    )
