"""What a record of ``hybridge bench vae`` holds, for all who read one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..harness.record import machine
from ..harness.stats import Summary, summary
from .cases import Arguments, Case


@dataclass(frozen=True, slots=True)
class Plan:
    """Of the exact engine; ``peak_bytes`` is what it planned on top of the weights."""

    mode: str
    reason: str
    peak_bytes: int | None = None
    flops: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What every entry has; ``missing`` says why nothing was measured."""

    task: str
    size: int
    dtype: str
    round: int
    missing: str | None = None
    frames: int = 1

    def is_of(self, case: Case) -> bool:
        """Whether it was measured for a case."""
        own = (self.task, self.size, self.frames, self.dtype)
        return own == (case.task, case.size, case.frames, case.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement(Entry):
    """A rival in one round; the first round also judges it.

    Attributes:
        seconds: Of each call that was timed.
        first_call_s: Of the call before them.
        peak_bytes: Of the judged call, on top of the weights.
        reference: Dtype of the untiled picture that it was compared with; None where it was not.
        relative_l2, psnr_db: See :func:`.subject.distance`.
        no_reference: Why there was nothing to compare with, or None.
        budget_bytes: What the exact engine was told that it may take.
    """

    rival: str
    seconds: tuple[float, ...] = ()
    first_call_s: float | None = None
    peak_bytes: int | None = None
    reference: str | None = None
    relative_l2: float | None = None
    psnr_db: float | None = None
    no_reference: str | None = None
    plan: Plan | None = None
    tile_pixels: int | None = None
    budget_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvolutionSpeed:
    """Convolutions of one shape: the FLOPs of all of them, and the speed by the size of the picture."""

    flops: int
    flops_per_s: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoofMeasurement(Entry):
    """The products of a case, measured alone in one round; see :mod:`.roofline`."""

    flops: int = 0
    convolutions: tuple[ConvolutionSpeed, ...] = ()
    attention_flops: int = 0
    matmul_flops_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Roof:
    """What the program's products take alone, and their FLOPs.

    Attributes:
        convolution_flops_per_s: Over all convolutions, each shape weighing as much as it has to do.
        matmul_flops_per_s: Of attention's products; None where there is no attention.
    """

    seconds: float
    flops: int
    convolution_flops_per_s: float
    matmul_flops_per_s: float | None


@dataclass(frozen=True, slots=True)
class Result:
    """What is known of one rival in one case.

    Attributes:
        time: Of its rounds; None where something is ``missing``.
        judged: The entry of the round that judged; None where there is no entry.
    """

    time: Summary | None
    missing: str | None
    judged: Measurement | None


@dataclass(frozen=True, slots=True)
class Model:
    """What was measured; ``weights`` is ``random``, or where they are from."""

    name: str
    weights: str


@dataclass(frozen=True, slots=True)
class VaeRecord:
    """A whole record."""

    date: str
    environment: dict[str, Any]
    arguments: Arguments
    model: Model
    roofs: tuple[RoofMeasurement, ...]
    measurements: tuple[Measurement, ...]

    @property
    def machine(self) -> str:
        """The name of what computed."""
        return machine(self.environment)

    def entries(self, case: Case, rival: str) -> list[Measurement]:
        """A rival's measurements of a case, round by round."""
        return [entry for entry in self.measurements if entry.rival == rival and entry.is_of(case)]

    def result(self, case: Case, rival: str) -> Result:
        """A rival's measurements of a case, put together."""
        entries = self.entries(case, rival)
        time = summary(entry.seconds for entry in entries)
        return Result(time, _missing(entries), entries[0] if entries else None)

    def roof(self, case: Case) -> tuple[Roof | None, str | None]:
        """(the roof of a case, why there is none)."""
        entries = [entry for entry in self.roofs if entry.is_of(case)]
        return roof_of([entry for entry in entries if not entry.missing]), _missing(entries)


def _missing(entries: Sequence[Entry]) -> str | None:
    return next((entry.missing for entry in entries if entry.missing), None)


def roof_of(measured: Sequence[RoofMeasurement]) -> Roof | None:
    """The roof from all rounds of one case: of every shape the best speed in any round, cached or not.

    None where none was measured.
    """
    if not measured:
        return None
    first = measured[0]
    convolving_s, flops = 0.0, 0
    for same in zip(*(one.convolutions for one in measured), strict=True):
        speed = max(itertools.chain.from_iterable(one.flops_per_s.values() for one in same))
        convolving_s += same[0].flops / speed
        flops += same[0].flops
    matmul = max((one.matmul_flops_per_s for one in measured if one.matmul_flops_per_s), default=None)
    attending_s = first.attention_flops / matmul if matmul else 0.0
    return Roof(convolving_s + attending_s, first.flops, flops / convolving_s, matmul)
