"""Choose the next of several servers, from observations of them; no code here waits or makes calls.

This module has all of a client's knowledge about its servers: each one's speed, its reported queue time, and
whether it should be asked at all.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from ..errors import (
    BadAnswer,
    ClientError,
    ServerRefused,
    ServerTimeout,
    ServerUnreachable,
    ShuttingDown,
    UnknownModel,
)
from .address import Address

#: Weight of the latest answer in the running mean of a server's speed.
_SMOOTHING = 0.3

#: Longest time for which a server is not asked, even if it requests more: its recovery has to be noticed.
_LONGEST_REST_S = 600.0

#: Seconds for which a server is not asked for a model that it did not have; it may be started again with it.
_LACKING_S = 60.0

#: A server that holds a model is passed over for the next one while this many of the client's calls are in flight …
_MOST_IN_FLIGHT = 2

#: … or while its latest call waited in its queue for longer than the work took, for this many seconds.
_QUEUE_IS_NEWS_S = 5.0

#: A server that takes this many times as long as the fastest for a model does not hold it.
_SLOW = 2.0

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
        model_speed_s: As ``speed_s``, for each model.
        queue_seen_at: Time on the fleet's clock of the latest answer.
        lacking: The models that it did not have, with the time until which it is not asked for them.
    """

    address: Address
    in_flight: int = 0
    speed_s: float | None = None
    queue_s: float = 0.0
    failures: int = 0
    rests_until: float = 0.0
    credit: float = field(default=0.0, repr=False)
    model_speed_s: dict[str, float] = field(default_factory=dict, repr=False)
    queue_seen_at: float = field(default=0.0, repr=False)
    lacking: dict[str, float] = field(default_factory=dict, repr=False)


class Fleet:
    """Servers that are asked in turn, each in proportion to how soon it is likely to answer.

    This is smooth weighted round robin as in nginx; a weight is 1 / ((speed + reported wait) · (calls in flight +
    1)). A server whose speed is not known yet counts as the fastest.  It is safe to share between threads.

    *Models.*  A server that does not have a model is not asked for it.  A client that calls several models keeps
    each on one server while that is not busy, so that not every server has to load all of them: on the one with the
    highest hash of address and model (rendezvous hashing).  Clients agree on it without talking, and when a server
    comes or goes, only the models move that it gets or had.

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
        self._models: set[str] = set()

    def lease(self, failed: Collection[Server] = (), model: str | None = None) -> Server:
        """Return the server to ask now; the call is in flight until it is answered, failed or released.

        Servers in ``failed``, which have failed this call already, are asked last.  If all servers rest, the one
        with the shortest remaining rest is returned.
        """
        now = self.clock()
        with self._lock:
            awake = [s for s in self.servers if self._is_awake(s, now) and s not in failed]
            if model is not None:
                self._models.add(model)
                # If all lack it, any may be asked: its refusal says more than an error made here.
                awake = [s for s in awake if now >= s.lacking.get(model, 0.0)] or awake
            if awake:
                chosen = self._holder(awake, model, now) or self._next_in_turn(awake)
            else:
                chosen = min(self.servers, key=lambda server: (server in failed, server.rests_until))
            chosen.in_flight += 1
            return chosen

    def can_spare(self, failed: Collection[Server]) -> bool:
        """Return whether a server that has not failed this call can be asked immediately."""
        now = self.clock()
        with self._lock:
            return any(s not in failed and self._is_awake(s, now) for s in self.servers)

    def answered(
        self, server: Server, seconds: float | None, queue_s: float = 0.0, model: str | None = None
    ) -> None:
        """Record an answer after ``seconds`` (None if not known), of which it waited ``queue_s`` in the queue."""
        with self._lock:
            server.in_flight -= 1
            server.failures, server.rests_until = 0, 0.0
            if seconds is None:
                return
            own_s = max(seconds - queue_s, _SHORTEST_S)
            server.speed_s = _mean(server.speed_s, own_s)
            server.queue_s, server.queue_seen_at = max(queue_s, 0.0), self.clock()
            if model is not None:
                server.model_speed_s[model] = _mean(server.model_speed_s.get(model), own_s)

    def failed(self, server: Server, error: ClientError, model: str | None = None) -> None:
        """Record a failure: the server rests for the time that it requested, or when its circuit opens.

        A server that does not have the ``model`` is not asked for it for a while.
        """
        is_lacking = isinstance(error, ServerRefused) and error.code == UnknownModel.__name__
        rest_s = (error.retry_after_s or 0.0) if isinstance(error, ServerRefused) else 0.0
        with self._lock:
            server.in_flight -= 1
            if is_lacking and model is not None:
                server.lacking[model] = self.clock() + _LACKING_S
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

    def has_models(self, server: Server, names: Collection[str]) -> None:
        """Record which models a server has; it is asked for no other that this client has called."""
        until = self.clock() + _LACKING_S
        with self._lock:
            for model in self._models | {name for other in self.servers for name in other.lacking}:
                if model not in names:
                    server.lacking[model] = until
            for name in names:
                server.lacking.pop(name, None)

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

    def _holder(self, servers: Sequence[Server], model: str | None, now: float) -> Server | None:
        """Return the server that keeps a model; None to ask in turn, for a single model and where all are busy."""
        if model is None or len(self._models) < 2:
            return None
        speeds = [s.model_speed_s[model] for s in servers if model in s.model_speed_s]
        for server in sorted(servers, key=lambda server: _hash(server, model), reverse=True):
            speed_s = server.model_speed_s.get(model)
            is_slow = speed_s is not None and speed_s > _SLOW * min(speeds)
            is_news = now - server.queue_seen_at < _QUEUE_IS_NEWS_S
            is_queueing = is_news and server.queue_s > max(server.speed_s or 0.0, _SHORTEST_S)
            if not is_slow and not is_queueing and server.in_flight < _MOST_IN_FLIGHT:
                return server
        return None

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


def _mean(before: float | None, seconds: float) -> float:
    return seconds if before is None else before + _SMOOTHING * (seconds - before)


def _hash(server: Server, model: str) -> bytes:
    """Return the rank of a server for a model; equal for all clients that know the server by this address."""
    return hashlib.blake2b(f"{server.address} {model}".encode(), digest_size=8).digest()


def _is_ill(error: ClientError) -> bool:
    """Return whether a failure means that the server itself does not work, not just this call."""
    is_leaving = isinstance(error, ServerRefused) and error.code == ShuttingDown.__name__
    return is_leaving or isinstance(error, (ServerUnreachable, ServerTimeout, BadAnswer))
