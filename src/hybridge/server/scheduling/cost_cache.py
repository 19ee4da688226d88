"""A cache of costs that take long to compute, which a thread beside the event loop computes once for each key."""

from __future__ import annotations

import logging
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

log = logging.getLogger("hybridge.estimates")

Key = TypeVar("Key", bound=Hashable)

#: Number of results that are kept; the least recently used are dropped.
_MOST_KEPT = 4096

#: Number of keys that may wait to be computed; further keys are not computed, so that clients cannot pile up work.
_MOST_WAITING = 64


class CostCache(Generic[Key]):
    """The cache and its thread.  Any thread may call it.

    Args:
        compute: Returns the cost of a key, or None if it has none; runs in the cache's thread and in callers of
            :meth:`now`.
    """

    def __init__(self, compute: Callable[[Key], float | None]) -> None:
        self._compute = compute
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, float] = OrderedDict()
        self._waiting: dict[Key, list[Callable[[float], None]]] = {}
        self._asked: queue.SimpleQueue[Key | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def known(self, key: Key) -> float | None:
        """Return the cost if it is known; takes no time."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def now(self, key: Key) -> float | None:
        """Return the cost, computed in this thread if it is not known."""
        found = self.known(key)
        return self._keep(key, self._compute(key)) if found is None else found

    def find(self, key: Key, callback: Callable[[float], None]) -> None:
        """Compute the cost in the cache's thread, once for all callers that ask meanwhile.

        Args:
            key: The key.
            callback: Called with the cost in the cache's thread; not called if there is none or too many keys wait.
        """
        with self._lock:
            if key in self._waiting:
                self._waiting[key].append(callback)
                return
            if len(self._waiting) >= _MOST_WAITING:
                return
            self._waiting[key] = [callback]
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="hybridge-estimates", daemon=True)
                self._thread.start()
        self._asked.put(key)

    def close(self) -> None:
        """End the thread, once it is done with what it computes."""
        self._asked.put(None)

    def _serve(self) -> None:
        while (key := self._asked.get()) is not None:
            found = None
            try:
                found = self._keep(key, self._compute(key))
            except Exception:  # one key must not end the thread that all others need
                log.exception("no estimate for %s", key)
            with self._lock:
                hearers = self._waiting.pop(key)
            if found is not None:
                for callback in hearers:
                    callback(found)

    def _keep(self, key: Key, found: float | None) -> float | None:
        if found is not None:
            with self._lock:
                self._kept[key] = found
                if len(self._kept) > _MOST_KEPT:
                    self._kept.popitem(last=False)
        return found
