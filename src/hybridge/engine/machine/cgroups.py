"""Read the limits of this process: Linux's control groups, and the limits of the process itself.

A container or a service may have less memory and processor time than the machine.  Both versions of control groups
are read, for the process's own group and all groups that contain it: the smallest limit holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")

#: Version 1 reports at least this, rounded to pages, if there is no bound.
_NO_BOUND = 2**60


def own_groups(controller: str, root: Path = ROOT) -> Iterator[Path]:
    """Yield the folders of the groups that contain this process, innermost first, as far as they are visible.

    Args:
        controller: The controller's name, such as ``cpu`` or ``memory``.
        root: The folder that contains ``proc`` and ``sys``.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if controllers else "")
        # In a container the path may be the host's, of which only the top is visible.
        own = top / path.lstrip("/")
        for folder in (own, *own.parents):
            yield folder
            if folder == top:
                break


def granted_bytes(root: Path = ROOT) -> int | None:
    """Return the bytes that this process may still allocate; None where nothing bounds them.

    For each group this is its limit, less its usage, plus its page cache that can be freed; for the process it is
    its limits on address space and on data (``ulimit -v``, ``ulimit -d``), less its usage of each.
    """
    granted = [_granted_by(folder) for folder in own_groups("memory", root)]
    granted += _granted_by_limits(root)
    return min((amount for amount in granted if amount is not None), default=None)


def available_bytes(root: Path = ROOT) -> int | None:
    """Return the bytes that this process can get: the machine's available memory, or the granted bytes if fewer.

    None where neither is known.
    """
    known = [amount for amount in (_available_here(root), granted_bytes(root)) if amount is not None]
    return min(known, default=None)


def _granted_by(folder: Path) -> int | None:
    is_second = (folder / "memory.max").exists()
    limit = _number(folder / ("memory.max" if is_second else "memory.limit_in_bytes"))
    if limit is None or limit >= _NO_BOUND:
        return None
    used = _number(folder / ("memory.current" if is_second else "memory.usage_in_bytes")) or 0
    counted = _table(folder / "memory.stat")
    names = ("inactive_file", "active_file") if is_second else ("total_inactive_file", "total_active_file")
    return max(0, limit - max(0, used - sum(counted.get(name, 0) for name in names)))


def _granted_by_limits(root: Path) -> list[int | None]:
    try:
        import resource
    except ModuleNotFoundError:  # not POSIX
        return []
    status = _table(root / "proc/self/status")
    granted: list[int | None] = []
    for limit, held in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY and soft < _NO_BOUND:
            granted.append(max(0, soft - status.get(held, 0) * 1024))
    return granted


def _available_here(root: Path) -> int | None:
    amount = _table(root / "proc/meminfo").get("MemAvailable")
    return None if amount is None else amount * 1024


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # the file does not exist, or contains `max`
        return None


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.replace(":", " ").split() for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) > 1 and pair[1].isdecimal()}
