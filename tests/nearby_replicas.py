"""Replicas in this process: what they are sent and answer is pickled as Ray does it, and they die when told to."""

from __future__ import annotations

import io
import pickle
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from hybridge.errors import ReplicaLost
from hybridge.scaleout.messages import SERIALIZERS, Order, ReplicaState, Reply
from hybridge.scaleout.replica import Replica
from hybridge.server.local_backend import LocalBackend


class _Pickler(pickle.Pickler):
    def reducer_override(self, thing: Any) -> Any:
        if type(thing) not in SERIALIZERS:
            return NotImplemented
        serializer, deserializer = SERIALIZERS[type(thing)]
        return deserializer, (serializer(thing),)


def sent(message: Any) -> Any:
    """A message as it comes out on the other side; arrays are read-only there, as in shared memory."""
    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    _Pickler(file, protocol=5, buffer_callback=buffers.append).dump(message)
    return pickle.loads(file.getvalue(), buffers=[bytes(buffer.raw()) for buffer in buffers])  # noqa: S301


class NearbyReplicas:
    """Implements :class:`hybridge.scaleout.replicas.Replicas`.

    Attributes:
        replicas: Those that are alive.
        orders: Which replica got a job of which client, in order.
        before_reply: Called with an order and what its replica is about to reply; may raise.
    """

    def __init__(self, make_backend: Callable[[], LocalBackend], number: int = 2) -> None:
        self._make_backend, self._made = make_backend, 0
        self.replicas: dict[str, Replica] = {}
        self.orders: list[tuple[str, Order]] = []
        self.before_reply: Callable[[Order, Reply], None] = lambda order, reply: None
        self.is_away = False
        for _ in range(number):
            self.start_one()

    def start_one(self) -> str:
        name = f"r{self._made}"
        self._made += 1
        self.replicas[name] = Replica(name, "here", self._make_backend)
        return name

    def kill(self, name: str) -> None:
        """What is left of its jobs is lost."""
        replica = self.replicas.pop(name, None)
        if replica is not None:
            replica.close()

    def describe(self) -> Sequence[ReplicaState]:
        if self.is_away:
            raise ReplicaLost("the head node is away", is_dead=False)
        return [sent(replica.describe()) for replica in list(self.replicas.values())]

    async def run(self, order: Order) -> AsyncGenerator[Reply, None]:
        name = order.replica
        self.orders.append((name, order))
        if name not in self.replicas:
            raise ReplicaLost("it is gone", is_dead=True)
        replica = self.replicas[name]
        if not (order.tells_progress or order.has_film):
            reply = await replica.run_silently(sent(order))
            self.before_reply(order, reply)
            if name not in self.replicas:
                raise ReplicaLost("it was killed", is_dead=True)
            yield sent(reply)
            return
        replies = replica.run(sent(order))
        try:
            async for reply in replies:
                self.before_reply(order, reply)
                if name not in self.replicas:
                    raise ReplicaLost("it was killed", is_dead=True)
                yield sent(reply)
        finally:
            await replies.aclose()

    def fingerprint(self, part: str) -> Mapping[str, Any]:
        if not self.replicas:
            raise ReplicaLost("none is alive", is_dead=False)
        return next(iter(self.replicas.values())).fingerprint(part)

    def close(self) -> None:
        for name in list(self.replicas):
            self.kill(name)
