"""What is asked of a simulated server: kinds of jobs with their measured seconds, and when they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from ...errors import RequestError
from ..serve_bench import load_generator

#: Bytes of latents and of a picture's file for each pixel, at most about: four float32 for 8×8 pixels, three bytes.
_SENT_BYTES, _ANSWERED_BYTES = 16 / 64, 3.0

#: Most jobs of one simulation, which then takes a minute or so.
MOST_JOBS = 1_000_000


@dataclass(frozen=True, slots=True)
class JobClass:
    """Jobs of one kind.

    Attributes:
        name: Such as ``starter 256²``.
        device_s: Seconds on a device, as they were measured; one of them is drawn for each job.
        weight: Its share of the load.
        front_s: Seconds of the front's processor for each.
        aside_s: Seconds beside the queue, the device and the front's processor, such as writing a picture's file.
        nbytes: Bytes that pass between front and replica for each, in both directions together.
    """

    name: str
    device_s: tuple[float, ...]
    weight: float = 1.0
    front_s: float = 0.0
    aside_s: float = 0.0
    nbytes: float = 0.0

    @property
    def mean_s(self) -> float:
        """Mean seconds on a device."""
        return sum(self.device_s) / len(self.device_s)


def mean_seconds(kinds: Sequence[JobClass]) -> float:
    """Mean seconds of a job on a device, over all kinds."""
    return fmean([kind.mean_s for kind in kinds], [kind.weight for kind in kinds])


def bytes_of(size: int) -> float:
    """Bytes of latents and a picture's file for a picture of this side in pixels, about."""
    return size * size * (_SENT_BYTES + _ANSWERED_BYTES)


def poisson(kinds: Sequence[JobClass], rate: float, seconds: float, seed: int) -> Iterator[tuple[float, JobClass]]:
    """Jobs that come at random, ``rate`` in a second, each of a kind drawn by weight."""
    weights = [kind.weight for kind in kinds]
    return load_generator.poisson(kinds, weights, rate, load_generator.Bounds(seconds, None), seed)


def read_trace(path: Path, kinds: Sequence[JobClass]) -> list[tuple[float, JobClass]]:
    """Return the jobs of a trace: a line for each, ``SECOND`` or ``SECOND,KIND``; without a kind it is the first.

    Raises:
        RequestError: for what is no trace, with the line.
    """
    named = {kind.name: kind for kind in kinds}
    arrivals: list[tuple[float, JobClass]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError("the trace cannot be read", saw=f"{path}: {error}", expected="a text file") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        second, _, name = (part.strip() for part in line.partition(","))
        try:
            at_s = float(second)
        except ValueError:
            at_s = -1.0
        if not 0 <= at_s < float("inf") or (name and name not in named):
            raise RequestError(
                f"line {number} of the trace is no job",
                saw=line[:60],
                expected=f"SECOND or SECOND,KIND with one of {', '.join(named)}",
            )
        arrivals.append((at_s, named[name] if name else kinds[0]))
        if len(arrivals) > MOST_JOBS:
            raise RequestError("the trace is too long", expected=f"at most {MOST_JOBS} jobs")
    if not arrivals:
        raise RequestError("the trace has no jobs", saw=path)
    return sorted(arrivals, key=lambda arrival: arrival[0])
