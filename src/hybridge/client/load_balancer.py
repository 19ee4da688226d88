"""Choose the next of several servers, from observations of them; no code here waits or makes calls.

This module has all of a client's knowledge about its servers: each one's speed, its reported queue time, and
whether it should be asked at all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from ..errors import BadAnswer, ClientError, ServerRefused, ServerTimeout, ServerUnreachable, ShuttingDown
from .address import Address

#: Weight of the latest answer in the running mean of a server's speed.
_SMOOTHING = 0.3

#: Longest time for which a server is not asked, even if it requests more: its recovery has to be noticed.
_LONGEST_REST_S = 600.0

#: Lower bound of an answer's time, so that a weight stays finite.
_SHORTEST_S = 1e-3


@dataclass(frozen=True, slots=True)
class Breaker:
    """The circuit breaker: when a server is no longer asked, and when it is tried again.

    Args:
        failures: Number of consecutive failures after which its circuit opens.
        pause_s: Seconds until one test request is sent; if that fails, too, the pause begins again.
    """

    failures: int = 3
    pause_s: float = 10.0


@dataclass(slots=True, eq=False)
class Server:
    """One server and the client's knowledge about it.  Only its :class:`Fleet` changes it.

    Attributes:
        address: The server's address.
        in_flight: Number of this client's calls that it has not answered yet.
        speed_s: Running mean of the seconds that an answer takes, without the time in its queue.
        queue_s: Seconds that the latest call waited in its queue, as the server reports them (Server-Timing).
        failures: Number of consecutive failures.
        rests_until: Time on the fleet's clock before which the server asked not to be called, or its circuit is
            open.
        credit: Its credit in the weighted round robin.
    """

    address: Address
    in_flight: int = 0
    speed_s: float | None = None
    queue_s: float = 0.0
    failures: int = 0
    rests_until: float = 0.0
    credit: float = field(default=0.0, repr=False)


class Fleet:
    """Servers that are asked in turn, each in proportion to how soon it is likely to answer.

    This is smooth weighted round robin as in nginx; a weight is 1 / ((speed + reported wait) · (calls in flight +
    1)). A server whose speed is not known yet counts as the fastest.  It is safe to share between threads.

    Args:
        addresses: The servers' addresses, at least one.
        breaker: The circuit breaker.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        *,
        breaker: Breaker | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.servers = tuple(Server(address) for address in addresses)
        self.clock = clock
        self._breaker = breaker or Breaker()
        self._lock = threading.Lock()

    def lease(self, failed: Collection[Server] = ()) -> Server:
        """Return the server to ask now; the call is in flight until it is answered, failed or released.

        Servers in ``failed``, which have failed this call already, are asked last.  If all servers rest, the one
        with the shortest remaining rest is returned.
        """
        now = self.clock()
        with self._lock:
            awake = [s for s in self.servers if self._is_awake(s, now) and s not in failed]
            if awake:
                chosen = self._next_in_turn(awake)
            else:
                chosen = min(self.servers, key=lambda server: (server in failed, server.rests_until))
            chosen.in_flight += 1
            return chosen

    def can_spare(self, failed: Collection[Server]) -> bool:
        """Return whether a server that has not failed this call can be asked immediately."""
        now = self.clock()
        with self._lock:
            return any(s not in failed and self._is_awake(s, now) for s in self.servers)

    def answered(self, server: Server, seconds: float | None, queue_s: float = 0.0) -> None:
        """Record an answer after ``seconds`` (None if not known), of which it waited ``queue_s`` in the queue."""
        with self._lock:
            server.in_flight -= 1
            server.failures, server.rests_until = 0, 0.0
            if seconds is None:
                return
            own_s = max(seconds - queue_s, _SHORTEST_S)
            server.speed_s = (
                own_s if server.speed_s is None else server.speed_s + _SMOOTHING * (own_s - server.speed_s)
            )
            server.queue_s = max(queue_s, 0.0)

    def failed(self, server: Server, error: ClientError) -> None:
        """Record a failure: the server rests for the time that it requested, or when its circuit opens."""
        rest_s = (error.retry_after_s or 0.0) if isinstance(error, ServerRefused) else 0.0
        with self._lock:
            server.in_flight -= 1
            if _is_ill(error):
                server.failures += 1
                if server.failures >= self._breaker.failures:
                    rest_s = max(rest_s, self._breaker.pause_s)
            else:
                server.failures = 0
            server.rests_until = self.clock() + min(rest_s, _LONGEST_REST_S) if rest_s else 0.0

    def released(self, server: Server) -> None:
        """Record that a call was given up, which says nothing about the server."""
        with self._lock:
            server.in_flight -= 1

    def has_hope(self) -> bool:
        """Return whether any circuit is closed, or has been open for long enough to try again."""
        now = self.clock()
        with self._lock:
            return any(not self._is_open(s) or self._is_awake(s, now) for s in self.servers)

    def soonest_s(self) -> float:
        """Return the seconds until the first of the servers no longer rests."""
        now = self.clock()
        with self._lock:
            return max(0.0, min(server.rests_until for server in self.servers) - now)

    def _is_open(self, server: Server) -> bool:
        return server.failures >= self._breaker.failures

    def _is_awake(self, server: Server, now: float) -> bool:
        # Half-open: the pause is over, and one call at a time tests the server.
        return now >= server.rests_until and not (self._is_open(server) and server.in_flight)

    def _next_in_turn(self, servers: Sequence[Server]) -> Server:
        known = [s.speed_s for s in servers if s.speed_s is not None]
        fastest = min(known, default=1.0)
        weights = [
            1 / (((fastest if s.speed_s is None else s.speed_s) + s.queue_s) * (s.in_flight + 1)) for s in servers
        ]
        total = sum(weights)
        for server, weight in zip(servers, weights, strict=True):
            server.credit += weight / total
        chosen = max(servers, key=lambda server: server.credit)
        chosen.credit -= 1
        return chosen


def _is_ill(error: ClientError) -> bool:
    """Return whether a failure means that the server itself does not work, not just this call."""
    is_leaving = isinstance(error, ServerRefused) and error.code == ShuttingDown.__name__
    return is_leaving or isinstance(error, (ServerUnreachable, ServerTimeout, BadAnswer))
