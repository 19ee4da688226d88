"""All connections together: how many there may be, and which is closed when one more comes.

Connections without a request are closed first, the longest idle before the others; then those whose client does not
read its answer.  Beyond the limit a few more are accepted, which may only ask for the server's health.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Protocol

from uvicorn.server import ServerState

#: Connections beyond the limit, for health checks; each counts as idle until its head is complete.
_FOR_PROBES = 16

#: Seconds after which the connection of a client that has read nothing may be closed for a new one.
_READING_PAUSE_S = 2

_PROBE = re.compile(rb"(/k/[^/]*)?/(health|ready|metrics)(\?.*)?")


def is_probe(target: bytes) -> bool:
    """Whether a request's target is a health check."""
    return _PROBE.fullmatch(target) is not None


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits on connections.

    Attributes:
        max_connections: Number of connections at one time.
        max_head_bytes: Bytes of the request line and the headers, and of the framing of a body in chunks.
        max_headers: Number of headers; diffusers' client sends six.
        head_timeout_s: Seconds for the handshake of TLS; and from there, or the first byte of a later request, to
            the headers' end.
        body_pause_s: Seconds in which a client must read some of its answer, and in which it may go on sending
            a body that was refused.
        max_unread_bytes: Bytes of all answers that their clients have not read yet.
    """

    max_connections: int = 4096
    max_head_bytes: int = 32 * 1024
    max_headers: int = 100
    head_timeout_s: float = 10
    body_pause_s: float = 30
    max_unread_bytes: int = 1024 * 1024**2


class Peer(Protocol):
    """A connection, with or without a finished TLS handshake."""

    @property
    def unread_bytes(self) -> int:
        """Bytes of its answers that the client has not read yet."""

    def abort(self) -> None:
        """Close the connection at once, whatever is left to be sent."""


class Connections(ServerState):
    """uvicorn's state that all connections share.

    Attributes:
        limits: Limits on each and on all of them.
        idle: Connections without a request, the longest idle first.
        unread: Connections with unread answers and since when, in the event loop's time; the oldest first.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        super().__init__()
        self.limits = limits
        self.idle: dict[Peer, None] = {}
        self.unread: dict[Peer, float] = {}

    @property
    def is_over_limit(self) -> bool:
        """Whether there are so many connections that new ones may only be used for health checks."""
        return len(self.connections) > self.limits.max_connections

    def be_idle(self, peer: Peer) -> None:
        """Mark a connection as idle, as the latest."""
        self.idle.pop(peer, None)
        self.idle[peer] = None

    def forget(self, peer: Peer) -> None:
        """Remove a connection that is lost."""
        self.idle.pop(peer, None)
        self.unread.pop(peer, None)

    def make_room(self, newcomer: Peer) -> bool:
        """Close another connection for a new one if need be; return whether the new one may stay."""
        if not self.is_over_limit:
            return True
        oldest = next((peer for peer in self.idle if peer is not newcomer), None) or self._longest_unread()
        if oldest is not None:
            self._send_away(oldest)
        return len(self.connections) <= self.limits.max_connections + _FOR_PROBES

    def be_unread(self, peer: Peer) -> None:
        """Count an unread answer; if there are too many bytes, close the connection that has waited longest."""
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
