"""Sends each order to the replica that the front has chosen for it, instead of one that Ray Serve would choose."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from .messages import Order


class OrderRouter(RequestRouter):  # type: ignore[misc] # Ray's class is untyped here
    """Used by the front's deployment handle."""

    @property
    def supports_rejection_protocol(self) -> bool:
        """False: the front does not give a replica more orders than it takes."""
        return False

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the chosen replica first; others only where it is gone."""
        first: Any = pending_request.args[0] if pending_request is not None and pending_request.args else None
        if isinstance(first, Order):
            chosen = [one for one in candidate_replicas if one.replica_id.unique_id == first.replica]
            for one in chosen:
                # Else Serve asks it first how long its queue is, and a busy one does not answer in time.
                self.on_new_queue_len_info(one.replica_id, 0)
            if chosen:
                return [chosen]
        return [candidate_replicas]
