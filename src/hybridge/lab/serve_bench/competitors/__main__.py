"""A rival's server: ``python -m hybridge.lab.serve_bench.competitors NAME JOB``, until it is ended.

The job is one JSON object, ``{"port": …, "models": [[name, model], …], "format": …}``.  Every model answers at
``POST /NAME``: safetensors in, a picture file out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any


def litserve(job: dict[str, Any]) -> None:
    """LitServe: one worker process for each model, as it comes; no time limit of its own."""
    from .litserve import run

    run(job)


def ray(job: dict[str, Any]) -> None:
    """Ray Serve: one replica for each model."""
    from .ray import run

    run(job)


SERVERS: dict[str, Callable[[dict[str, Any]], None]] = {"litserve": litserve, "ray": ray}

if __name__ == "__main__":
    SERVERS[sys.argv[1]](json.loads(sys.argv[2]))
