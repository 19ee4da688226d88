"""From a study's raw samples to what a page says of each configuration.  Arithmetic only: no words, no drawing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ..harness.stats import Summary, summary
from ..studies.arguments import BASELINE, Arguments
from ..studies.record import Difference, Measurement, Pipeline, Study
from ..techniques.facts import TechniqueResult
from .sources import Source

#: How memory was looked at.  *allocated*: by CUDA's allocator.  *counted*: weights, and live tensors on top.
#: *resident*: by the system, with all libraries.
Measure = Literal["allocated", "counted", "resident"]

#: The better one first: resident memory holds freed pages too, and is compared last.
MEASURES: tuple[Measure, ...] = ("allocated", "counted", "resident")

#: PSNR from which eight-bit pictures are told apart by programs only.
SAME_PICTURE_DB = 40.0

#: PSNR below which it is not the baseline's picture in any sense: a black one is at about 6 dB, pictures of other
#: subjects are at 8 to 11 dB.  Fewer steps and caches, which change details, stay above 15 dB.
LEAST_PICTURE_DB = 12.0


@dataclass(frozen=True, slots=True)
class WorstDifference:
    """From the baseline's pictures: of all prompts the worst.  None: not measured.

    Attributes:
        equal: The same bits, for every prompt.
    """

    equal: bool = False
    psnr_db: float | None = None
    ssim: float | None = None
    largest: float | None = None
    lpips: float | None = None
    clip_score: float | None = None
    caption: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A configuration.  Ratios are to the baseline of the same record: both sides measured in one run.

    Attributes:
        time: Of one warm picture: of all prompts and runs.
        within_noise: Its samples and the baseline's overlap, so that no difference in time was shown.
        step_s: Seconds of a picture for each of its denoising steps.
        calls: Batch size of the denoiser at each of its forwards for one picture.
        memory, memory_ratios: Peak bytes, by measure.
        pictures: Files by prompt, as the record names them, under ``folder``.
    """

    name: str
    techniques: tuple[str, ...]
    outcome: str
    reason: str | None
    parts: tuple[TechniqueResult, ...]
    folder: Path
    time: Summary | None = None
    time_ratio: float | None = None
    within_noise: bool = False
    step_s: float | None = None
    first_s: float | None = None
    load_s: float | None = None
    preparation_s: float | None = None
    calls: tuple[int, ...] = ()
    weights_bytes: int | None = None
    memory: dict[Measure, int] = field(default_factory=dict)
    memory_ratios: dict[Measure, float] = field(default_factory=dict)
    difference: WorstDifference | None = None
    pictures: dict[str, str] = field(default_factory=dict)
    why_not_counted: str | None = None

    @property
    def seconds(self) -> float:
        """Of a warm picture, the median; endless without any."""
        return self.time.median_s if self.time else math.inf

    @property
    def is_baseline(self) -> bool:
        return self.name == BASELINE

    @property
    def is_stack(self) -> bool:
        return len(self.techniques) > 1

    @property
    def counts(self) -> bool:
        """Whether its numbers are of something that was in force."""
        return self.time is not None and (self.outcome == "worked" or self.is_baseline)

    @property
    def may_win(self) -> bool:
        """Whether it was in force and its worst picture still shows what the baseline's shows."""
        if not self.counts or self.is_baseline or self.difference is None:
            return self.counts
        return self.difference.equal or (self.difference.psnr_db or 0.0) >= LEAST_PICTURE_DB

    @property
    def keeps_the_picture(self) -> bool:
        """Nobody would see a difference."""
        if self.difference is None or self.is_baseline:
            return self.is_baseline
        return self.difference.equal or (self.difference.psnr_db or 0.0) >= SAME_PICTURE_DB


@dataclass(frozen=True, slots=True)
class Findings:
    """Of all studies of a page.

    Attributes:
        rows: The baseline first, then as they were asked for.
        asked: Configurations that were asked for; more than rows while a study is not done.
        measures: Of memory, that can be compared here; the first is the one in the table.
        arguments: Of the first study.
        not_scored: What pictures could not be judged by, and why.
    """

    rows: tuple[Row, ...]
    asked: int
    measures: tuple[Measure, ...]
    arguments: Arguments
    pipeline: Pipeline
    not_scored: dict[str, str]

    @property
    def baseline(self) -> Row | None:
        return next((row for row in self.rows if row.is_baseline and row.time), None)

    def measured(self, techniques: Iterable[str]) -> Row | None:
        """The configuration of these techniques, in whatever order, that has a time."""
        wanted = sorted(techniques)
        return next((row for row in self.rows if sorted(row.techniques) == wanted and row.time), None)

    def front(self, measure: Measure) -> list[Row]:
        """Pareto's: whatever is faster takes more memory, whatever is smaller takes longer.  Fastest first."""
        least, found = math.inf, []
        points = [row for row in self.rows if row.may_win and measure in row.memory]
        for row in sorted(points, key=lambda row: (row.seconds, row.memory[measure])):
            if row.memory[measure] < least:
                least = row.memory[measure]
                found.append(row)
        return found

    def fastest(self) -> Row | None:
        return min((row for row in self.rows if row.may_win), key=lambda row: row.seconds, default=None)

    def smallest(self, measure: Measure) -> Row | None:
        found = [row for row in self.rows if row.may_win and measure in row.memory]
        return min(found, key=lambda row: (row.memory[measure], row.seconds), default=None)

    def trade_off(self, measure: Measure, *, same_picture: bool = False) -> Row | None:
        """The least product of time and memory: halving one is worth doubling the other."""
        found = [
            row
            for row in self.rows
            if row.may_win and measure in row.memory and (row.keeps_the_picture or not same_picture)
        ]
        return min(found, key=lambda row: row.seconds * row.memory[measure], default=None)


