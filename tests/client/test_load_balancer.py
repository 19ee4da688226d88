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


def unknown(model: str) -> ServerRefused:
    return ServerRefused(f"no {model}", status=404, code="UnknownModel")


def hosts(fleet: Fleet, model: str, times: int = 6) -> Counter[str]:
    """Who is asked for a model, one call after the other."""
    asked: Counter[str] = Counter()
    for _ in range(times):
        server = fleet.lease(model=model)
        asked[server.address.url.host] += 1
        fleet.answered(server, 1.0, model=model)
    return asked


def test_one_model_is_asked_of_all(fleet: Fleet) -> None:
    assert hosts(fleet, "sdxl") == {"a": 2, "b": 2, "c": 2}


def test_each_of_several_models_stays_on_one_server(fleet: Fleet, clock: Clock) -> None:
    models = [f"model-{number}" for number in range(12)]
    for model in models:
        hosts(fleet, model, 1)
    holders = {model: hosts(fleet, model) for model in models}
    assert all(len(holder) == 1 for holder in holders.values())
    assert len({next(iter(holder)) for holder in holders.values()}) == 3
    # Another client with the same servers in another order agrees, and so does one that knows one server less.
    other = Fleet([Address.parse(f"http://{name}") for name in "cab"], clock=clock)
    fewer = Fleet([Address.parse(f"http://{name}") for name in "ab"], clock=clock)
    for model in models:
        hosts(other, model, 1)
        hosts(fewer, model, 1)
    assert {model: hosts(other, model) for model in models} == holders
    for model in models:
        if "c" not in holders[model]:
            assert hosts(fewer, model) == holders[model]


def test_a_holder_that_is_busy_slow_or_gone_is_passed_over(fleet: Fleet, clock: Clock) -> None:
    hosts(fleet, "flux", 1)
    (holder,) = hosts(fleet, "sdxl")
    taken = [fleet.lease(model="sdxl") for _ in range(3)]
    assert [server.address.url.host for server in taken[:2]] == [holder] * 2
    assert taken[2].address.url.host != holder
    for server in taken:
        fleet.answered(server, 1.0, model="sdxl")
    mine = next(server for server in fleet.servers if server.address.url.host == holder)
    mine.in_flight += 1
    fleet.answered(mine, 9.0, 8.0, "sdxl")  # which waited for 8 s
    assert holder not in hosts(fleet, "sdxl", 2)
    clock.now += 10  # that is no news any more
    assert hosts(fleet, "sdxl") == {holder: 6}
    for _ in range(8):
        mine.in_flight += 1
        fleet.answered(mine, 30.0, model="sdxl")
    assert holder not in hosts(fleet, "sdxl", 2)
    take_down(fleet, mine)
    assert holder not in hosts(fleet, "flux", 6)


def test_a_server_without_the_model_is_not_asked_again(fleet: Fleet, clock: Clock) -> None:
    a, b, c = fleet.servers
    for server in (a, b):
        server.in_flight += 1
        fleet.failed(server, unknown("wan"), "wan")
    assert hosts(fleet, "wan") == {"c": 6}
    assert len(hosts(fleet, "sdxl")) >= 1
    fleet.has_models(c, ["sdxl"])
    assert sum(hosts(fleet, "wan").values()) == 6  # nobody has it: whoever is asked says so
    fleet.has_models(a, ["wan"])
    assert hosts(fleet, "wan") == {"a": 6}
    clock.now += 61
    fleet.has_models(b, ["wan"])
    fleet.has_models(a, [])
    fleet.has_models(c, [])
    assert hosts(fleet, "wan") == {"b": 6}
