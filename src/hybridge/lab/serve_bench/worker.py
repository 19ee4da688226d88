"""The engine alone in a process, for ``hybridge bench serve``: ``python -m hybridge.lab.serve_bench.worker``."""

from __future__ import annotations

from typing import Any

from ...engine.options import choose_device
from ..harness.environment import environment, version
from ..harness.worker_process import Jobs, Say, answer
from .served_model import run_engine

#: Libraries that only this benchmark depends on, by what they are called in the environment.
_LIBRARIES = ("litserve", "ray", "uvicorn")


def describe(_job: dict[str, Any], say: Say) -> dict[str, Any]:
    """The machine and the libraries; a server elsewhere has another machine, which is not known here."""
    say("looking at the device")
    seen = environment(choose_device("auto").value)
    return {"environment": seen | {library: version(library) for library in _LIBRARIES}}


JOBS: Jobs = {"describe": describe, "engine": run_engine}


if __name__ == "__main__":
    answer(JOBS)
