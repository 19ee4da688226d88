"""The guide's memory figures for SDXL, beside what the estimator says of the same stacks."""

from __future__ import annotations

from dataclasses import dataclass

from .phases import estimate
from .types import Estimate, Setup


@dataclass(frozen=True, slots=True)
class Figure:
    """One that the guide's text gives.

    Attributes:
        title: For people.
        setup: What was run.
        gb: Its number: ``torch.cuda.max_memory_allocated()`` / 1e9 on an RTX 3090.
        note: What has to be known of it.
    """

    title: str
    setup: Setup
    gb: float
    note: str = ""


def _sdxl(*stack: str, **more: bool) -> Setup:
    return Setup("sdxl", ("fp16", *stack), **more)


FIGURES = (
    Figure("FP16 baseline", _sdxl(), 11.24),
    Figure("with VAE FP16 fix", _sdxl("vae-fp16-fix"), 9.55, "the guide says nearly 15 % less than 11.24"),
    Figure("with Tiny VAE", _sdxl("tiny-vae"), 6.91, "with OneDiff, of which it says that it takes no more memory"),
    Figure(
        "with the refiner",
        _sdxl(refiner=True, shares_refiner=False),
        17.38,
        "text encoder and VAE of the refiner's pipeline loaded once more",
    ),
    Figure("model offload", _sdxl("model-offload"), 5.62, "the guide says exactly half of 11.24"),
    Figure("batch processing", _sdxl("batch-processing"), 5.77),
    Figure("batch processing with Tiny VAE", _sdxl("batch-processing", "tiny-vae"), 5.60),
    Figure("batch processing with the refiner", _sdxl("batch-processing", refiner=True), 5.77),
    Figure(
        "sequential offload with VAE FP16 fix", _sdxl("sequential-offload", "vae-fp16-fix"), 2.56, "lower bound"
    ),
    Figure("sequential offload with Tiny VAE", _sdxl("sequential-offload", "tiny-vae"), 0.68, "lower bound"),
)


@dataclass(frozen=True, slots=True)
class Compared:
    """A figure and the estimate of it.

    Attributes:
        figure: The guide's.
        estimate: Ours.
    """

    figure: Figure
    estimate: Estimate

    @property
    def off(self) -> float:
        """How far the estimate is from the guide, as a part of the guide's: below zero where it says less."""
        return self.estimate.peak_bytes / 1e9 / self.figure.gb - 1


def compared() -> tuple[Compared, ...]:
    """Every figure."""
    return tuple(Compared(figure, estimate(figure.setup)) for figure in FIGURES)
