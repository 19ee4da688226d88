"""The replicas of ``hybridge serve --ray``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..engine import EngineOptions
    from ..models import ModelSpec, TextSpec
    from ..scaleout.backend import ReplicaBackend
    from ..server.settings import Settings

#: What Ray reads when it is imported: its own logs go to its files, and nothing is sent to its makers.
_ENVIRONMENT = {"RAY_SERVE_LOG_TO_STDERR": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def replicas_of(
    settings: Settings,
    vaes: Sequence[ModelSpec],
    texts: Sequence[TextSpec],
    options: EngineOptions,
    lora_folder: Path | None,
) -> ReplicaBackend:
    """Start the replicas, and return the backend that gives them jobs.

    Raises:
        HybridgeError: when Ray is not installed or does not fit, or the cluster cannot be reached, or no replica
            can be started.
    """
    from ..errors import HybridgeError

    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from ..scaleout.cluster import RayReplicas, ReplicaOptions, connect
    except ModuleNotFoundError as error:
        raise HybridgeError(
            f"--ray needs {(error.name or 'ray').partition('.')[0]}, which is not installed",
            hint="pip install 'hybridge[ray]'",
        ) from None
    from ..scaleout.backend import ReplicaBackend
    from ..scaleout.plan import ReplicaPlan
    from ..server.replica_settings import read_range

    plan = ReplicaPlan(
        tuple(vaes),
        tuple(texts),
        options,
        settings.memory,
        settings.prompt_cache_mib * 2**20,
        lora_folder,
        settings.offload_memory or 0,  # several replicas may share a machine, so half of it is not for each
        settings.preload,
    )
    least, most = read_range(settings.replicas)
    connect(settings.ray or "")
    replicas = RayReplicas(
        plan.make_backend,
        ReplicaOptions(
            least,
            most,
            settings.replica_cpus,
            settings.replica_gpus,
            settings.memory,
            grace_s=settings.grace_s,
        ),
    )
    backend = ReplicaBackend(replicas, settings.queue_limits)
    try:
        backend.check_loaded()
    except HybridgeError:
        backend.close()
        raise
    return backend
