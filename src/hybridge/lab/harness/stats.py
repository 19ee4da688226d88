"""From raw samples to the few numbers that a table shows.  No tensors, no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Summary:
    """Of samples in seconds; ``samples`` is their number."""

    median_s: float
    lowest_s: float
    highest_s: float
    samples: int


def summary(rounds: Iterable[Sequence[float]]) -> Summary | None:
    """Every round counts once, by its median: a round is one process, whose samples share its luck.

    None where there is no sample.
    """
    medians = [statistics.median(samples) for samples in rounds if samples]
    if not medians:
        return None
    return Summary(statistics.median(medians), min(medians), max(medians), len(medians))


def percentile(samples: Sequence[float], share: float) -> float:
    """The lowest sample that at least ``share`` of all are not above (nearest rank): one that was seen, always.

    Args:
        samples: One at least, in any order.
        share: In (0, 1].
    """
    # Rounded first: 0.95 × 20 is 19, not a hair more.
    return sorted(samples)[math.ceil(round(share * len(samples), 9)) - 1]
