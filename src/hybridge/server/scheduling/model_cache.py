"""The model cache: loads models within a budget of memory, and evicts some for others.

:mod:`.memory_budget` says what counts, and evicts.  Each load has a thread of its own, so that only jobs for that
model wait for it; one model loads at a time, but the next begins beside a load that takes very long.  The device
thread claims models, and frees memory.

Knows neither torch nor the engine: whatever has ``weights_bytes`` can be kept here.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ...errors import HybridgeError, ModelUnavailable, OutOfMemory
from .memory_budget import MemoryBudget
from .model_slot import Model, ModelState, Slot, Source

log = logging.getLogger("hybridge.models")

#: After a load that failed none is tried for as long as it took, within these bounds: a model that cannot be loaded
#: takes no more than half of the loaders' time, however often it is asked for.
_MIN_RETRY_S, _MAX_RETRY_S = 1.0, 60.0


class ModelCache(MemoryBudget[Model]):
    """The cache.  Any thread may call it; only the device thread claims models and runs jobs.

    Args:
        loaded: Models that are loaded already; they are not evicted.
        sources: Models that can be loaded.
        memory_bytes: Limit of weights and running plans together; None for no limit.
        on_change: Called when a model becomes ready or stops being so.
        on_failure: Called with a name and the error when a load failed.
        host_bytes: Limit of the weights that wait in the host's memory.
    """

    def __init__(
        self,
        loaded: Mapping[str, Model],
        sources: Mapping[str, Source[Model]],
        *,
        memory_bytes: int | None,
        on_change: Callable[[], None],
        on_failure: Callable[[str, HybridgeError], None],
        host_bytes: int = 0,
    ) -> None:
        slots: dict[str, Slot[Model]] = {
            **{name: Slot(None, model, "loaded", loads=1) for name, model in loaded.items()},
            **{name: Slot(source) for name, source in sources.items()},
        }
        super().__init__(slots, memory_bytes, host_bytes)
        self._on_change, self._on_failure = on_change, on_failure
        self._uses = 0

    # ------------------------------------------------------------------------------------ from the front

    def request(self, name: str) -> None:
        """Count a job that waits for this model, and load the model if it is cold.

        Raises:
            HybridgeError: the failure of a load that was just tried.
        """
        with self._changed:
            slot = self._slots[name]
            if self.has_failed(name):
                assert slot.failure is not None  # noqa: S101 - as has_failed() says
                raise copy.copy(slot.failure)
            slot.waiting += 1
            self._load_if_cold(name, slot)

    def release(self, name: str) -> None:
        """Stop counting a job that waited for this model."""
        with self._changed:
            slot = self._slots[name]
            slot.waiting -= 1
            slot.owed = max(0, slot.owed - 1)
            self._changed.notify_all()

    def preload(self, name: str) -> None:
        """Load a model and wait until it is loaded.

        Raises:
            HybridgeError: when it cannot be loaded.
        """
        with self._changed:
            slot = self._slots[name]
            slot.waiting += 1
            try:
                self._load_if_cold(name, slot)
                self._changed.wait_for(lambda: slot.state != "loading")
            finally:
                slot.waiting -= 1
            if slot.failure is not None:
                raise slot.failure

    def state_of(self, name: str) -> ModelState:
        """Return the state of a model."""
        with self._changed:
            slot = self._slots[name]
            failure = None if slot.failure is None else _told(slot.failure)
            host_bytes = self._host.bytes_of(name)
            return ModelState(slot.state, failure, slot.loads, slot.restores, slot.evictions, host_bytes)

    def peek(self, name: str) -> Model | None:
        """Return the model if it is loaded, for uses that do not run it."""
        return self._slots[name].model

    def is_ready(self, name: str) -> bool:
        """Whether a job for this model can start now."""
        return self._slots[name].state == "loaded"

    def has_failed(self, name: str) -> bool:
        """Whether loading has just failed, so that a request would get that error."""
        slot = self._slots[name]
        return slot.state == "cold" and slot.failure is not None and time.monotonic() < slot.retry_at

    def close(self, patience_s: float | None = None) -> None:
        """Start no more loads, and return once none is running.

        Args:
            patience_s: Seconds after which it returns even if a load runs (:attr:`is_loading`); None for no limit.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._threads, patience_s)

    @property
    def is_loading(self) -> bool:
        """Whether a load is running."""
        with self._changed:
            return bool(self._threads)

    # ---------------------------------------------------------------------------- from the device thread

    @contextmanager
    def claim(self, name: str) -> Iterator[Model | None]:
        """Give the block a model, which is not evicted within it; None if it was evicted just now."""
        with self._changed:
            slot = self._slots[name]
            model = slot.model if slot.state == "loaded" else None
            if model is not None:
                slot.in_use += 1
                self._uses += 1
                slot.used_at = self._uses
        try:
            yield model
        finally:
            if model is not None:
                del model
                with self._changed:
                    slot.in_use -= 1
                    self._changed.notify_all()

    def load_s(self, name: str) -> float:
        """Return how many seconds the load took, once: only the first job waited for it."""
        with self._changed:
            seconds, self._slots[name].load_s = self._slots[name].load_s, 0.0
            return seconds

    # ------------------------------------------------------------------------------------------ inside

    def _load_if_cold(self, name: str, slot: Slot[Model]) -> None:
        if slot.state == "cold":
            slot.state, slot.failure = "loading", None
            self._start(name, lambda: self._bring(name, slot))

    def _await_end_of_use(self, slot: Slot[Model]) -> None:
        # No new job of this model starts meanwhile, so that a model which is always busy can be evicted, too.
        slot.state = "leaving"
        self._changed.notify_all()
        self._changed.wait_for(lambda: not slot.in_use or self._is_closed)

    def _bring(self, name: str, slot: Slot[Model]) -> None:
        """Load a model: all that a loader thread does."""
        try:
            failure = self._load(name, slot) if self._take_turn(name, slot) else None
        finally:
            with self._changed:
                self._threads.discard(threading.current_thread())
                is_awaited = slot.waiting > 0
                self._changed.notify_all()
        if failure is not None:
            if not is_awaited:  # whoever waits is answered with it, and that is logged
                log.warning("%s cannot be loaded: %s", name, failure)
            self._on_failure(name, failure)
        self._on_change()

    def _take_turn(self, name: str, slot: Slot[Model]) -> bool:
        """Waits for the load before; False, and the model is cold again, if by then nobody wants it."""
        with self._changed:
            while not self._is_given_up(slot) and (left_s := self._turn.left_s) > 0:
                self._changed.wait(left_s)
            if self._is_given_up(slot):
                slot.state = "cold"
                return False
            if self._turn.name is not None:
                log.warning("%s has been loading for long; %s is loaded beside it", self._turn.name, name)
            self._turn.begin(name)
            return True

    def _is_given_up(self, slot: Slot[Model]) -> bool:
        return self._is_closed or not slot.waiting

    def _load(self, name: str, slot: Slot[Model]) -> HybridgeError | None:
        """Load a model in its turn; return the error if that failed."""
        begun = time.monotonic()
        model: Model | None = None
        failure: HybridgeError | None = None
        assert slot.source is not None  # noqa: S101 - a model that stays is never cold
        try:
            wanted_bytes = 0
            if self._memory_bytes is not None:
                wanted_bytes = self.state_of(name).host_bytes or slot.source.weights_bytes()
            if self._reserve(name, slot, wanted_bytes):
                model = self._from_host(name, slot)
                if model is None:
                    model = slot.source.load()
                    slot.loads += 1
        except HybridgeError as error:
            # The frames of its traceback, and of its causes', hold what was loaded so far.
            failure = error.with_traceback(None)
            failure.__cause__ = failure.__context__ = None
        except Exception as error:  # one broken model must not end the thread that the others need
            log.exception("%s cannot be loaded", name)
            failure = ModelUnavailable(
                f"{name} cannot be loaded", saw=type(error).__name__, hint="the server's log"
            )
        with self._changed:
            took_s = time.monotonic() - begun
            slot.reserved_bytes, slot.load_s = 0, took_s
            self._turn.end(name)
            if model is not None:
                slot.model, slot.state, slot.owed = model, "loaded", slot.waiting
                self._uses += 1
                slot.used_at = self._uses
            else:
                slot.state, slot.failure = "cold", failure
                slot.retry_at = time.monotonic() + min(max(took_s, _MIN_RETRY_S), _MAX_RETRY_S)
                if failure is None and slot.waiting and not self._is_closed:  # requested again just now
                    self._load_if_cold(name, slot)
            self._changed.notify_all()
        return failure

    def _from_host(self, name: str, slot: Slot[Model]) -> Model | None:
        """Return a model that waited in the host's memory, on its device again; None if it did not wait there."""
        with self._changed:
            model = self._host.take(name)
        if model is None or slot.source is None or slot.source.offload is None:
            return None
        try:
            slot.source.offload.to_device(model)
        finally:
            with self._changed:
                self._host.free(name)
        slot.restores += 1
        return model

    def _reserve(self, name: str, slot: Slot[Model], wanted_bytes: int) -> bool:
        """Wait until there is room for the weights, and reserve it; False if no job waits for them any more.

        Raises:
            OutOfMemory: when there can never be room.
        """
        with self._changed:
            while (room := self._room()) is not None and room < wanted_bytes:
                if self._is_given_up(slot):
                    return False
                staying = sum(s.model.weights_bytes for s in self._slots.values() if s.model and not s.source)
                most = (self._memory_bytes or 0) - staying
                if most < wanted_bytes:
                    raise OutOfMemory(
                        f"the weights of {name} do not fit in --memory",
                        saw=f"{wanted_bytes} bytes",
                        expected=f"at most {most}",
                        hint="more --memory, or half precision",
                    )
                victim = self._victim(lambda other: not other.owed)
                if victim is None:
                    self._changed.wait()
                else:
                    self._await_end_of_use(self._slots[victim])
                    self._evict(victim)
            slot.reserved_bytes = wanted_bytes
            return True


def _told(failure: HybridgeError) -> str:
    """Return the text for ``/v1/models``, which every client can read."""
    return str(failure.for_strangers() if isinstance(failure, ModelUnavailable) else failure)
