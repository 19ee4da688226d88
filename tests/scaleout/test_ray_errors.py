"""What Ray's exceptions become, and what is refused before a cluster is joined; no cluster is started."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from hybridge.errors import EngineFailure, HybridgeError, OutOfMemory, ReplicaLost
from hybridge.models import CATALOGUE
from hybridge.scaleout.messages import Order

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Any:
    """The module, whose import needs Ray."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from hybridge.scaleout import cluster

    return cluster


def test_an_older_ray_is_refused(cluster: Any) -> None:
    cluster.check_version("2.60.0")
    cluster.check_version("3.0.0.dev0")
    with pytest.raises(HybridgeError, match=r"saw 2\.9\.3, expected 2\.55 or newer"):
        cluster.check_version("2.9.3")


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:6379"])
def test_an_address_of_another_kind_is_refused(cluster: Any, address: str) -> None:
    with pytest.raises(HybridgeError, match="must run on a machine of the Ray cluster"):
        cluster.connect(address)


@pytest.mark.parametrize("text", ["127.0.0.1:{port}", "127.0.0.1:port", "127.0.0.1:99999"])
def test_a_head_node_that_is_away_is_named(cluster: Any, text: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = text.format(port=unused.getsockname()[1])
        with pytest.raises(HybridgeError, match=f"cannot be reached: saw {address}"):
            cluster.connect(address)


def test_another_version_in_the_cluster_is_named(cluster: Any) -> None:
    said = "Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.11.7\nThis process: ..."
    error = cluster._unreachable("auto", RuntimeError(said))
    assert "another version of Ray or Python: saw Version mismatch" in str(error)
    assert "Ray: 2.59.0" in str(error)


def test_what_ray_raises_is_translated(cluster: Any) -> None:
    errors = cluster.ray_errors
    lost = cluster._translated(errors.ActorDiedError())
    assert isinstance(lost, ReplicaLost)
    assert lost.is_dead
    away = cluster._translated(errors.ActorUnavailableError("it does not answer", None))
    assert isinstance(away, ReplicaLost)
    assert not away.is_dead
    full = cluster._translated(errors.ObjectStoreFullError("no room"))
    assert isinstance(full, OutOfMemory)
    assert "object store is full" in str(full)
    in_replica = errors.RayTaskError("run", "Traceback ...\nMemoryError", errors.ObjectStoreFullError("no room"))
    assert isinstance(cluster._translated(in_replica), OutOfMemory)
    broken = cluster._translated(errors.RayTaskError("run", "Traceback ...", KeyError("x")))
    assert isinstance(broken, EngineFailure)
    assert "KeyError" in str(broken)
    ours = HybridgeError("ours")
    assert cluster._translated(ours) is ours


def test_an_order_goes_to_the_replica_that_it_names(cluster: Any) -> None:
    replicas = [SimpleNamespace(replica_id=SimpleNamespace(unique_id=name)) for name in ("a", "b")]
    told: list[tuple[str, int]] = []
    router = cluster.OrderRouter.__new__(cluster.OrderRouter)
    router.on_new_queue_len_info = lambda replica_id, number: told.append((replica_id.unique_id, number))

    def chosen(*arguments: object) -> list[list[Any]]:
        pending = SimpleNamespace(args=list(arguments))
        found: list[list[Any]] = asyncio.run(cluster.OrderRouter.choose_replicas(router, replicas, pending))
        return found

    job: Any = CATALOGUE["sd-v1"]
    assert chosen(Order(job, "b")) == [[replicas[1]]]
    assert told == [("b", 0)]
    assert chosen(Order(job, "gone")) == [replicas]
    assert chosen("something else") == [replicas]
    assert chosen() == [replicas]


def test_replicas_are_not_asked_first_whether_they_accept_an_order(cluster: Any) -> None:
    """The switch has no public name, so another Ray may lack it: calls would work, but take a message more."""
    from ray.serve._private.router import AsyncioRouter

    router = SimpleNamespace(_enable_strict_max_ongoing_requests=True)
    assert set(vars(router)) <= set(AsyncioRouter.__init__.__code__.co_names)
    cluster._send_at_once(SimpleNamespace(_router=SimpleNamespace(_asyncio_router=router)))
    assert not router._enable_strict_max_ongoing_requests
    cluster._send_at_once(SimpleNamespace())
