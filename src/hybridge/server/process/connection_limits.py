"""All connections together: how many there may be, and who leaves when one more comes.

Those without a request leave first, the one that has been so for longest before the others; then those who do not
read what they asked for.  Beyond the limit a few more are let in that may ask how the server is, and nothing else.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Protocol

from uvicorn.server import ServerState

#: Connections beyond the limit, for probes; each is without a request for as long as its head takes to come.
_FOR_PROBES = 16

#: Seconds after which a client that has read nothing may have to leave for a newcomer.
_READING_PAUSE_S = 2

_PROBE = re.compile(rb"(/k/[^/]*)?/(health|ready|metrics)(\?.*)?")


def is_probe(target: bytes) -> bool:
    """Whether a request's target asks how the server is."""
    return _PROBE.fullmatch(target) is not None


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What a peer may do besides its requests.

    Attributes:
        max_connections: At one time.
        max_head_bytes: Of the request line and the headers, and of whatever frames a body in chunks.
        max_headers: Their number; diffusers' client sends six.
        head_timeout_s: Seconds for the handshake of TLS; and from there, or the first byte of a later request, to
            the headers' end.
        body_pause_s: Seconds in which a client must read some of its answer, and in which it may go on sending
            what it was refused.
        max_unread_bytes: Of all answers that their clients have not read yet.
    """

    max_connections: int = 4096
    max_head_bytes: int = 32 * 1024
    max_headers: int = 100
    head_timeout_s: float = 10
    body_pause_s: float = 30
    max_unread_bytes: int = 1024 * 1024**2


class Peer(Protocol):
    """Whoever is connected."""

    @property
    def unread_bytes(self) -> int:
        """Of its answers, those that wait for it to read."""

    def abort(self) -> None:
        """Hangs up at once, whatever is left to be sent."""


class Connections(ServerState):
    """uvicorn's state that all connections share.

    Attributes:
        limits: On each of them and on all.
        idle: Those without a request, the oldest first.
        unread: Those whose answers wait to be read, since when in the loop's time, the oldest first.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        super().__init__()
        self.limits = limits
        self.idle: dict[Peer, None] = {}
        self.unread: dict[Peer, float] = {}

    @property
    def is_over_limit(self) -> bool:
        """Whether there are so many connections that newcomers may only ask how the server is."""
        return len(self.connections) > self.limits.max_connections

    def be_idle(self, peer: Peer) -> None:
        """Puts a connection behind all others that have no request."""
        self.idle.pop(peer, None)
        self.idle[peer] = None

    def forget(self, peer: Peer) -> None:
        """Leaves out a connection that is lost."""
        self.idle.pop(peer, None)
        self.unread.pop(peer, None)

    def make_room(self, newcomer: Peer) -> bool:
        """Whether one more connection may stay, for which another one may have had to leave."""
        if not self.is_over_limit:
            return True
        oldest = next((peer for peer in self.idle if peer is not newcomer), None) or self._longest_unread()
        if oldest is not None:
            self._send_away(oldest)
        return len(self.connections) <= self.limits.max_connections + _FOR_PROBES

    def be_unread(self, peer: Peer) -> None:
        """Counts an answer that waits to be read; of too many, the one that waited longest is given up."""
        self.unread.setdefault(peer, asyncio.get_running_loop().time())
        while sum(each.unread_bytes for each in self.unread) > self.limits.max_unread_bytes:
            oldest = self._longest_unread()
            if oldest is None:
                return
            self._send_away(oldest)

    def _longest_unread(self) -> Peer | None:
        oldest = next(iter(self.unread), None)
        if oldest is None or asyncio.get_running_loop().time() - self.unread[oldest] < _READING_PAUSE_S:
            return None
        return oldest

    def _send_away(self, peer: Peer) -> None:
        self.forget(peer)
        self.connections.discard(peer)  # now: its own farewell comes a turn later
        peer.abort()  # which waits for nobody to read, or to say farewell in TLS
