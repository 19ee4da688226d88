"""The host's memory, in which models wait that left an accelerator to make room (CPU offload).

The model cache moves them, and its lock guards this.
"""

from __future__ import annotations

from typing import Generic

from .model_slot import Model


class HostMemory(Generic[Model]):
    """Models by name, within a limit of bytes.

    Args:
        most_bytes: Of the weights of all of them; 0 keeps none.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held: dict[str, int] = {}  # bytes of each that is here, comes or goes; in that order
        self._models: dict[str, Model] = {}

    @property
    def held_bytes(self) -> int:
        """Bytes of all models that are here, come or go."""
        return sum(self._held.values())

    def bytes_of(self, name: str) -> int:
        """Return the bytes of a model; 0 if it is not here."""
        return self._held.get(name, 0)

    def reserve(self, name: str, nbytes: int) -> bool:
        """Reserve room for a model that is about to come; those that have waited longest are dropped for it.

        Returns:
            Whether there is room.
        """
        staying = self.held_bytes - sum(self._held[other] for other in self._models)
        if nbytes > self._most_bytes - staying:
            return False
        while nbytes > self._most_bytes - self.held_bytes:
            oldest = next(other for other in self._held if other in self._models)
            self.free(oldest)
        self._held[name] = nbytes
        return True

    def put(self, name: str, model: Model) -> None:
        """Keep a model for which :meth:`reserve` found room."""
        self._models[name], self._held[name] = model, model.weights_bytes

    def take(self, name: str) -> Model | None:
        """Return a model that goes, or None; its bytes count until :meth:`free`."""
        return self._models.pop(name, None)

    def free(self, name: str) -> None:
        """Drop a model, or the room for one."""
        self._models.pop(name, None)
        self._held.pop(name, None)
