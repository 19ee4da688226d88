"""Bodies coming in: all of them together within one bound, and no sender for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import fail_after
from starlette.requests import ClientDisconnect, Request

from ..errors import Overloaded, RequestError, TooSlow
from .limits import Limits

#: Slower than any line on which somebody would wait for a picture; a body that comes in drops is an attack.
_SLOWEST_BYTES_PER_S = 4096


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
        held = 0
        try:
            declared = request.headers.get("content-length", "")
            if declared.isdecimal():
                self._limits.check_body(int(declared[:20]))
                self._check_room(int(declared[:20]))
            parts: list[bytes] = []
            async for part in self._parts(request):
                self._check_room(len(part))
                held += len(part)
                self.held_bytes += len(part)
                self._limits.check_body(held)
                parts.append(part)
            yield b"".join(parts)
        finally:
            self.held_bytes -= held

    def _check_room(self, more_bytes: int) -> None:
        if self.held_bytes + more_bytes > self._limits.max_inflight_bytes:
            raise Overloaded(
                "too many bytes are being received already",
                retry_after_s=1,
                hint="again after the seconds in Retry-After, or a server with a higher --max-inflight-mib",
            )

    async def _parts(self, request: Request) -> AsyncIterator[bytes]:
        pause_s, now = self._limits.body_pause_s, asyncio.get_running_loop().time
        received, begun = 0, now()
        stream = request.stream()
        while True:
            allowed_s = pause_s + received / _SLOWEST_BYTES_PER_S - (now() - begun)
            try:
                with fail_after(max(0, min(pause_s, allowed_s))):
                    part = await anext(stream, None)
            except ClientDisconnect:
                raise RequestError("the body was cut short", saw=f"{received} bytes") from None
            except TimeoutError:
                raise TooSlow(
                    "the body stopped coming, or nearly so",
                    saw=f"{received} bytes in {now() - begun:.0f} s",
                    expected=f"no pause of {pause_s:g} s, and {_SLOWEST_BYTES_PER_S} bytes a second after that",
                ) from None
            if part is None:
                return
            received += len(part)
            yield part
