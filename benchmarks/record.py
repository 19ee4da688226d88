"""How a benchmark keeps what it measured: raw samples, with what they must not be compared without."""

from __future__ import annotations

import json
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from hybridge import __version__

_FOLDER = Path(__file__).parent / "records"


def keep(benchmark: str, name: str, measured: dict[str, Any]) -> Path:
    """Writes ``measured`` to ``records/{name}.json``, with date, version and environment; gives its path."""
    document = {
        "benchmark": benchmark,
        "version": 1,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "hybridge": __version__,
        "environment": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "device": "cuda" if torch.cuda.is_available() else "cpu",
        },
        **measured,
    }
    path = _FOLDER / f"{name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path
