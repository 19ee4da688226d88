"""The waiting line between the server's front and the device: first in, first out, and bounded."""

from __future__ import annotations

import queue
from typing import Generic, TypeVar

from ..errors import Overloaded

Item = TypeVar("Item")

#: How much the latest job counts in the running mean of service times.
_SMOOTHING = 0.2


class WaitingLine(Generic[Item]):
    """``put`` from any thread, ``take`` from the one that owns the device.

    Args:
        limit: Jobs that may wait; one more is refused at once rather than kept for minutes.
    """

    def __init__(self, limit: int) -> None:
        self._items: queue.Queue[Item | None] = queue.Queue(limit)
        self._service_s = 1.0

    def __len__(self) -> int:
        return self._items.qsize()

    def put(self, item: Item) -> None:
        """Lines up.

        Raises:
            Overloaded: when the line is full; says when a place is likely to be free.
        """
        try:
            self._items.put_nowait(item)
        except queue.Full:
            raise Overloaded(
                f"{len(self)} requests are waiting already",
                retry_after_s=self._service_s,
                hint="again after the seconds in Retry-After, or a server with a higher --queue-limit",
            ) from None

    def take(self) -> Item | None:
        """The next item; waits for one.  None once the line is closed."""
        return self._items.get()

    def served(self, seconds: float) -> None:
        """Tells how long the device took for one job, from which ``Retry-After`` is made."""
        self._service_s += _SMOOTHING * (seconds - self._service_s)

    def close(self) -> list[Item]:
        """Makes ``take`` return None, and gives back what was still waiting."""
        left: list[Item] = []
        while True:
            try:
                item = self._items.get_nowait()
            except queue.Empty:
                break
            if item is not None:
                left.append(item)
        self._items.put_nowait(None)
        return left
