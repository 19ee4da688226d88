"""What the settings about replicas and devices mean, and which of the others go with them."""

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


def split_devices(value: object) -> object:
    """Split devices with commas between them, also where the flag is repeated."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)):
        return value
    return tuple(part.strip() for text in texts for part in str(text).split(",") if part.strip())


def checked_devices(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of devices as they were given.

    Raises:
        ValueError: for ``auto`` among others, and for a GPU that occurs twice.
    """
    if len(values) > 1 and "auto" in values:
        raise ValueError("auto, or the names of several devices")
    gpus = [f"{value}:0" if value == "cuda" else value for value in values if value != "cpu"]
    if len(set(gpus)) < len(gpus):
        raise ValueError("each GPU once")
    return values


def check_replicas(given: set[str], *, has_ray: bool, devices: int = 1) -> None:
    """Raise ValueError for settings that do not go with replicas, or without them.

    Args:
        given: The names of the settings that are not left to their defaults.
        has_ray: Whether there are replicas.
        devices: The number of devices.
    """
    alone = {"replicas", "replica_cpus", "replica_gpus"} & given
    if alone and not has_ray:
        raise ValueError(f"--{min(alone).replace('_', '-')} needs --ray; --ray local starts a cluster here")
    if has_ray and devices > 1:
        raise ValueError("--ray gives each replica one device; --replicas says how many there are")
    if has_ray and "prompt_cache_dir" in given:
        raise ValueError("--prompt-cache-dir is for one process, and --ray has several")
