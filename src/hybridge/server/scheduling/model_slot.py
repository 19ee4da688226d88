"""What a model cache knows of each of its models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from ...errors import HybridgeError

State = Literal["cold", "loading", "loaded", "leaving"]


class LoadedModel(Protocol):
    """Whatever has weights can be kept: the cache knows neither torch nor the engine."""

    @property
    def weights_bytes(self) -> int:
        """Bytes that it takes between runs."""


Model = TypeVar("Model", bound=LoadedModel)


@dataclass(frozen=True, slots=True)
class Source(Generic[Model]):
    """Where a model comes from.

    Attributes:
        weights_bytes: What it will take, told before it is loaded; may take long.
        load: Loads it; takes long.
    """

    weights_bytes: Callable[[], int]
    load: Callable[[], Model]


@dataclass(slots=True)
class Slot(Generic[Model]):
    """One model in the cache.

    ``waiting`` are the jobs for it, ``owed`` those of them that waited when it was loaded: until they are served it
    does not leave again, or two models that do not fit together would push each other out without doing any work.
    After a failure the next load begins no earlier than ``retry_at``, of :func:`time.monotonic`.
    """

    source: Source[Model] | None  # None: it was loaded by the caller, and stays
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
    """What is to be seen of a model from outside.

    Attributes:
        state: ``cold``, ``loading``, ``loaded``, or ``leaving`` once its last job is done.
        failure: Why the last attempt to load it failed, if it did.
        loads: How often it was loaded.
        evictions: How often it left to make room.
    """

    state: State
    failure: str | None
    loads: int
    evictions: int
