"""The catalogue as ``hybridge lab list`` shows it: what each technique promises, and whether it can run here."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..techniques.catalogue import TECHNIQUES
from .arguments import Arguments, Prompt, configurations
from .runner import StudyWorker

_SHOWN = ("name", "title", "claim", "source", "exactness", "stage")


def listed(pipeline: str, *, device: str = "auto", server: str | None = None) -> list[dict[str, Any]]:
    """A row for each technique; ``outcome``, ``reason`` and ``instead`` are None for those that can run.

    Args:
        pipeline: ``tiny``, a folder, or a hub id; it is loaded.
        device: ``auto`` or any torch device.
        server: Address of a hybridge server that techniques may use, or None.

    Raises:
        RequestError: when it is no pipeline.
        EngineFailure: when it cannot be loaded, or the device is not there.
    """
    asked = Arguments(
        pipeline=pipeline,
        prompts=(Prompt("none", "none", 0),),
        configurations=configurations(TECHNIQUES),
        runs=1,
        steps=50,
        size=None,
        device=device,
        dtype="auto",
        limit_s=1.0,  # nothing is measured
        server=server,
    )
    asked.check()
    with tempfile.TemporaryDirectory(prefix="hybridge-lab-") as folder:
        worker = StudyWorker(asked, Path(folder) / "none")
        try:
            missing = worker.describe()["missing"]
        finally:
            worker.tidy()
    return [
        {
            **{key: getattr(row, key) for key in _SHOWN},
            "needs": list(row.needs),
            **{key: missing.get(row.name, {}).get(key) for key in ("outcome", "reason", "instead")},
        }
        for row in TECHNIQUES.values()
    ]
