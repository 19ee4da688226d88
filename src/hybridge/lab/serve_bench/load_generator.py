"""Load: requests sent to a server by many clients, or at a rate, and what became of every one.  No torch.

*Closed*: each client sends its next request when it has the answer to its last, so a slow server is asked less.
*Open*: requests come when they come, as from strangers, and their time counts from when they were meant to be sent;
otherwise a server that stops would only delay the questions that would have shown it.

Both are bounded: in time or requests, and in how many are under way.
"""

from __future__ import annotations

import http.client
import itertools
import json
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

from ...client.reply import timings_ms

Kind = TypeVar("Kind")

OK = "ok"

#: Of requests whose turn had not come when the time was over, because too many were under way.
NOT_SENT = "not sent"

#: A client that was refused waits so long; without it, one that is refused at once would do nothing but ask.
_PAUSE_S = 0.1

#: A connection that nobody used for so long may just be closed by the server, and is not used again.
_IDLE_S = 1.0


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request, ready to be sent as often as it is needed.

    Attributes:
        kind: What it is in the record, such as ``starter 256²``.
        headers: Credentials among them.
    """

    kind: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Sample:
    """What became of one request.

    Attributes:
        at_s: When it was meant to be sent, from the beginning of the load.
        wall_s: From then until the last byte of the answer, or until it failed; None if it was not sent.
        outcome: :data:`OK`; the status and the server's code, such as ``429 Overloaded``; the name of what broke on
            the way, such as ``TimeoutError``; or :data:`NOT_SENT`.
        stages_ms: Milliseconds by stage, by the server's word.
    """

    kind: str
    at_s: float
    wall_s: float | None
    outcome: str
    stages_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bounds:
    """When a load is over: whichever comes first.

    Attributes:
        seconds: No request begins later; None for no bound.
        requests: In all; None for no bound.
        limit_s: Seconds that one request may wait for the server.
    """

    seconds: float | None
    requests: int | None
    limit_s: float = 600.0


def closed(clients: Sequence[PreparedRequest], bounds: Bounds) -> list[Sample]:
    """One client for each request, which it sends again and again."""
    samples: list[Sample] = []
    # Shared by all threads: in CPython one step of either is not interrupted.
    left: Iterator[int] = itertools.count() if bounds.requests is None else iter(range(bounds.requests))

    def client(request: PreparedRequest) -> None:
        with closing(_Client(bounds.limit_s)) as connection:
            while True:
                now = time.perf_counter()
                if bounds.seconds is not None and now - begun >= bounds.seconds:
                    return
                if next(left, None) is None:
                    return
                sample = connection.send(request, now, begun)
                samples.append(sample)
                if sample.outcome != OK:
                    time.sleep(_PAUSE_S)

    begun = time.perf_counter()
    threads = [_thread(client, request) for request in clients]
    for thread in threads:
        thread.join()
    return samples


def open_loop(
    arrivals: Sequence[tuple[float, PreparedRequest]], most_in_flight: int, bounds: Bounds
) -> list[Sample]:
    """Every request at its second, or as soon after it as fewer than ``most_in_flight`` are under way.

    Args:
        arrivals: In the order of their seconds, such as :func:`poisson` makes.
        most_in_flight: Bound on requests under way.
        bounds: Those that could not be sent within ``seconds`` are not sent any more.
    """
    samples: list[Sample] = []
    # The one that was used last comes first, so that few connections are opened and fewer still grow old.
    idle: queue.LifoQueue[_Client] = queue.LifoQueue()
    for _ in range(most_in_flight):
        idle.put(_Client(bounds.limit_s))

    def one(client: _Client, request: PreparedRequest, meant: float) -> None:
        try:
            samples.append(client.send(request, meant, begun))
        finally:
            idle.put(client)

    begun = time.perf_counter()
    for at_s, request in arrivals:
        time.sleep(max(0.0, begun + at_s - time.perf_counter()))
        over_s = None if bounds.seconds is None else max(0.0, begun + bounds.seconds - time.perf_counter())
        try:
            client = idle.get(timeout=over_s) if idle.empty() else idle.get_nowait()  # also by who is a little late
        except queue.Empty:
            samples.append(Sample(request.kind, at_s, None, NOT_SENT))
        else:
            _thread(one, client, request, begun + at_s)
    for _ in range(most_in_flight):
        idle.get().close()
    return samples


def poisson(
    kinds: Sequence[Kind], weights: Sequence[float], rate: float, bounds: Bounds, seed: int
) -> Iterator[tuple[float, Kind]]:
    """Yield arrivals that know nothing of each other, ``rate`` in a second, each of a kind drawn by weight.

    Equal arguments give equal arrivals, so that every server is asked the same at the same moments.
    """
    draw = random.Random(seed)  # noqa: S311 - traffic, not secrets
    at_s = draw.expovariate(rate)
    for _ in itertools.count() if bounds.requests is None else range(bounds.requests):
        if bounds.seconds is not None and at_s >= bounds.seconds:
            return
        yield at_s, draw.choices(kinds, weights)[0]
        at_s += draw.expovariate(rate)


def deal(weights: Sequence[int], clients: int) -> list[int]:
    """How many clients each kind gets: one at least, the others so that their shares come close to the weights."""
    dealt = [1] * len(weights)
    for _ in range(clients - len(weights)):
        neediest = max(range(len(weights)), key=lambda kind: weights[kind] / (dealt[kind] + 1))
        dealt[neediest] += 1
    return dealt


class _Client:
    """A connection that is kept from one request to the next, in the standard library's own client.

    What a client computes is taken from the server beside it and counted as the server's overhead: for a picture of
    256² this one takes a third of a millisecond, where httpx takes three.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._connection: http.client.HTTPConnection | None = None
        self._used = 0.0

    def close(self) -> None:
        """Ends the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def send(self, request: PreparedRequest, meant: float, begun: float) -> Sample:
        """One request and its answer; times are those of ``time.perf_counter``."""
        stages_ms: dict[str, float] = {}
        if time.perf_counter() - self._used > _IDLE_S:
            self.close()
        try:
            outcome, stages_ms = self._answer(request)
        except (OSError, http.client.HTTPException) as error:
            outcome = type(error).__name__
            self.close()
        self._used = time.perf_counter()
        return Sample(request.kind, meant - begun, self._used - meant, outcome, stages_ms)

    def _answer(self, request: PreparedRequest) -> tuple[str, dict[str, float]]:
        url = urlsplit(request.url)
        if self._connection is None:
            kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
            self._connection = kind(url.netloc, timeout=self._limit_s)
        self._connection.request(
            "POST", urlunsplit(("", "", url.path, url.query, "")), request.body, dict(request.headers)
        )
        response = self._connection.getresponse()
        content = response.read()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return _outcome(response.status, headers.get("content-type"), content), timings_ms(headers)


def _thread(target: Callable[..., None], *given: object) -> threading.Thread:
    """Begins; a daemon, so that Ctrl-C does not wait for a server that hangs."""
    thread = threading.Thread(target=target, args=given, daemon=True)
    thread.start()
    return thread


def _outcome(status: int, content_type: str | None, content: bytes) -> str:
    media_type = (content_type or "no Content-Type").partition(";")[0]
    if status == 200:
        return OK if media_type.startswith("image/") and content else f"200 {media_type}"
    try:
        code = json.loads(content)["code"]
    except (ValueError, KeyError, TypeError):
        code = media_type
    return f"{status} {code}"
