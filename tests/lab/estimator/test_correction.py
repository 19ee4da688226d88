"""Estimates corrected by a study's record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hybridge.errors import RequestError
from hybridge.lab.estimator.correction import read_correction
from hybridge.lab.estimator.phases import estimate
from hybridge.lab.estimator.types import Setup
from hybridge.lab.harness import record

PIPELINE = {"name": "mine", "class": "StableDiffusionXLPipeline", "weights": "mine"}

FP16 = Setup("sdxl", ("fp16",))


def study(path: Path, **changes: Any) -> Path:
    """A study whose baseline took the guide's 11.24 GB and 14 s."""
    peak = {"exact_bytes": None, "allocated_bytes": 11_240_000_000, "reserved_bytes": None, "resident_bytes": None}
    tiny = {"peak": {**peak, "allocated_bytes": 7_300_000_000}, "seconds": {"portrait": [13.0, 12.0, 50.0]}}
    worked = {"outcome": "worked", "techniques": []}
    measurements = [
        {"configuration": "baseline", **worked, "peak": peak, "seconds": {"portrait": [14.0]}},
        {"configuration": "tiny", **worked, **tiny},
        {"configuration": "onediff", "outcome": "dead", "reason": "nobody can load it", "techniques": []},
    ]
    arguments = {
        "configurations": [
            {"name": "baseline", "techniques": []},
            {"name": "tiny", "techniques": ["tiny-vae"]},
            {"name": "onediff", "techniques": ["onediff"]},
        ],
        **{"pipeline": "mine", "prompts": [], "dtype": "float16", "size": 1024, "batch": 1, "steps": 50},
    }
    whole = record.begin(
        "study",
        {},
        arguments,
        pipeline={**PIPELINE, "parameters": {"unet": 2_567_463_684}},
        measurements=measurements,
    )
    record.write({**whole, **changes}, path)
    return path


def test_what_a_baseline_took_on_top_of_its_weights_corrects_every_stack(tmp_path: Path) -> None:
    correction = read_correction(study(tmp_path / "study.json"), "sdxl")
    assert correction.has_workspace
    assert correction.flops_per_s == pytest.approx(686.7e12 / 14, rel=0.001)
    baseline = estimate(FP16, correction=correction)
    assert baseline.peak_bytes == pytest.approx(11_240_000_000, abs=2)
    # Weights stay what they are: 5.30 GB and 0.33 of activations, times 1.29.
    batched = estimate(Setup("sdxl", ("fp16", "batch-processing")), correction=correction)
    assert batched.peak_bytes / 1e9 == pytest.approx(5.73, abs=0.01)
    assert not any("allowance" in said for said in batched.left_out)


def test_a_stack_that_was_measured_is_found_whatever_its_order(tmp_path: Path) -> None:
    correction = read_correction(study(tmp_path / "study.json"), "sdxl")
    asked = estimate(Setup("sdxl", ("tiny-vae", "fp16"))).setup
    same = correction.of(asked)
    assert same is not None
    assert (same.peak_bytes, same.seconds) == (7_300_000_000, 13.0)
    assert correction.of(replace(asked, stack=("fp16", "onediff"))) is None


@pytest.mark.parametrize("change", [{"height": 512}, {"width": 2048}, {"batch": 2}, {"steps": 20}])
def test_what_was_measured_holds_for_its_own_size_and_steps(tmp_path: Path, change: dict[str, int]) -> None:
    correction = read_correction(study(tmp_path / "study.json"), "sdxl")
    asked = estimate(Setup("sdxl", ("tiny-vae", "fp16"))).setup
    assert correction.of(asked) is not None
    assert correction.of(replace(asked, **change)) is None  # type: ignore[arg-type]


def test_counted_tensors_correct_activations_and_leave_the_allowance(tmp_path: Path) -> None:
    path = study(tmp_path / "study.json")
    document = json.loads(path.read_text())
    document["measurements"][0]["peak"] |= {"allocated_bytes": None, "exact_bytes": 3_221_749_760 // 2}
    record.write(document, path)
    correction = read_correction(path, "sdxl")
    assert correction.above_weights == pytest.approx(0.5)
    decode = estimate(FP16, correction=correction).phases[-1]
    assert decode.activations_bytes == 3_221_749_760 // 2
    assert decode.workspace_bytes == estimate(FP16).phases[-1].workspace_bytes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pipeline": {**PIPELINE, "parameters": {"unet": 7_000_000}}}, "study of another pipeline.*7 million"),
        ({"measurements": []}, "no baseline that worked"),
        ({"measurements": [{"configuration": "baseline", "outcome": "worked"}]}, "lacks what a study has"),
        ({"measurements": [{"configuration": "baseline", "outcome": "worked", "techniques": []}]}, "has no peak"),
        ({"benchmark": "vae"}, "not a record that can be gone on with"),
    ],
)
def test_other_records_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_correction(study(tmp_path / "study.json", **changes), "sdxl")


def test_a_baseline_without_a_peak_corrects_nothing(tmp_path: Path) -> None:
    path = study(tmp_path / "study.json")
    document = json.loads(path.read_text())
    document["measurements"][0]["peak"]["allocated_bytes"] = None
    record.write(document, path)
    with pytest.raises(RequestError, match="no peak that could correct"):
        read_correction(path, "sdxl")
