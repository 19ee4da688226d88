"""Fork servers that all tests of a process share: loading their libraries takes seconds, which each run would take.

What is tested of :class:`ForkServer` itself has its tests in ``lab/harness/test_worker_process.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hybridge.lab.harness.worker_process import ForkServer

_STARTED: dict[tuple[str, frozenset[tuple[str, str]]], ForkServer] = {}


class SharedForkServer(ForkServer):
    """A fork server whose process is that of an earlier one with the same module and variables."""

    def _started(self) -> Any:
        key = (self._module, frozenset(self._variables.items()))
        first = _STARTED.setdefault(key, ForkServer(self._module, self._folder, self._variables))
        if first._running is None or first._running[0].poll() is not None:
            first.close()
            first._running = ForkServer._started(first)
        return first._running

    def close(self) -> None:
        """The process stays for the next one."""
        self._running = None


def close_all() -> None:
    for one in _STARTED.values():
        one.close()
    _STARTED.clear()


def forking_ask(folder: Path) -> Any:
    """What :func:`ask` does, in forks; the files for that are in a folder of the test."""

    def ask(module: str, job: dict[str, Any], **how: Any) -> dict[str, Any]:
        return SharedForkServer(module, folder, {}).ask(job, **how)

    return ask
