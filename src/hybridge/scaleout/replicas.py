"""What the front needs of replicas, wherever they run; :mod:`.cluster` has those in a Ray cluster."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol

from .messages import Order, ReplicaState, Reply


class Replicas(Protocol):
    """All replicas of a front."""

    def describe(self) -> Sequence[ReplicaState]:
        """Ask every replica about itself; waits for the answers.

        Raises:
            ReplicaLost: when nothing can be asked, for example because the head node is away.
        """
        ...

    def run(self, order: Order) -> AsyncGenerator[Reply, None]:
        """Give an order to its replica.  Closing the generator cancels the job there.

        Raises:
            ReplicaLost: when the replica does not end it.
            HybridgeError: when it cannot be sent.
        """
        ...

    def fingerprint(self, part: str) -> Mapping[str, Any]:
        """Ask any replica; see :meth:`Backend.fingerprint`."""
        ...

    def close(self) -> None:
        """End all replicas."""
        ...
