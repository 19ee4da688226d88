"""A rival's server: ``python -m hybridge.lab.serve_bench.competitors NAME JOB``, until it is ended.

The job is one JSON object, ``{"port": …, "models": [[name, model], …], "format": …}``.  Every model answers at
``POST /NAME``: safetensors in, a picture file out.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module

if __name__ == "__main__":
    import_module(f".{sys.argv[1]}", __package__).run(json.loads(sys.argv[2]))
