"""Replicas as actors of Ray Serve, reached by a deployment handle: only this file and :mod:`.router` import Ray.

Serve starts replicas anew when they end, and more or fewer of them by load.  Its proxy is not used, and its waiting
neither: the front says which replica takes an order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import exceptions as ray_errors
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.util import get_node_ip_address, register_serializer

from ..errors import EngineFailure, HybridgeError, OutOfMemory, ReplicaLost
from ..server.scheduling.job import Result
from .messages import SERIALIZERS, Order, ReplicaState, Reply
from .replica import MakeBackend, Replica
from .router import OrderRouter

log = logging.getLogger("hybridge.cluster")

#: The first version of Ray with all that is used here: deployment handles that ask all replicas.
LEAST_VERSION = (2, 55)

#: The name of the application in Ray Serve.
APPLICATION = "hybridge"

#: A Ray of this process's own, which ends with it.
LOCAL = "local"

#: Most orders that Serve lets a replica have; the front gives it fewer.
_MOST_ORDERS = 64

#: Bytes that travel in a call itself or in its reply, on the front and in replicas.  Above it they go
#: through shared memory, which takes some milliseconds more at any size.
_INLINE_BYTES = {"RAY_max_direct_call_object_size": str(2**20)}

#: In replicas, whose code never holds the event loop: Serve's thread for it would take two more hand-overs.
_REPLICA_ENVIRONMENT = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0", **_INLINE_BYTES}

#: Seconds to wait for a head node's port, and for the answers of all replicas.
_CONNECT_S, _ANSWER_S = 5.0, 10.0

#: What may have ended a replica, or the node that it ran on.
_DEAD = (
    ray_errors.ActorDiedError,
    ray_errors.WorkerCrashedError,
    ray_errors.OutOfMemoryError,
    ray_errors.NodeDiedError,
    ray_errors.ObjectLostError,
)


@dataclass(frozen=True, slots=True)
class ReplicaOptions:
    """How replicas are made.

    Attributes:
        least: Number of replicas, at least.
        most: Number of replicas, at most; Serve chooses by load.
        cpus: Processors of each, which are also its threads.
        gpus: GPUs of each, or a share of one.
        memory_bytes: Memory that each reserves on its machine; None for none.
        health_s: Seconds between two checks of a replica's health.
        grace_s: Seconds that a replica may take to end its jobs.
    """

    least: int = 1
    most: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int | None = None
    health_s: float = 2.0
    grace_s: float = 20.0


def connect(address: str, **options: Any) -> None:
    """Join a Ray cluster, or start one here.

    Args:
        address: ``local``; ``auto`` for the cluster that this machine belongs to; HOST:PORT of its head node.
        options: For :func:`ray.init`.

    Raises:
        HybridgeError: when Ray has another version, or the cluster cannot be reached.
    """
    check_version(ray.__version__)
    for name, value in _INLINE_BYTES.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # what it does is told here
    if "://" in address:
        raise HybridgeError(
            "this server must run on a machine of the Ray cluster",
            saw=address,
            expected="local, auto or HOST:PORT",
            hint="`ray start --address=HEAD:6379` on this machine, then --ray auto",
        )
    host, _, port = address.rpartition(":")
    if host:
        _check_port(host, port, address)
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.WARNING,
            **({"include_dashboard": False} if address == LOCAL else {}),
            **options,
        )
    except (ConnectionError, RuntimeError, ValueError, OSError, ray_errors.RayError) as error:
        raise _unreachable(address, error) from None


def check_version(version: str) -> None:
    """Raise :class:`HybridgeError` for a version of Ray that lacks what is used here."""
    if tuple(int(part) for part in version.split(".")[:2]) < LEAST_VERSION:
        raise HybridgeError(
            "this version of Ray does not fit",
            saw=version,
            expected=".".join(map(str, LEAST_VERSION)) + " or newer",
            hint="pip install 'hybridge[ray]', with the same version on every machine of the cluster",
        )


def _check_port(host: str, port: str, address: str) -> None:
    try:
        socket.create_connection((host, int(port)), _CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _unreachable(address, error) from None


def _unreachable(address: str, error: Exception) -> HybridgeError:
    said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    if "ersion mismatch" in str(error):
        said = " ".join(str(error).split())[:300]
        return HybridgeError(
            "the cluster runs another version of Ray or Python",
            saw=said,
            hint="the same versions of Ray, Python and hybridge on every machine",
        )
    return HybridgeError(
        "the Ray cluster cannot be reached",
        saw=f"{address}: {said}",
        expected="a head node that runs",
        hint="`ray status` here; `ray start --head` starts a head node, --ray local a cluster for this server",
    )


class ReplicaActor(Replica):
    """A replica in an actor of Ray Serve."""

    def __init__(self, make_backend: MakeBackend) -> None:
        _register()
        name = serve.get_replica_context().replica_id.unique_id
        super().__init__(name, get_node_ip_address(), make_backend)

    async def describe_async(self) -> ReplicaState:
        """See :meth:`Replica.describe`."""
        return self.describe()

    async def fingerprint_async(self, part: str) -> dict[str, Any]:
        """See :meth:`Replica.fingerprint`."""
        return await asyncio.to_thread(self.fingerprint, part)

    def check_health(self) -> None:
        """Raise if the replica should be started anew; Serve calls it."""
        reason = self._backend.health()
        if reason is not None:
            raise RuntimeError(reason)


class RayReplicas:
    """All replicas of a front.  :func:`connect` comes first.

    Args:
        make_backend: Makes the backend of a replica, in its process.
        options: How replicas are made.

    Raises:
        HybridgeError: when no replica can be started.
    """

    def __init__(self, make_backend: MakeBackend, options: ReplicaOptions) -> None:
        _register()
        self._grace_s = options.grace_s
        _check_resources(options)
        deployment = serve.deployment(ReplicaActor, name="replica", **_deployment_options(options))
        try:
            serve.start(proxy_location="Disabled")
            handle: Any = serve.run(deployment.bind(make_backend), name=APPLICATION, route_prefix=None)
        except (RuntimeError, RayServeException, ray_errors.RayError) as error:
            reason = _reason_of_start(error)
            _forget()
            raise HybridgeError(
                "no replica could be started",
                saw=reason,
                hint="`serve status`, and the logs in /tmp/ray on the machine of the replica",
            ) from None
        except KeyboardInterrupt:  # while it waits for a machine with room
            _forget()
            raise
        self._handle = handle
        _send_at_once(handle)
        self._orders = handle.options(method_name="run", stream=True)
        self._silent_orders = handle.options(method_name="run_silently")

    def describe(self) -> Sequence[ReplicaState]:
        try:
            answers = self._handle.broadcast("describe_async").results(timeout_s=_ANSWER_S, return_exceptions=True)
        except (RayServeException, ray_errors.RayError, TimeoutError, RuntimeError) as error:
            raise ReplicaLost(_reason_of(error), is_dead=False) from None
        return [answer for answer in answers if isinstance(answer, ReplicaState)]

    async def run(self, order: Order) -> AsyncGenerator[Reply, None]:
        is_silent = not (order.tells_progress or order.has_film)
        sent = (self._silent_orders if is_silent else self._orders).remote(order)
        has_ended = False
        try:
            if is_silent:  # sooner there and back than a stream of one reply
                reply = await sent
                has_ended = True
                yield reply
            else:
                async for reply in sent:
                    has_ended = isinstance(reply, Result | HybridgeError)
                    yield reply
        except Exception as error:
            has_ended = True
            raise _translated(error) from None
        finally:
            if not has_ended:
                sent.cancel()

    def fingerprint(self, part: str) -> Mapping[str, Any]:
        try:
            found: Mapping[str, Any] = self._handle.fingerprint_async.remote(part).result(timeout_s=600)
        except (RayServeException, ray_errors.RayError, TimeoutError) as error:
            raise ReplicaLost(_reason_of(error), is_dead=False) from None
        return found

    def close(self) -> None:
        try:
            serve.delete(APPLICATION, _blocking=True)
        except Exception as error:  # the cluster may have gone before its replicas
            log.warning("the replicas cannot be ended: %s", _reason_of(error))
        ray.shutdown()


def _send_at_once(handle: Any) -> None:
    """Let no replica first answer whether it accepts a call: it has to, and that answer takes a message of its own.

    Nothing public says so; a Ray that has another name for it sends that message.
    """
    router: Any = getattr(getattr(handle, "_router", None), "_asyncio_router", None)
    if hasattr(router, "_enable_strict_max_ongoing_requests"):
        router._enable_strict_max_ongoing_requests = False


def _forget() -> None:
    """Let Serve start no more replicas, if it answers."""
    with contextlib.suppress(RuntimeError, RayServeException, ray_errors.RayError):
        serve.delete(APPLICATION, _blocking=False)


def _reason_of_start(error: Exception) -> str:
    """What Serve says about replicas that do not start; its exception names only the application."""
    try:
        (deployment,) = serve.status().applications[APPLICATION].deployments.values()
    except (RuntimeError, RayServeException, ray_errors.RayError, KeyError, ValueError):
        return _reason_of(error)
    said = [line.strip() for line in deployment.message.splitlines() if line.strip()]
    return " ... ".join(dict.fromkeys([*said[:1], *said[-1:]]))[:500] if said else _reason_of(error)


def _register() -> None:
    for kind, (serializer, deserializer) in SERIALIZERS.items():
        register_serializer(kind, serializer=serializer, deserializer=deserializer)


def _deployment_options(options: ReplicaOptions) -> dict[str, Any]:
    resources: dict[str, Any] = {
        "num_cpus": options.cpus,
        "num_gpus": options.gpus,
        "runtime_env": {"env_vars": _REPLICA_ENVIRONMENT},
    }
    if options.memory_bytes is not None:
        resources["memory"] = options.memory_bytes
    number: dict[str, Any] = {"num_replicas": options.least}
    if options.most > options.least:
        # The front holds jobs back, so that two for each replica mean that more would wait.
        number = {
            "autoscaling_config": {
                "min_replicas": options.least,
                "max_replicas": options.most,
                "target_ongoing_requests": 1.0,
            }
        }
    return {
        **number,
        "ray_actor_options": resources,
        "logging_config": {"enable_access_log": False},  # the front records requests
        "max_ongoing_requests": _MOST_ORDERS,
        "health_check_period_s": options.health_s,
        "graceful_shutdown_timeout_s": options.grace_s,
        "request_router_config": {"request_router_class": OrderRouter},
    }


def _check_resources(options: ReplicaOptions) -> None:
    """Warn if the cluster has no machine for a replica at the moment; an autoscaled cluster may get one."""
    have = ray.cluster_resources()
    for name, wanted in (("CPU", options.cpus), ("GPU", options.gpus), ("memory", options.memory_bytes or 0)):
        if have.get(name, 0.0) < wanted * options.least:
            log.warning(
                "the cluster has %g of %s, and %d replicas want %g: waiting until it has more",
                *(have.get(name, 0.0), name, options.least, wanted * options.least),
            )


def _translated(error: Exception) -> Exception:
    """What an exception of Ray means here."""
    cause = getattr(error, "cause", None)
    for one in (error, cause):
        if isinstance(one, ray_errors.ObjectStoreFullError | ray_errors.OutOfDiskError):
            return OutOfMemory(
                "Ray's object store is full",
                saw=_reason_of(one),
                hint="again in a while, or `ray start --object-store-memory` with more",
            )
        if isinstance(one, _DEAD):
            return ReplicaLost(_reason_of(one), is_dead=True)
    if isinstance(error, HybridgeError):
        return error
    if isinstance(error, ray_errors.RayTaskError):
        log.error("an unexpected failure in a replica: %s", error)
        return EngineFailure("an unexpected failure in a replica", saw=type(cause or error).__name__)
    if isinstance(error, ray_errors.RayError | RayServeException):
        return ReplicaLost(_reason_of(error), is_dead=False)
    return error


def _reason_of(error: BaseException) -> str:
    """The kind of an error, and the first line of its text that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def wait_until_running(replicas: RayReplicas, number: int, patience_s: float) -> bool:
    """Wait until a number of replicas answer; False if that takes longer than ``patience_s``."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        try:
            if len(replicas.describe()) >= number:
                return True
        except ReplicaLost:
            pass
        time.sleep(0.1)
    return False
