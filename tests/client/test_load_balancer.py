"""Which server is asked next: a clock that is set by hand, and no network."""

from __future__ import annotations

from collections import Counter

import pytest

from hybridge.client.address import Address
from hybridge.client.load_balancer import Breaker, Fleet, Server
from hybridge.client.retry import another_may
from hybridge.errors import BadAnswer, ClientError, ServerRefused, ServerTimeout, ServerUnreachable

LOST = ServerUnreachable("gone")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fleet(clock: Clock) -> Fleet:
    return Fleet([Address.parse(f"http://{name}") for name in "abc"], clock=clock, breaker=Breaker(2, 10.0))


def busy(seconds: float) -> ServerRefused:
    return ServerRefused("full", status=429, code="Overloaded", retry_after_s=seconds)


def ask(fleet: Fleet, times: int, seconds: dict[str, float]) -> Counter[str]:
    """Who is asked, where each answers in its own time."""
    asked: Counter[str] = Counter()
    for _ in range(times):
        server = fleet.lease()
        asked[server.address.url.host] += 1
        fleet.answered(server, seconds[server.address.url.host])
    return asked


def take_down(fleet: Fleet, server: Server) -> None:
    for _ in range(2):
        server.in_flight += 1
        fleet.failed(server, LOST)


def test_equal_servers_take_turns(fleet: Fleet) -> None:
    assert ask(fleet, 9, {"a": 1, "b": 1, "c": 1}) == {"a": 3, "b": 3, "c": 3}


def test_a_server_is_asked_in_proportion_to_its_speed(fleet: Fleet) -> None:
    speeds = {"a": 1.0, "b": 2.0, "c": 4.0}
    ask(fleet, 30, speeds)  # until each is known
    asked = ask(fleet, 70, speeds)
    assert asked["a"] == pytest.approx(40, abs=2)
    assert asked["b"] == pytest.approx(20, abs=2)
    assert asked["c"] == pytest.approx(10, abs=2)


def test_a_declared_wait_counts_beside_the_speed(fleet: Fleet) -> None:
    a, b, c = fleet.servers
    for server, queue_s in ((a, 0.0), (b, 0.0), (c, 8.0)):
        server.in_flight += 1
        fleet.answered(server, 1.0 + queue_s, queue_s)
    assert (c.speed_s, c.queue_s) == (1.0, 8.0)
    leased = Counter(server.address.url.host for server in (fleet.lease() for _ in range(8)))
    assert leased["c"] <= 1


def test_calls_in_flight_count(fleet: Fleet) -> None:
    assert Counter(fleet.lease().address.url.host for _ in range(6)) == {"a": 2, "b": 2, "c": 2}


def test_a_server_rests_for_as_long_as_it_asked(fleet: Fleet, clock: Clock) -> None:
    first = fleet.lease()
    fleet.failed(first, busy(5))
    assert first not in [fleet.lease() for _ in range(6)]
    clock.now += 5
    assert first in [fleet.lease() for _ in range(6)]


def test_a_circuit_opens_after_failures_and_lets_one_call_through_after_its_pause(
    fleet: Fleet, clock: Clock
) -> None:
    bad = fleet.servers[1]
    take_down(fleet, bad)
    assert bad not in [fleet.lease() for _ in range(6)]
    clock.now += 10
    leased = [fleet.lease() for _ in range(8)]
    assert leased.count(bad) == 1  # half-open: one finds out
    fleet.failed(bad, LOST)
    assert bad not in [fleet.lease() for _ in range(8)]
    clock.now += 10
    while fleet.lease() is not bad:
        pass
    fleet.answered(bad, 1.0)
    assert bad in [fleet.lease() for _ in range(30)]


def test_a_refusal_is_no_illness(fleet: Fleet) -> None:
    server = fleet.servers[0]
    for error in (LOST, ServerRefused("no", status=404, code="UnknownModel"), LOST):
        server.in_flight += 1
        fleet.failed(server, error)
    assert fleet.has_hope()
    assert server.failures == 1


def test_who_failed_this_call_is_asked_last(fleet: Fleet) -> None:
    a, b, _ = fleet.servers
    assert fleet.lease([a, b]) is fleet.servers[2]
    assert fleet.can_spare([a, b])
    assert not fleet.can_spare(fleet.servers)
    assert fleet.lease(fleet.servers) in fleet.servers


def test_when_all_rest_whoever_rests_shortest_is_asked(fleet: Fleet, clock: Clock) -> None:
    for server, seconds in zip(fleet.servers, (9, 3, 6), strict=True):
        server.in_flight += 1
        fleet.failed(server, busy(seconds))
    assert fleet.soonest_s() == 3
    assert fleet.lease() is fleet.servers[1]
    assert fleet.has_hope()  # busy servers are alive


def test_hope_ends_when_all_circuits_are_open_and_comes_back(fleet: Fleet, clock: Clock) -> None:
    for server in fleet.servers:
        take_down(fleet, server)
    assert not fleet.has_hope()
    clock.now += 10
    assert fleet.has_hope()


def test_a_call_that_was_given_up_teaches_nothing(fleet: Fleet) -> None:
    server = fleet.lease()
    fleet.released(server)
    assert (server.in_flight, server.failures, server.speed_s) == (0, 0, None)


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        (LOST, None, True),
        (ServerTimeout("slow"), None, True),
        (BadAnswer("a proxy's page"), 502, True),
        (BadAnswer("cut short"), 200, True),
        (ServerRefused("no such model", status=404), 404, True),
        (ServerRefused("out of memory", status=507), 507, True),
        (ServerRefused("half a tensor", status=400), 400, False),
        (ServerRefused("wrong key", status=401), 401, False),
        (ServerRefused("too large", status=413), 413, False),
        (ClientError("not HTTP"), None, False),
    ],
)
def test_which_failures_another_server_may_mend(error: ClientError, status: int | None, expected: bool) -> None:
    assert another_may(error, status) is expected
