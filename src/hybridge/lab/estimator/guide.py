"""The guide's memory figures for SDXL, beside what the estimator says of the same stacks."""

from __future__ import annotations

from dataclasses import dataclass

from ..techniques.guide import MEMORY
from .phases import estimate
from .types import Estimate, Setup


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure that the guide's text gives, and the estimate of it.

    Attributes:
        gb: The guide's number, of an RTX 3090.
        note: What has to be known of it.
    """

    title: str
    gb: float
    note: str
    estimate: Estimate

    @property
    def off(self) -> float:
        """How far the estimate is from the guide, as a part of the guide's: below zero where it says less."""
        return self.estimate.peak_bytes / 1e9 / self.gb - 1


def compared() -> tuple[Figure, ...]:
    """Every figure."""
    return tuple(
        Figure(
            row["title"],
            row["gb"],
            row.get("note", ""),
            estimate(
                Setup(
                    "sdxl",
                    tuple(row["stack"]),
                    refiner=row.get("refiner", False),
                    shares_refiner=row.get("shares_refiner", True),
                )
            ),
        )
        for row in MEMORY
    )
