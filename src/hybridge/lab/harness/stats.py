"""From raw samples to the few numbers that a table shows.  No tensors, no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Summary:
    """Of samples in seconds.

    Attributes:
        median_s: The middle.
        lowest_s: The fastest.
        highest_s: The slowest.
        count: Samples.
    """

    median_s: float
    lowest_s: float
    highest_s: float
    count: int


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


@dataclass(frozen=True, slots=True)
class Roof:
    """What the program's products take alone; see :mod:`..vae_bench.roofline`.

    Attributes:
        seconds: Of all of them.
        flops: Of all of them.
        convolution_flops_per_s: Over all convolutions, each shape weighing as much as it has to do.
        matmul_flops_per_s: Of attention's products; None where there is no attention.
    """

    seconds: float
    flops: int
    convolution_flops_per_s: float
    matmul_flops_per_s: float | None


def roof_of(measured: Sequence[Mapping[str, Any]]) -> Roof | None:
    """The roof from all rounds of one case: of every shape the best speed in any round, cached or not.

    None where none was measured.
    """
    if not measured:
        return None
    convolving_s, flops = 0.0, 0
    for same in zip(*(one["convolutions"] for one in measured), strict=True):
        speed = max(speed for one in same for speed in one["flops_per_s"].values())
        convolving_s += same[0]["flops"] / speed
        flops += same[0]["flops"]
    matmul = max((one["matmul_flops_per_s"] for one in measured if one["matmul_flops_per_s"]), default=None)
    attending_s = measured[0]["attention_flops"] / matmul if matmul else 0.0
    return Roof(convolving_s + attending_s, measured[0]["flops"], flops / convolving_s, matmul)
