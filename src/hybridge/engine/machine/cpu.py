"""What the machine has of processors: how many this process may use, and the cache that they share.

torch takes a thread for each processor that it may run on.  A container or a service can be granted less time than
that (``docker run --cpus 2``, ``CPUQuota=200%``), which torch does not look at: then threads that wait for each
other at a barrier use up what was granted, and all of them stand still until the next period.
"""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path

import torch

from .cgroups import ROOT, own_groups


def limit_threads(root: Path = ROOT) -> None:
    """Has torch take no more threads than there is time granted for.

    Whoever has set OpenMP's own variable is left alone.  This is for a process that is ours, before it computes.
    """
    granted = granted_processors(root)
    if granted is not None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), max(1, math.ceil(granted))))


def threads_of(device: torch.device) -> int | None:
    """How many threads add up a run's numbers on a CPU, on which its last bits depend; None on other devices."""
    return torch.get_num_threads() if device.type == "cpu" else None


@cache
def shared_cache_bytes(root: Path = ROOT) -> int:
    """Of the cache that the first processor shares with others, by Linux's word; 0 where nobody says so."""
    try:
        size = (root / "sys/devices/system/cpu/cpu0/cache/index3/size").read_text(encoding="ascii").strip()
    except OSError:
        return 0
    return int(size.removesuffix("K")) * 1024


def granted_processors(root: Path = ROOT) -> float | None:
    """Seconds of processor time that a second may have, by Linux's control groups; None for no bound.

    Both versions of them are read, and the groups that this process's own lies in: the least holds.

    Args:
        root: Where ``proc`` and ``sys`` are.
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
