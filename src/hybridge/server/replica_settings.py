"""What the settings about replicas mean, and which of the others go with them."""

from __future__ import annotations

from typing import NamedTuple

#: Most replicas; a front for more would spend its time on asking them.
_MOST_REPLICAS = 1000


class ReplicaRange(NamedTuple):
    """How many replicas there are: Ray chooses by load."""

    least: int
    most: int


def read_range(text: str) -> ReplicaRange:
    """Read N or LEAST:MOST.

    Raises:
        ValueError: says what was expected.
    """
    least, separator, most = text.partition(":")
    try:
        found = ReplicaRange(int(least), int(most if separator else least))
    except ValueError:
        found = ReplicaRange(0, 0)
    if not 1 <= found.least <= found.most <= _MOST_REPLICAS:
        raise ValueError(f"1 to {_MOST_REPLICAS}, or LEAST:MOST such as 1:4")
    return found


def checked_range(text: str) -> str:
    """Return a range as it was given; raises like :func:`read_range`."""
    read_range(text)
    return text


def check_replicas(given: set[str], *, has_ray: bool) -> None:
    """Raise ValueError for settings that do not go with replicas, or without them.

    Args:
        given: The names of the settings that are not left to their defaults.
        has_ray: Whether there are replicas.
    """
    alone = {"replicas", "replica_cpus", "replica_gpus"} & given
    if alone and not has_ray:
        raise ValueError(f"--{min(alone).replace('_', '-')} needs --ray; --ray local starts a cluster here")
    if has_ray and "prompt_cache_dir" in given:
        raise ValueError("--prompt-cache-dir is for one process, and --ray has several")
