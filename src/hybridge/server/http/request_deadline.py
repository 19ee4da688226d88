"""When a request's time is over, while its body is read and its answer is written.

The device watches the time of what waits for it and runs on it; see :mod:`..scheduling.device_thread`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from anyio import move_on_after

from ...errors import DeadlinePassed


class Deadline:
    """Counts from when it is made; belongs to the event loop that runs then.

    Args:
        timeout_s: Seconds after which nobody wants the answer any more; None for never.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._begun = asyncio.get_running_loop().time()

    def left_s(self) -> float | None:
        """Seconds that are left; None for any number.

        Raises:
            DeadlinePassed: when none are.
        """
        if self._timeout_s is None:
            return None
        left_s = self._begun + self._timeout_s - asyncio.get_running_loop().time()
        if left_s <= 0:
            raise self._passed()
        return left_s

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Cancels what is awaited inside when the time is over.

        Raises:
            DeadlinePassed: in its place.
        """
        with move_on_after(self.left_s()) as scope:
            yield
        if scope.cancelled_caught:
            raise self._passed()

    def _passed(self) -> DeadlinePassed:
        return DeadlinePassed(
            "the job was not done in time",
            saw=f"{self._timeout_s:g} s since it was sent",
            hint="a longer Request-Timeout, or Prefer: respond-async",
        )
