"""The deadline of a request: it holds while the body is read, the job waits and runs, and the answer is written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from ...errors import DeadlinePassed


class Deadline:
    """A deadline, counted from its creation, on the running event loop.

    Args:
        timeout_s: Seconds until it passes; None for never.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._ends = math.inf if timeout_s is None else anyio.current_time() + timeout_s

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Cancel what is awaited inside the block when the deadline passes; do not enter it afterwards.

        Raises:
            DeadlinePassed: when it has passed.
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