def findings(sources: Sequence[Source[Study]]) -> Findings:
    """What the studies found; of a configuration that is in several, the last has the word."""
    rows: dict[str, Row] = {}
    baselines = [_baseline(source.read) for source in sources]
    fallback = next((one for one in baselines if one), None)
    for source, baseline in zip(sources, baselines, strict=True):
        for measured in source.read.measurements:
            row = _row(source.read.arguments, source.path.parent, measured, baseline or fallback)
            rows[measured.configuration] = row
    asked = {one.name for source in sources for one in source.read.arguments.configurations}
    in_order = sorted(rows.values(), key=lambda row: not row.is_baseline)
    first = sources[0].read
    return Findings(
        tuple(in_order),
        len(asked | rows.keys()),
        _measures(in_order),
        first.arguments,
        first.pipeline,
        first.not_scored,
    )


def _baseline(study: Study) -> Measurement | None:
    return next((one for one in study.measurements if one.configuration == BASELINE and one.seconds), None)


def _row(asked: Arguments, folder: Path, measured: Measurement, baseline: Measurement | None) -> Row:
    name = measured.configuration
    techniques = asked.techniques_of(name)
    row = Row(
        name,
        tuple(part.name for part in measured.techniques) if techniques is None else techniques,
        measured.outcome,
        measured.reason,
        measured.techniques,
        folder,
    )
    time = _time(measured, asked.batch)
    if time is None:
        return row
    memory = _memory(measured)
    beside = _time(baseline, asked.batch) if baseline else None
    bytes_beside = _memory(baseline) if baseline else {}
    return replace(
        row,
        time=time,
        time_ratio=time.median_s / beside.median_s if beside and beside.median_s else None,
        within_noise=beside is not None and time.lowest_s <= beside.highest_s and beside.lowest_s <= time.highest_s,
        step_s=time.median_s * asked.batch / measured.steps if measured.steps else None,
        first_s=measured.first_picture_s,
        load_s=measured.load_s,
        preparation_s=measured.preparation_s,
        calls=measured.denoiser_calls,
        weights_bytes=measured.weights_bytes,
        memory=memory,
        memory_ratios={key: memory[key] / bytes_beside[key] for key in memory if bytes_beside.get(key)},
        difference=_worst((measured.difference or {}).values(), is_baseline=row.is_baseline),
        pictures=measured.pictures,
        why_not_counted=measured.why_not_exact,
    )


def _time(measured: Measurement, batch: int) -> Summary | None:
    return summary([second / batch] for second in measured.samples)


def _memory(measured: Measurement) -> dict[Measure, int]:
    peak, counted = measured.peak, None
    if peak.exact_bytes is not None and measured.weights_bytes is not None:
        counted = peak.exact_bytes + measured.weights_bytes
    found: dict[Measure, int | None] = {
        "allocated": peak.allocated_bytes,
        "counted": counted,
        "resident": peak.resident_bytes,
    }
    return {measure: count for measure, count in found.items() if count}


def _measures(rows: Sequence[Row]) -> tuple[Measure, ...]:
    known = [row.memory.keys() for row in rows if row.is_baseline and row.time] or [
        row.memory.keys() for row in rows
    ]
    return tuple(measure for measure in MEASURES if any(measure in memory for memory in known))


def _worst(prompts: Iterable[Difference], *, is_baseline: bool) -> WorstDifference | None:
    found = list(prompts)
    if not found:
        return None

    def values(key: str) -> list[float]:
        return [value for one in found if (value := getattr(one, key)) is not None]

    clip_score, caption = (
        statistics.mean(values(key)) if values(key) else None for key in ("clip_score", "caption")
    )
    if is_baseline:  # from itself there is no difference worth a word
        return WorstDifference(clip_score=clip_score, caption=caption)
    largest = max(values("largest"), default=None)
    return WorstDifference(
        # A PSNR of null says equal; a damaged picture (NaN) has none either, but a difference.
        equal=not values("psnr_db") and largest == 0,
        psnr_db=min(values("psnr_db"), default=None),
        ssim=min(values("ssim"), default=None),
        largest=largest,
        lpips=max(values("lpips"), default=None),
        clip_score=clip_score,
        caption=caption,
    )
