"""What an answer says about itself, in headers: which model made it, what was guessed, how it was run, how long
that took."""

from __future__ import annotations

from collections.abc import Mapping

from ... import protocol
from ..scheduling.job import AnyJob, AnyResult, RunInfo

#: Tells nginx, and proxies that took its word for it, to pass each piece on as it comes.
UNBUFFERED = {"x-accel-buffering": "no"}


def about_job(job: AnyJob, inferred: str | None) -> dict[str, str]:
    """What is known before it is run, and which headers the pages of a browser may read.

    Args:
        job: What is answered.
        inferred: How the model was found, where the sender named none.
    """
    about = {
        "hybridge-model": job.spec.name,
        "access-control-expose-headers": ", ".join(protocol.EXPOSED_HEADERS),
    }
    if inferred:
        about["hybridge-inferred"] = inferred
    if job.warning:
        about["hybridge-warning"] = job.warning
    return about


def about_run(result: AnyResult, milliseconds: Mapping[str, float]) -> dict[str, str]:
    """What is known once it was run: the time of each stage, and the engine's plan."""
    about = {"server-timing": ", ".join(f"{stage};dur={spent:.1f}" for stage, spent in milliseconds.items())}
    if result.ran is not None:
        about["hybridge-plan"] = _shown(result.ran)
    return about


def _shown(ran: RunInfo) -> str:
    parts = [f"mode={ran.mode}"]
    if ran.peak_bytes is not None:
        parts.append(f"peak_bytes={ran.peak_bytes}")
    if ran.flops is not None:
        parts.append(f"tflop={ran.flops / 1e12:.3g}")
    return "; ".join(parts)
