"""When a request is out of time, while its body is read, while it waits and runs, or while it is answered."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from ...errors import DeadlinePassed


class Deadline:
    """Counts from when it is made; belongs to the event loop that runs then.

    Args:
        timeout_s: Seconds after which nobody wants the answer any more; None for never.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._ends = math.inf if timeout_s is None else anyio.current_time() + timeout_s

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Cancels what is awaited inside when the time is over, and begins nothing after that.

        Raises:
            DeadlinePassed: in its place.
        """
        if anyio.current_time() >= self._ends:
            raise self._passed()
        with anyio.CancelScope(deadline=self._ends) as scope:
            yield
        if scope.cancelled_caught:
            raise self._passed()

    def _passed(self) -> DeadlinePassed:
        return DeadlinePassed(
            "the job was not done in time",
            saw=f"{self._timeout_s:g} s since it was sent",
            hint="a longer Request-Timeout, or Prefer: respond-async",
        )
