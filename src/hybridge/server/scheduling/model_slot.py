"""What the model cache knows about each of its models."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from ...errors import HybridgeError

#: A load that takes longer may hang, for example on a network: the next one begins beside it.
_OVERTAKEN_AFTER_S = 60.0

State = Literal["cold", "loading", "loaded", "leaving"]


class LoadedModel(Protocol):
    """A model in the cache: anything with weights, because the cache knows neither torch nor the engine."""

    @property
    def weights_bytes(self) -> int:
        """Bytes that it occupies between runs."""


Model = TypeVar("Model", bound=LoadedModel)


@dataclass(frozen=True, slots=True)
class Offload(Generic[Model]):
    """How the weights of a model go to the host's memory and come back; the latter two take long.

    Attributes:
        is_possible: Returns whether they can go, and are not there already.
        to_host: Moves them to the host's memory.
        to_device: Moves them back.
    """

    is_possible: Callable[[Model], bool]
    to_host: Callable[[Model], None]
    to_device: Callable[[Model], None]


@dataclass(frozen=True, slots=True)
class Source(Generic[Model]):
    """Where a model comes from.

    Attributes:
        weights_bytes: Returns the bytes that it will occupy, before it is loaded; may take long.
        load: Loads it; takes long.
        offload: How it waits in the host's memory; None if it is unloaded instead.
    """

    weights_bytes: Callable[[], int]
    load: Callable[[], Model]
    offload: Offload[Model] | None = None


@dataclass(slots=True)
class Slot(Generic[Model]):
    """One model in the cache.

    ``waiting`` is the number of jobs for it, ``owed`` the number of those that waited when it was loaded.  Until
    these are done it is not evicted, or two models that do not fit together would evict each other without doing
    any work. After a failure the next load begins no earlier than ``retry_at``, of :func:`time.monotonic`.
    While ``is_moving`` its weights go to the host's memory.
    """

    source: Source[Model] | None  # None: the caller has loaded it, and it is not evicted
    model: Model | None = None
    state: State = "cold"
    failure: HybridgeError | None = None
    retry_at: float = 0.0
    reserved_bytes: int = 0
    waiting: int = 0
    owed: int = 0
    in_use: int = 0
    used_at: int = 0
    load_s: float = 0.0
    loads: int = 0
    restores: int = 0
    evictions: int = 0
    is_moving: bool = False


@dataclass(frozen=True, slots=True)
class ModelState:
    """The public state of a model.

    Attributes:
        state: ``cold``, ``loading``, ``loaded``, or ``leaving`` while it waits for its last job to be evicted.
        failure: Why the last attempt to load it failed, if it did.
        loads: How often it was loaded from its files.
        restores: How often it came back from the host's memory.
        evictions: How often it was evicted.
        host_bytes: Bytes of its weights in the host's memory, while they wait there.
    """

    state: State
    failure: str | None
    loads: int
    restores: int
    evictions: int
    host_bytes: int


class Turn:
    """Whose turn it is to load: one model at a time, and the next beside a load that takes very long."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._since = 0.0

    @property
    def left_s(self) -> float:
        """Seconds to wait for the running load."""
        return 0.0 if self.name is None else self._since + _OVERTAKEN_AFTER_S - time.monotonic()

    def begin(self, name: str) -> None:
        """Take the turn."""
        self.name, self._since = name, time.monotonic()

    def end(self, name: str) -> None:
        """Give it back, unless another load has overtaken this one."""
        if self.name == name:
            self.name = None
