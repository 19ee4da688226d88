"""Load: requests sent to a server by many clients, or at a rate, and what became of every one.  No torch.

*Closed*: each client sends its next request when it has the answer to its last, so a slow server is asked less.
*Open*: requests come when they come, as from strangers, and their time counts from when they were meant to be sent;
otherwise a server that stops would only delay the questions that would have shown it.

Both are bounded: in time or requests, and in how many are under way.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import anyio
import httpx

from ...client.reply import timings_ms

OK = "ok"

#: Of requests whose turn had not come when the time was over, because too many were under way.
NOT_SENT = "not sent"

#: A client that was refused waits so long; without it, one that is refused at once would do nothing but ask.
_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Shot:
    """A request, ready to be sent as often as it is needed.

    Attributes:
        kind: What it is in the record, such as ``starter 256²``.
        url: With its query.
        headers: Credentials among them.
        body: Of the request.
    """

    kind: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Sample:
    """What became of one request.

    Attributes:
        kind: As in :class:`Shot`.
        at_s: When it was meant to be sent, from the beginning of the load.
        wall_s: From then until the last byte of the answer, or until it failed; None if it was not sent.
        outcome: :data:`OK`; the status and the server's code, such as ``429 Overloaded``; the name of what broke on
            the way, such as ``ReadTimeout``; or :data:`NOT_SENT`.
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


async def closed(clients: Sequence[Shot], bounds: Bounds) -> list[Sample]:
    """One client for each shot, which it sends again and again."""
    samples: list[Sample] = []
    left = [bounds.requests]

    async def client(shot: Shot) -> None:
        while True:
            now = time.perf_counter()
            if bounds.seconds is not None and now - begun >= bounds.seconds:
                return
            if left[0] is not None:
                if left[0] == 0:
                    return
                left[0] -= 1
            sample = await _send(http, shot, now, begun)
            samples.append(sample)
            if sample.outcome != OK:
                await anyio.sleep(_PAUSE_S)

    async with _http(len(clients), bounds.limit_s) as http, anyio.create_task_group() as group:
        begun = time.perf_counter()
        for shot in clients:
            group.start_soon(client, shot)
    return samples


async def open_loop(arrivals: Sequence[tuple[float, Shot]], most_in_flight: int, bounds: Bounds) -> list[Sample]:
    """Every shot at its second, or as soon after it as fewer than ``most_in_flight`` are under way.

    Args:
        arrivals: In the order of their seconds, such as :func:`poisson` makes.
        most_in_flight: Bound on requests under way.
        bounds: Those that could not be sent within ``seconds`` are not sent any more.
    """
    samples: list[Sample] = []
    places = anyio.Semaphore(most_in_flight)

    async def one(shot: Shot, meant: float) -> None:
        try:
            samples.append(await _send(http, shot, meant, begun))
        finally:
            places.release()

    async with _http(most_in_flight, bounds.limit_s) as http, anyio.create_task_group() as group:
        begun = time.perf_counter()
        for at_s, shot in arrivals:
            await anyio.sleep(max(0.0, begun + at_s - time.perf_counter()))
            over_s = None if bounds.seconds is None else begun + bounds.seconds - time.perf_counter()
            if await _has_place(places, over_s):
                group.start_soon(one, shot, begun + at_s)
            else:
                samples.append(Sample(shot.kind, at_s, None, NOT_SENT))
    return samples


async def _has_place(places: anyio.Semaphore, within_s: float | None) -> bool:
    try:
        places.acquire_nowait()  # also by whoever is a little late
    except anyio.WouldBlock:
        with anyio.move_on_after(within_s) as waiting:
            await places.acquire()
        return not waiting.cancelled_caught
    return True


def poisson(
    shots: Sequence[Shot], weights: Sequence[int], rate: float, bounds: Bounds, seed: int
) -> list[tuple[float, Shot]]:
    """Arrivals that know nothing of each other, at ``rate`` in a second, each of a kind drawn by weight.

    Equal arguments give equal arrivals, so that every server is asked the same at the same moments.
    """
    draw = random.Random(seed)  # noqa: S311 - traffic, not secrets
    arrivals: list[tuple[float, Shot]] = []
    at_s = draw.expovariate(rate)
    while (bounds.seconds is None or at_s < bounds.seconds) and (
        bounds.requests is None or len(arrivals) < bounds.requests
    ):
        arrivals.append((at_s, draw.choices(shots, weights)[0]))
        at_s += draw.expovariate(rate)
    return arrivals


def deal(weights: Sequence[int], clients: int) -> list[int]:
    """How many clients each kind gets: one at least, the others so that their shares come close to the weights."""
    dealt = [1] * len(weights)
    for _ in range(clients - len(weights)):
        neediest = max(range(len(weights)), key=lambda kind: weights[kind] / (dealt[kind] + 1))
        dealt[neediest] += 1
    return dealt


def _http(connections: int, limit_s: float) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.AsyncClient(limits=limits, timeout=httpx.Timeout(limit_s))


async def _send(http: httpx.AsyncClient, shot: Shot, meant: float, begun: float) -> Sample:
    stages_ms: dict[str, float] = {}
    try:
        response = await http.post(shot.url, content=shot.body, headers=dict(shot.headers))
        outcome = _outcome(response)
        stages_ms = timings_ms(response.headers)
    except httpx.HTTPError as error:
        outcome = type(error).__name__
    return Sample(shot.kind, meant - begun, time.perf_counter() - meant, outcome, stages_ms)


def _outcome(response: httpx.Response) -> str:
    media_type = response.headers.get("content-type", "no Content-Type").partition(";")[0]
    if response.status_code == 200:
        return OK if media_type.startswith("image/") and response.content else f"200 {media_type}"
    try:
        code = json.loads(response.content)["code"]
    except (ValueError, KeyError, TypeError):
        code = media_type
    return f"{response.status_code} {code}"
