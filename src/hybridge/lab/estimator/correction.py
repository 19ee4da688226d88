"""What a measured study says of the estimate: how much its baseline took, and how fast it was.

Weights are exact as they are.  What is corrected is what comes on top of them: its ratio in the study's baseline is
applied to every phase of every stack.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import RequestError
from ..harness import record
from .cost_table import weights_of
from .phases import estimate
from .shapes import PipelineShape, shape_named
from .types import Estimate, Phase, Setup

#: Two counts of the same denoiser may differ by this: buffers, tied weights.
_SAME = 0.01

#: A baseline's dtype as a stack.
_STACKS: dict[str, tuple[str, ...]] = {"float32": (), "float16": ("fp16",), "bfloat16": ("bf16",)}


@dataclass(frozen=True, slots=True)
class Measured:
    """One configuration of a study that worked.

    Attributes:
        stack: Its techniques.
        peak_bytes: Of everything on the device; None where only a part was measured.
        seconds: Of a call, the median of all prompts and runs; None where there are none.
    """

    stack: tuple[str, ...]
    peak_bytes: int | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Correction:
    """What a study of the same pipeline says.

    Attributes:
        source: The record, for people.
        above_weights: Measured through estimated, of what the baseline took on top of its weights.
        has_workspace: Whether what libraries take was measured with it, so that no allowance is needed: it is where
            the device's allocator was asked, and is not where tensors were counted.
        flops_per_s: At which the baseline ran; None where no time was measured.
        measured: Every configuration that worked.
    """

    source: str
    above_weights: float
    has_workspace: bool
    flops_per_s: float | None
    measured: tuple[Measured, ...]

    def applied(self, phase: Phase) -> Phase:
        """The phase as this device would have it."""
        return replace(
            phase,
            activations_bytes=round(phase.activations_bytes * self.above_weights),
            workspace_bytes=0 if self.has_workspace else phase.workspace_bytes,
        )

    def of(self, stack: tuple[str, ...]) -> Measured | None:
        """What was measured of exactly these techniques, in whatever order."""
        return next((one for one in self.measured if sorted(one.stack) == sorted(stack)), None)


def read_correction(path: Path, pipeline: str) -> Correction:
    """What a study's record says of the estimates of this pipeline.

    Raises:
        RequestError: for a file that is no study, one of another pipeline, or one whose baseline has no peak.
        OSError: when it cannot be read.
    """
    study = record.read(path, "study")
    shape = shape_named(pipeline)
    try:
        return _read(study, shape, path)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise RequestError(
            f"{path} lacks what a study has",
            saw=f"{type(error).__name__}: {error}",
            expected="a finished study.json",
        ) from None


def _read(study: Mapping[str, Any], shape: PipelineShape, path: Path) -> Correction:
    _check_same(study["pipeline"], shape, path)
    arguments = study["arguments"]
    techniques = {one["name"]: tuple(one["techniques"]) for one in arguments["configurations"]}
    worked = [one for one in study["measurements"] if one["outcome"] == "worked"]
    baseline = next((one for one in worked if not techniques[one["configuration"]]), None)
    if baseline is None:
        raise RequestError(f"{path} has no baseline that worked", expected="a configuration without techniques")
    setup = Setup(
        shape.name,
        _STACKS[arguments["dtype"]],
        height=arguments["size"],
        width=arguments["size"],
        batch=arguments["batch"],
        steps=arguments["steps"],
    )
    return _corrected(estimate(setup), baseline, str(path), [_measured(one, techniques, setup) for one in worked])


def _corrected(
    expected: Estimate, baseline: Mapping[str, Any], source: str, measured: list[Measured]
) -> Correction:
    peak, largest = baseline["peak"], max(expected.phases, key=lambda phase: phase.counted_bytes)
    allocated, exact = peak.get("allocated_bytes"), peak.get("exact_bytes")
    if allocated is None and exact is None:
        raise RequestError(
            f"the baseline of {source} has no peak that could correct anything",
            saw="neither allocated nor exact bytes",
            expected="one of them",
        )
    above = exact if allocated is None else allocated - largest.weights_bytes
    seconds = _median(baseline)
    return Correction(
        source=source,
        above_weights=max(0, above) / largest.activations_bytes,
        has_workspace=allocated is not None,
        flops_per_s=expected.flops / seconds if seconds else None,
        measured=tuple(measured),
    )


def _measured(one: Mapping[str, Any], techniques: Mapping[str, tuple[str, ...]], setup: Setup) -> Measured:
    # What a study's baseline is in already is no technique of its stacks.
    stack = dict.fromkeys((*setup.stack, *techniques[one["configuration"]]))
    return Measured(tuple(stack), one["peak"].get("allocated_bytes"), _median(one))


def _median(measurement: Mapping[str, Any]) -> float | None:
    samples = [second for runs in (measurement.get("seconds") or {}).values() for second in runs]
    return statistics.median(samples) if samples else None


def _check_same(pipeline: Mapping[str, Any], shape: PipelineShape, path: Path) -> None:
    counted = pipeline["parameters"]
    found = counted.get("unet") or counted.get("transformer") or 0
    expected = weights_of(shape.denoiser).numbers
    if abs(found - expected) > _SAME * expected:
        raise RequestError(
            f"{path} is a study of another pipeline",
            saw=f"{pipeline.get('name')}, whose denoiser has {found / 1e6:.0f} million parameters",
            expected=f"{shape.title}, {expected / 1e6:.0f} million",
            hint="--record of a study of this pipeline, or none",
        )
