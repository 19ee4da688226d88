"""The policy alone: no clock, no network, and dice that are given."""

from __future__ import annotations

import pytest

from hybridge.client import Retry
from hybridge.errors import BadAnswer, ClientError, ServerRefused, ServerTimeout, ServerUnreachable

CALM = Retry(random=lambda: 0.0)
LOST = ServerUnreachable("gone")


def refused(status: int, code: str | None = None, retry_after_s: float | None = None) -> ServerRefused:
    return ServerRefused("no", status=status, code=code, retry_after_s=retry_after_s)


def test_waits_double_until_the_attempts_are_used_up() -> None:
    assert [CALM.wait_s(attempt, LOST) for attempt in (1, 2, 3, 4)] == [0.25, 0.5, 1.0, None]


def test_no_wait_is_longer_than_the_longest() -> None:
    assert Retry(attempts=40, longest_wait_s=3, random=lambda: 0.0).wait_s(30, LOST) == 3


def test_one_attempt_never_tries_again() -> None:
    assert Retry(attempts=1).wait_s(1, LOST) is None


@pytest.mark.parametrize(("dice", "wait_s"), [(0.0, 0.25), (0.5, 0.28125), (1.0, 0.3125)])
def test_jitter_only_makes_longer(dice: float, wait_s: float) -> None:
    assert Retry(random=lambda: dice).wait_s(1, LOST) == wait_s


@pytest.mark.parametrize("status", [429, 503])
def test_the_servers_word_replaces_the_doubling_and_is_bounded(status: int) -> None:
    assert CALM.wait_s(1, refused(status, retry_after_s=7), status) == 7
    assert CALM.wait_s(3, refused(status, retry_after_s=0.1), status) == 0.1
    assert CALM.wait_s(1, refused(status, retry_after_s=3600), status) == 20


@pytest.mark.parametrize(
    ("error", "status", "is_tried_again"),
    [
        (LOST, None, True),
        (refused(429, "Overloaded"), 429, True),
        (refused(503, "ShuttingDown"), 503, True),
        (refused(503), 503, True),
        (BadAnswer("a proxy's page"), 503, True),
        (refused(503, "ModelUnavailable"), 503, False),
        (ServerTimeout("slow"), None, False),
        (refused(400, "RequestError"), 400, False),
        (refused(404, "UnknownModel"), 404, False),
        (refused(500, "EngineFailure"), 500, False),
        (refused(507, "OutOfMemory"), 507, False),
        (BadAnswer("a web page"), 404, False),
        (BadAnswer("broken compression"), None, False),
        (ClientError("not HTTP"), None, False),
    ],
)
def test_which_failures_are_tried_again(error: ClientError, status: int | None, is_tried_again: bool) -> None:
    assert (CALM.wait_s(1, error, status) is not None) is is_tried_again
