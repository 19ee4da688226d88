"""The memory of the device and of the host that models share, and which of them leave for others.

What counts against the device's budget are the weights of the models that are loaded or being loaded, and the peaks
of the runs that are going on.  A model that is evicted is unloaded, or moved from an accelerator to the memory of
the host, which has a budget of its own.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic

from ...errors import TooLarge
from ...units import format_bytes
from .host_memory import HostMemory
from .model_slot import Model, Offload, Slot, Turn

log = logging.getLogger("hybridge.models")


@dataclass(slots=True, eq=False)
class _Run:
    """A run, and what it takes beside the weights."""

    peak_bytes: int


class MemoryBudget(ABC, Generic[Model]):
    """The budget; :class:`~.model_cache.ModelCache` loads models within it.

    Args:
        slots: The models.
        memory_bytes: Limit of weights and running plans together; None for no limit.
        host_bytes: Limit of the weights that wait in the host's memory.
    """

    def __init__(self, slots: Mapping[str, Slot[Model]], memory_bytes: int | None, host_bytes: int) -> None:
        self._slots = dict(slots)
        self._memory_bytes = memory_bytes
        self._host: HostMemory[Model] = HostMemory(host_bytes)
        self._runs: list[_Run] = []  # that are going on, outermost first
        self._changed = threading.Condition()
        self._turn = Turn()
        self._threads: set[threading.Thread] = set()  # that load or move a model
        self._is_closed = False

    @abstractmethod
    def _load_if_cold(self, name: str, slot: Slot[Model]) -> None:
        """Begin to load a model for which jobs wait."""

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights of all loaded models."""
        with self._changed:
            return sum(slot.model.weights_bytes for slot in self._slots.values() if slot.model is not None)

    @property
    def host_bytes(self) -> int:
        """Bytes of the weights in the host's memory of all models that wait there."""
        with self._changed:
            return self._host.held_bytes

    def room_bytes(self) -> int | None:
        """Return the bytes that are free for a run, beside weights and running jobs; None for no limit."""
        with self._changed:
            return self._room()

    def make_room(self, wanted_bytes: int) -> int | None:
        """Evict models until a run has room, first those that no job waits for; return :meth:`room_bytes`.

        If a model that is being loaded takes the room, wait for its load, unless that takes very long.
        """
        with self._changed:
            while (room := self._room()) is not None and room < wanted_bytes and not self._is_closed:
                victim = self._victim(lambda slot: not slot.in_use)
                if victim is not None:
                    self._evict(victim)
                elif (
                    any(slot.reserved_bytes for slot in self._slots.values()) and (left_s := self._turn.left_s) > 0
                ):
                    self._changed.wait(left_s)
                else:
                    break
            return self._room()

    def release_idle(self) -> None:
        """Evict every model that no job uses or waits for."""
        with self._changed:
            while (victim := self._victim(lambda slot: not (slot.in_use or slot.waiting))) is not None:
                self._evict(victim)

    @contextmanager
    def running(self, peak_bytes: int) -> Iterator[Callable[[int], None]]:
        """A run that takes so much is going on.

        Yields a function that takes a higher peak for it, for which idle models leave.  It raises TooLarge where
        there is no room: the run must not take so much then.
        """
        run = _Run(peak_bytes)

        def grow(wanted_bytes: int) -> None:
            with self._changed:
                more_bytes = wanted_bytes - run.peak_bytes
                room = self.make_room(more_bytes) if more_bytes > 0 else None
                if room is not None and room < more_bytes:
                    raise TooLarge(
                        "this does not fit beside the weights in --memory",
                        saw=f"about {format_bytes(wanted_bytes)}",
                        expected=f"at most {format_bytes(max(0, run.peak_bytes + room))}",
                        hint="fewer at a time, shorter ones, or a server with more --memory",
                        least_bytes=wanted_bytes,
                    )
                run.peak_bytes = max(run.peak_bytes, wanted_bytes)

        with self._changed:
            self._runs.append(run)
        try:
            yield grow
        finally:
            with self._changed:
                self._runs.remove(run)
                self._changed.notify_all()

    def _is_reserving(self) -> bool:
        """Whether a model that is being loaded has room reserved."""
        return any(slot.reserved_bytes for slot in self._slots.values())

    def _room(self) -> int | None:
        if self._memory_bytes is None:
            return None
        weights = sum(
            slot.reserved_bytes if slot.model is None else slot.model.weights_bytes for slot in self._slots.values()
        )
        return self._memory_bytes - weights - sum(run.peak_bytes for run in self._runs)

    def _start(self, name: str, what: Callable[[], None]) -> None:
        """Load or move a model in a thread of its own."""
        thread = threading.Thread(target=what, name=f"hybridge-load-{name}", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _victim(self, may_leave: Callable[[Slot[Model]], bool]) -> str | None:
        """Return the model to evict: the least recently used of those that no job waits for, else of the others."""
        candidates = [
            (slot.waiting > 0, slot.used_at, name)
            for name, slot in self._slots.items()
            if slot.source is not None and slot.model is not None and may_leave(slot)
        ]
        return min(candidates)[2] if candidates else None

    def _evict(self, name: str) -> None:
        """Unload a model, or move it to the host's memory; return when it takes no room any more."""
        slot = self._slots[name]
        if slot.model is None:  # another load has evicted it meanwhile
            return
        if not slot.is_moving:
            self._begin_to_move(name, slot, slot.model)
        if slot.is_moving:
            self._changed.wait_for(lambda: not slot.is_moving)
        else:
            log.info("%s leaves, to make room", name)
            self._set_cold(name, slot)

    def _begin_to_move(self, name: str, slot: Slot[Model], model: Model) -> None:
        """Let a thread move a model to the host's memory, if it can wait there; the lock is free meanwhile."""
        offload = None if slot.source is None else slot.source.offload
        if offload is None or slot.in_use or self._is_closed or not offload.is_possible(model):
            return
        if self._host.reserve(name, model.weights_bytes):
            log.info("%s moves to the host's memory, to make room", name)
            slot.state, slot.is_moving = "leaving", True
            self._start(name, lambda: self._move(name, slot, model, offload))

    def _move(self, name: str, slot: Slot[Model], model: Model, offload: Offload[Model]) -> None:
        has_moved = False
        try:
            offload.to_host(model)
            has_moved = True
        except Exception:  # it is read from its files again
            log.exception("%s cannot be moved to the host's memory", name)
        with self._changed:
            if has_moved:
                self._host.put(name, model)
            else:
                self._host.free(name)
            slot.is_moving = False
            self._set_cold(name, slot)
            self._threads.discard(threading.current_thread())

    def _set_cold(self, name: str, slot: Slot[Model]) -> None:
        slot.model, slot.state, slot.owed = None, "cold", 0
        slot.evictions += 1
        if slot.waiting:
            self._load_if_cold(name, slot)
        self._changed.notify_all()
