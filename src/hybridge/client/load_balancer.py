"""Which of several servers is asked next.  Arithmetic on what was seen of them; nothing here waits or calls.

The one owner of what a client knows about its servers: how fast each answers, how busy it says it is, and whether
it is worth asking at all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from ..errors import BadAnswer, ClientError, ServerRefused, ServerTimeout, ServerUnreachable, ShuttingDown
from .address import Address

#: How much the latest answer counts in the running mean of a server's speed.
_SMOOTHING = 0.3

#: No server is left alone for longer, whatever it asked for: nobody would find out that it is well again.
_LONGEST_REST_S = 600.0

#: No answer is faster, so that a weight stays a number.
_SHORTEST_S = 1e-3


@dataclass(frozen=True, slots=True)
class Breaker:
    """When a server is no longer asked, and when it is tried again.

    Args:
        failures: In a row, after which its circuit opens.
        pause_s: Seconds until one request is let through to see; if that fails too, the pause begins again.
    """

    failures: int = 3
    pause_s: float = 10.0


@dataclass(slots=True, eq=False)
class Server:
    """One server, and what is known about it.  Changed by its :class:`Fleet` alone.

    Attributes:
        address: Where it is.
        in_flight: Calls of this client that it has not answered yet.
        speed_s: Running mean of the seconds that an answer takes, without the time in its waiting line.
        queue_s: How long the latest call stood in its waiting line, by its own word (Server-Timing).
        failures: In a row.
        rests_until: On the fleet's clock: before that it does not want to be asked, or its circuit is open.
        credit: Its turn in the weighted round.
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

    Smooth weighted round robin, as nginx has it; a weight is 1 / ((speed + declared wait) · (calls in flight + 1)).
    A server whose speed is not known yet counts as the fastest.  Safe to share between threads.

    Args:
        addresses: At least one.
        breaker: When to leave a server alone.
        clock: Seconds that only grow.
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
        """The server to ask now, counted as in flight until :meth:`answered`, :meth:`failed` or :meth:`released`.

        Those that ``failed`` this call already are asked last; if all rest, whoever rests for the shortest.
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
        """Whether a server that has not failed this call is worth asking at once."""
        now = self.clock()
        with self._lock:
            return any(s not in failed and self._is_awake(s, now) for s in self.servers)

    def answered(self, server: Server, seconds: float | None, queue_s: float = 0.0) -> None:
        """It answered after ``seconds`` (None: not known), of which ``queue_s`` were spent in its waiting line."""
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
        """It did not answer, or refused: it rests for as long as it asked to, or once its circuit opens."""
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
        """The call was given up; nothing was learnt."""
        with self._lock:
            server.in_flight -= 1

    def has_hope(self) -> bool:
        """Whether any circuit is closed, or has been open for long enough to try again."""
        now = self.clock()
        with self._lock:
            return any(not self._is_open(s) or self._is_awake(s, now) for s in self.servers)

    def soonest_s(self) -> float:
        """Seconds until the first of the servers no longer rests."""
        now = self.clock()
        with self._lock:
            return max(0.0, min(server.rests_until for server in self.servers) - now)

    def _is_open(self, server: Server) -> bool:
        return server.failures >= self._breaker.failures

    def _is_awake(self, server: Server, now: float) -> bool:
        # Half-open: its pause is over, and one call at a time finds out.
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
    """Whether a failure says that the server itself does not work, not that it cannot do this one thing now."""
    is_leaving = isinstance(error, ServerRefused) and error.code == ShuttingDown.__name__
    return is_leaving or isinstance(error, (ServerUnreachable, ServerTimeout, BadAnswer))
