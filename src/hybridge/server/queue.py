"""The waiting line between the server's front and the device: first in, first out, and bounded."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

from ..errors import Overloaded, ShuttingDown

Item = TypeVar("Item")

#: How much the latest job counts in the running mean of service times.
_SMOOTHING = 0.2


class WaitingLine(Generic[Item]):
    """``put`` and ``leave`` from any thread, ``take`` from the one that owns the device.

    Args:
        limit: Items that may wait; one more is refused at once rather than kept for minutes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._service_s = 1.0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._is_closed

    def put(self, item: Item) -> None:
        """Lines up.

        Raises:
            Overloaded: when the line is full; says when a place is likely to be free.
            ShuttingDown: when it is closed.
        """
        with self._changed:
            if self._is_closed:
                raise ShuttingDown("the server is shutting down", hint="another server, or again in a while")
            if len(self._items) >= self._limit:
                raise Overloaded(
                    f"{len(self._items)} requests are waiting already",
                    retry_after_s=self._service_s,
                    hint="again after the seconds in Retry-After, or a server with a higher --queue-limit",
                )
            self._items.append(item)
            self._changed.notify()

    def leave(self, item: Item) -> None:
        """Gives up a place; nothing happens if the item was taken already."""
        with self._changed:
            if item in self._items:
                self._items.remove(item)

    def waiting(self) -> list[Item]:
        """The items at this moment, in their order."""
        with self._changed:
            return list(self._items)

    def take(self) -> Item | None:
        """The next item; waits for one.  None once the line is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._is_closed)
            return None if self._is_closed else self._items.popleft()

    def served(self, seconds: float) -> None:
        """Tells how long the device took for one item, from which ``Retry-After`` is made."""
        self._service_s += _SMOOTHING * (seconds - self._service_s)

    def close(self) -> list[Item]:
        """Refuses whoever comes, makes ``take`` return None, and gives back what was still waiting."""
        with self._changed:
            self._is_closed = True
            left = list(self._items)
            self._items.clear()
            self._changed.notify_all()
        return left
