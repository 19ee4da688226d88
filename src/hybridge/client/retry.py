"""The retry policy: after which failures a call is retried, and when.  No code here waits."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import BadAnswer, ClientError, ModelUnavailable, ServerRefused, ServerTimeout, ServerUnreachable

#: Too many requests, and service unavailable: after these a later attempt may succeed.
PASSING_STATUSES = frozenset({429, 503})

#: Refusals of the request or of the client, which another server would repeat, or must not be asked to bypass.
FINAL_STATUSES = frozenset({400, 401, 403, 405, 411, 413, 414, 415, 422, 431})


@dataclass(frozen=True, slots=True)
class Retry:
    """Exponential backoff with random jitter, so that clients that failed together do not retry together.

    Decoding and encoding change nothing on the server, so a call whose connection broke may be sent again.  A call
    that timed out may not: the server is still working on it, and a second one would double its load.

    Args:
        attempts: Most attempts of a call; 1 never retries.
        first_wait_s: Seconds before the second attempt.
        longest_wait_s: Longest wait (before jitter), even if the server asks for a longer one.
        jitter: A wait is extended by up to this fraction of itself.
        random: Returns random numbers in [0, 1).
    """

    attempts: int = 4
    first_wait_s: float = 0.25
    longest_wait_s: float = 20.0
    jitter: float = 0.25
    random: Callable[[], float] = random.random

    def wait_s(self, attempt: int, error: ClientError, status: int | None = None) -> float | None:
        """Return the seconds to wait before the next attempt, or None to give up.

        Args:
            attempt: The attempt that failed, counted from 1.
            error: The error of the attempt.  The server's ``Retry-After``, if any, replaces the doubling.
            status: The HTTP status, or None without an answer.
        """
        if attempt >= self.attempts or not _may_pass(error, status):
            return None
        asked_s = error.retry_after_s if isinstance(error, ServerRefused) else None
        wait_s = self.first_wait_s * 2 ** (attempt - 1) if asked_s is None else asked_s
        return min(wait_s, self.longest_wait_s) * (1 + self.jitter * self.random())


#: The default policy: four attempts within about two seconds, unless the server sends ``Retry-After``.
DEFAULT_RETRY = Retry()


def _may_pass(error: ClientError, status: int | None) -> bool:
    if status is None:
        return isinstance(error, ServerUnreachable)
    # This is also a 503, but missing weights will still be missing in a second.
    is_lasting = isinstance(error, ServerRefused) and error.code == ModelUnavailable.__name__
    return status in PASSING_STATUSES and not is_lasting


def another_may(error: ClientError, status: int | None) -> bool:
    """Return whether another server, or the fallback, may succeed where this server failed.

    Decoding and encoding change nothing, so another attempt is always safe; it is useless if the request is wrong.
    After a timeout, the same server is not asked again, because it is still working, but another one is.
    """
    if status is not None:
        return status not in FINAL_STATUSES
    return isinstance(error, (ServerUnreachable, ServerTimeout, BadAnswer))
