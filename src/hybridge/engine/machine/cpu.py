"""Find how many processors this process may use, and the size of their shared cache.

torch uses one thread for each processor that it may run on.  A container or a service can be granted less processor
time (``docker run --cpus 2``, ``CPUQuota=200%``), which torch ignores: threads that wait for each other at a
barrier then use up the granted time, and all of them stop until the next period.
"""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path

import torch

from .cgroups import ROOT, own_groups


def limit_threads(root: Path = ROOT) -> None:
    """Limit torch's threads to the processor time that is granted to this process.

    It does nothing if OpenMP's own variable is set.  Only a process that hybridge starts calls it, before
    computing.
    """
    granted = granted_processors(root)
    if granted is not None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), max(1, math.ceil(granted))))


def threads_of(device: torch.device) -> int | None:
    """Return the number of threads on a CPU, which affects a result's last bits; None for other devices."""
    return torch.get_num_threads() if device.type == "cpu" else None


@cache
def shared_cache_bytes(root: Path = ROOT) -> int:
    """Return the bytes of the cache that the first processor shares, as Linux reports it; 0 if unknown."""
    try:
        size = (root / "sys/devices/system/cpu/cpu0/cache/index3/size").read_text(encoding="ascii").strip()
    except OSError:
        return 0
    return int(size.removesuffix("K")) * 1024


def granted_processors(root: Path = ROOT) -> float | None:
    """Return the processor time per second that Linux's control groups grant, in seconds; None for no bound.

    Both versions of control groups are read, for the process's own group and all groups that contain it: the
    smallest limit holds.

    Args:
        root: The folder that contains ``proc`` and ``sys``.
    """
    granted = (_granted_by(folder) for folder in own_groups("cpu", root))
    return min((amount for amount in granted if amount is not None), default=None)


def _granted_by(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii").strip() for name in ("quota", "period")
            )
    except OSError:
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
