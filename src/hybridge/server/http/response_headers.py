"""Response headers about the job: its model, what was inferred, how it was run, and how long that took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ... import protocol
from ...models.doctor.causes import Finding
from ..scheduling.job import Job, Result, RunInfo

#: Tells nginx, and proxies that know its header, to pass each piece on without buffering.
UNBUFFERED = {"x-accel-buffering": "no"}


def about_job(job: Job[Any]) -> dict[str, str]:
    """Return the headers that are known before the job runs, and which headers web pages may read."""
    about = {
        "hybridge-model": job.spec.name,
        "access-control-expose-headers": ", ".join(protocol.EXPOSED_HEADERS),
    }
    if job.inferred:
        about["hybridge-inferred"] = job.inferred
    return about | _warnings(job.findings)


def about_run(result: Result, milliseconds: Mapping[str, float]) -> dict[str, str]:
    """Return the headers that are known after the run: the time of each stage, and the engine's plan."""
    about = {"server-timing": ", ".join(f"{stage};dur={spent:.1f}" for stage, spent in milliseconds.items())}
    if result.ran is not None:
        about["hybridge-plan"] = _shown(result.ran)
    if result.receipt is not None:
        about["hybridge-receipt"] = result.receipt(False).header()
    return about | _warnings(result.findings)


def _warnings(found: Sequence[Finding]) -> dict[str, str]:
    """The sentences of findings and their codes; a header holds ASCII."""
    if not found:
        return {}
    sentences = "; ".join(str(finding) for finding in found)
    return {
        "hybridge-warning": sentences.encode("ascii", "replace").decode("ascii"),
        "hybridge-findings": ", ".join(dict.fromkeys(finding.code for finding in found)),
    }


def _shown(ran: RunInfo) -> str:
    parts = [f"mode={ran.mode}"]
    if ran.peak_bytes is not None:
        parts.append(f"peak_bytes={ran.peak_bytes}")
    if ran.flops is not None:
        parts.append(f"tflop={ran.flops / 1e12:.3g}")
    if ran.exactness:
        parts.append(f"exactness={ran.exactness}")
    return "; ".join(parts)
