"""What a measured study says of the estimate: how much its baseline took, and how fast it was.

Weights are exact as they are.  What is corrected is what comes on top of them: its ratio in the study's baseline is
applied to every phase of every stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...errors import RequestError
from ..harness import record
from ..harness.typed import Misshapen
from ..studies.record import Measurement, Pipeline, study_of
from .cost_table import weights_of
from .effects import EFFECTS
from .phases import estimate
from .shapes import PipelineShape, shape_named
from .types import Correction, Estimate, Measured, Setup

#: Two counts of the same denoiser may differ by this: buffers, tied weights.
_SAME = 0.01

#: A baseline's dtype as a stack.
_STACKS: dict[str, tuple[str, ...]] = {"float32": (), "float16": ("fp16",), "bfloat16": ("bf16",)}


def read_correction(path: Path, pipeline: str) -> Correction:
    """What a study's record says of the estimates of this pipeline.

    Raises:
        RequestError: for a file that is no study, one of another pipeline, or one whose baseline has no peak.
        OSError: when it cannot be read.
    """
    kept, shape = record.read(path, "study"), shape_named(pipeline)
    try:
        study = study_of(kept)
    except Misshapen as error:
        raise RequestError(f"{path} lacks what a study has", saw=error, expected="a finished study.json") from None
    _check_same(study.pipeline, shape, path)
    asked = study.arguments
    worked = [one for one in study.measurements if one.outcome == "worked"]
    baseline = next((one for one in worked if not asked.techniques_of(one.configuration)), None)
    if baseline is None:
        raise RequestError(f"{path} has no baseline that worked", expected="a configuration without techniques")
    if asked.dtype not in _STACKS:
        raise RequestError(
            f"{path} has a dtype that is not estimated", saw=asked.dtype, expected=", ".join(_STACKS)
        )
    setup = Setup(
        shape.name,
        _STACKS[asked.dtype],
        height=asked.size or shape.size,
        width=asked.size or shape.size,
        batch=asked.batch,
        steps=asked.steps or shape.steps,
    )
    measured = tuple(
        Measured(
            _with_techniques(setup, asked.techniques_of(one.configuration) or ()),
            one.peak.allocated_bytes,
            one.median_s,
        )
        for one in worked
    )
    return _corrected(estimate(setup), baseline, str(path), measured)


def _with_techniques(baseline: Setup, techniques: Sequence[str]) -> Setup:
    """A technique that sets the steps goes before the study's own number of them."""
    # What a study's baseline is in already is no technique of its stacks.
    stack = tuple(dict.fromkeys((*baseline.stack, *techniques)))
    fewer = (EFFECTS[name].steps for name in stack if name in EFFECTS)
    return replace(baseline, stack=stack, steps=next(filter(None, fewer), baseline.steps))


def _corrected(
    expected: Estimate, baseline: Measurement, source: str, measured: tuple[Measured, ...]
) -> Correction:
    largest = max(expected.phases, key=lambda phase: phase.counted_bytes)
    allocated, exact, seconds = baseline.peak.allocated_bytes, baseline.peak.exact_bytes, baseline.median_s
    above = exact if allocated is None else allocated - largest.weights_bytes
    if above is None:
        raise RequestError(
            f"the baseline of {source} has no peak that could correct anything",
            saw="neither allocated nor exact bytes",
            expected="one of them",
        )
    return Correction(
        source=source,
        above_weights=max(0, above) / largest.activations_bytes,
        has_workspace=allocated is not None,
        flops_per_s=expected.flops / seconds if seconds else None,
        measured=measured,
    )


def _check_same(pipeline: Pipeline, shape: PipelineShape, path: Path) -> None:
    counted = pipeline.parameters
    found = counted.get("unet") or counted.get("transformer") or 0
    expected = weights_of(shape.denoiser).numbers
    if abs(found - expected) > _SAME * expected:
        raise RequestError(
            f"{path} is a study of another pipeline",
            saw=f"{pipeline.name}, whose denoiser has {found / 1e6:.0f} million parameters",
            expected=f"{shape.title}, {expected / 1e6:.0f} million",
            hint="--record of a study of this pipeline, or none",
        )
