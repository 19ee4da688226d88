"""The catalogue as ``hybridge lab list`` shows it: what each technique promises, and whether it can run here."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..techniques.catalogue import TECHNIQUES
from .arguments import TINY_METHOD, Arguments, Prompt, configurations
from .runner import StudyWorker


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
        guidance_scale=5.0,
        size=None,
        batch=1,
        device=device,
        dtype="auto",
        limit_s=TINY_METHOD.limit_s,
        server=server,
    )
    asked.check()
    with tempfile.TemporaryDirectory(prefix="hybridge-lab-") as folder:
        worker = StudyWorker(asked, Path(folder) / "none")
        try:
            missing = worker.describe()["missing"]
        finally:
            worker.tidy()
    nothing = {"outcome": None, "reason": None, "instead": None}
    return [
        {
            "name": row.name,
            "title": row.title,
            "claim": row.claim,
            "source": row.source,
            "exactness": row.exactness,
            "stage": row.stage,
            "needs": list(row.needs),
            **{key: missing.get(row.name, nothing)[key] for key in nothing},
        }
        for row in TECHNIQUES.values()
    ]
