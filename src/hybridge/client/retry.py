"""After which failure a call is tried again, and when.  Arithmetic only: nothing here waits."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import BadAnswer, ClientError, ModelUnavailable, ServerRefused, ServerTimeout, ServerUnreachable

#: Too many requests, and service unavailable: the two that promise that a later try may do.
PASSING_STATUSES = frozenset({429, 503})

#: Refusals of what was sent or of who sent it, which another server would repeat or should not be asked to hide.
FINAL_STATUSES = frozenset({400, 401, 403, 405, 411, 413, 414, 415, 422, 431})


@dataclass(frozen=True, slots=True)
class Retry:
    """Waits that double, stretched at random so that clients which failed together do not come back together.

    Decoding and encoding change nothing on the server, so a call whose connection broke may be sent again.  One
    that timed out may not: the server is still at work on it, and the second would double its load.

    Args:
        attempts: How often a call is sent at most; 1 never tries again.
        first_wait_s: Seconds before the second attempt.
        longest_wait_s: No wait is longer (before jitter), not even one that the server asks for.
        jitter: A wait is made longer by up to this share of itself.
        random: Gives numbers in [0, 1).
    """

    attempts: int = 4
    first_wait_s: float = 0.25
    longest_wait_s: float = 20.0
    jitter: float = 0.25
    random: Callable[[], float] = random.random

    def wait_s(self, attempt: int, error: ClientError, status: int | None = None) -> float | None:
        """Seconds to wait before the next attempt, or None to give up.

        Args:
            attempt: The attempt that failed, counted from 1.
            error: What it failed with.  Where the server said ``Retry-After``, its word replaces the doubling.
            status: The HTTP status, where there was an answer at all.
        """
        if attempt >= self.attempts or not _may_pass(error, status):
            return None
        asked_s = error.retry_after_s if isinstance(error, ServerRefused) else None
        wait_s = self.first_wait_s * 2 ** (attempt - 1) if asked_s is None else asked_s
        return min(wait_s, self.longest_wait_s) * (1 + self.jitter * self.random())


#: What a client does unless told otherwise: four attempts within about two seconds, if the server names no time.
DEFAULT_RETRY = Retry()


def _may_pass(error: ClientError, status: int | None) -> bool:
    if status is None:
        return isinstance(error, ServerUnreachable)
    # Also 503, but weights that are missing now are missing in a second.
    is_lasting = isinstance(error, ServerRefused) and error.code == ModelUnavailable.__name__
    return status in PASSING_STATUSES and not is_lasting


def another_may(error: ClientError, status: int | None) -> bool:
    """Whether another server, or whatever else can decode, may do what this one did not.

    Decoding and encoding change nothing, so it is always safe; it is of no use where the request is at fault.
    A server that is still at work on a call that timed out is not asked again, but another one is.
    """
    if status is not None:
        return status not in FINAL_STATUSES
    return isinstance(error, (ServerUnreachable, ServerTimeout, BadAnswer))
