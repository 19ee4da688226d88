"""What the model cache knows about each of its models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from ...errors import HybridgeError

State = Literal["cold", "loading", "loaded", "leaving"]


class LoadedModel(Protocol):
    """A model in the cache: anything with weights, because the cache knows neither torch nor the engine."""

    @property
    def weights_bytes(self) -> int:
        """Bytes that it occupies between runs."""


Model = TypeVar("Model", bound=LoadedModel)


@dataclass(frozen=True, slots=True)
class Source(Generic[Model]):
    """Where a model comes from.

    Attributes:
        weights_bytes: Returns the bytes that it will occupy, before it is loaded; may take long.
        load: Loads it; takes long.
    """

    weights_bytes: Callable[[], int]
    load: Callable[[], Model]


@dataclass(slots=True)
class Slot(Generic[Model]):
    """One model in the cache.

    ``waiting`` is the number of jobs for it, ``owed`` the number of those that waited when it was loaded.  Until
    these are done it is not evicted, or two models that do not fit together would evict each other without doing
    any work. After a failure the next load begins no earlier than ``retry_at``, of :func:`time.monotonic`.
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
    evictions: int = 0


@dataclass(frozen=True, slots=True)
class ModelState:
    """The public state of a model.

    Attributes:
        state: ``cold``, ``loading``, ``loaded``, or ``leaving`` while it waits for its last job to be evicted.
        failure: Why the last attempt to load it failed, if it did.
        loads: How often it was loaded.
        evictions: How often it was evicted.
    """

    state: State
    failure: str | None
    loads: int
    evictions: int
