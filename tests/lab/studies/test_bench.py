"""What becomes of a configuration on the bench: every outcome, on the tiny pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hybridge.lab.studies import bench
from hybridge.lab.studies.arguments import Arguments
from hybridge.lab.studies.bench import Measured
from hybridge.lab.techniques.catalogue import named
from hybridge.lab.techniques.evidence import watching
from hybridge.lab.techniques.pipeline_context import PipelineContext
from hybridge.lab.techniques.technique import Applied, Missing, Proof, Technique

#: One prompt and one run.
SHORT = 1


def row(name: str, apply: Callable[[PipelineContext], Applied], **further: Any) -> Technique:
    return Technique(name, name, "", "", "bitwise", further.pop("stage", "layout"), apply=apply, **further)


def proven(took_effect: bool, evidence: str = "seen") -> Applied:
    return Applied(watching(lambda: Proof(took_effect, evidence)))


def measure(context: PipelineContext, arguments: Arguments, *techniques: Technique) -> Measured:
    return bench.measure(context, techniques, arguments.prompts[:SHORT], SHORT)


def test_what_is_measured(context: PipelineContext, arguments: Arguments) -> None:
    stages: list[str] = []
    technique = named(["channels-last"])
    measured = bench.measure(
        context, technique, arguments.prompts, arguments.runs, resting_bytes=0, say=stages.append
    )
    entry = measured.entry
    assert entry["outcome"] == "worked"
    assert entry["techniques"][0]["evidence"] == "40 of 40 kernels have their channels last"
    assert {name: len(samples) for name, samples in entry["seconds"].items()} == {"cat": 2, "bee": 2}
    assert all(second > 0 for samples in entry["seconds"].values() for second in samples)
    assert entry["denoiser_calls"] == [2, 2]  # guidance doubles the batch
    assert entry["steps"] == 2
    assert entry["preparation_s"] > 0 < entry["first_picture_s"]
    weights = sum(p.nbytes for part in (context.pipe.unet, context.pipe.vae) for p in part.parameters())
    assert weights < entry["weights_bytes"] < 1.1 * weights
    assert 0 < entry["peak"]["exact_bytes"] < entry["peak"]["resident_bytes"]
    assert entry["peak"]["allocated_bytes"] is None
    assert {name: made.shape for name, made in measured.pictures.items()} == {
        "cat": (1, 64, 64, 3),
        "bee": (1, 64, 64, 3),
    }
    assert stages == [
        "applying it",
        "making the first picture",
        "warming up",
        "timing",
        "proving",
        "measuring memory",
    ]


def test_a_call_that_changes_nothing_has_no_effect(context: PipelineContext, arguments: Arguments) -> None:
    entry = measure(context, arguments, row("lost", lambda _: proven(False, "0 hooks"))).entry
    assert entry["outcome"] == "no effect"
    assert entry["techniques"][0]["evidence"] == "0 hooks"
    assert entry["seconds"]["cat"]  # it is timed all the same


def raising(_: PipelineContext) -> Applied:
    raise ValueError("no such block\nsecond line")


@pytest.mark.parametrize(
    ("technique", "outcome", "reason"),
    [
        (row("odd", raising), "failed", "ValueError: no such block"),
        (
            row("gone", raising, why_missing=lambda _: Missing("dead", "unmaintained", "compile")),
            "dead",
            "unmainta",
        ),
        (row("away", raising, why_missing=lambda _: Missing("unavailable", "no GPU")), "unavailable", "no GPU"),
    ],
)
def test_what_cannot_run_makes_no_picture(
    context: PipelineContext, arguments: Arguments, technique: Technique, outcome: str, reason: str
) -> None:
    measured = measure(context, arguments, technique)
    assert measured.pictures == {}
    assert set(measured.entry) == {"outcome", "reason", "techniques"}
    assert measured.entry["outcome"] == measured.entry["techniques"][0]["outcome"] == outcome
    assert measured.entry["reason"].startswith(reason)
    if outcome == "dead":
        assert measured.entry["techniques"][0]["instead"] == "compile"


def test_a_stack_is_as_good_as_its_worst(context: PipelineContext, arguments: Arguments) -> None:
    good, lost = row("good", lambda _: proven(True)), row("lost", lambda _: proven(False))
    entry = measure(context, arguments, good, lost).entry
    assert entry["outcome"] == "no effect"
    assert entry["reason"].startswith("lost: ")
    assert [one["outcome"] for one in entry["techniques"]] == ["worked", "no effect"]


def hook_that_raises(context: PipelineContext) -> Applied:
    def refuse() -> None:
        raise RuntimeError("Sizes of tensors must match")

    context.before_picture.append(refuse)
    return proven(True)


def generate_what_is_no_number(context: PipelineContext) -> Applied:
    context.generate = lambda *_: np.full((1, 64, 64, 3), np.nan)
    return proven(True)


@pytest.mark.parametrize(
    ("apply", "reason"),
    [(hook_that_raises, "RuntimeError: Sizes of"), (generate_what_is_no_number, "not every number of the picture")],
)
def test_a_technique_whose_pictures_cannot_be_made_has_failed(
    context: PipelineContext, arguments: Arguments, apply: Callable[[PipelineContext], Applied], reason: str
) -> None:
    measured = measure(context, arguments, row("odd", apply))
    assert measured.entry["outcome"] == "failed"
    assert measured.entry["reason"].startswith(reason)
    assert measured.pictures == {}


def test_the_last_run_is_shown_in_which_leftovers_would_be_seen(
    context: PipelineContext, arguments: Arguments
) -> None:
    def apply(context: PipelineContext) -> Applied:
        made = iter(range(100))
        context.generate = lambda *_: np.full((1, 8, 8, 3), next(made) / 100)
        return proven(True)

    measured = bench.measure(context, [row("counts", apply)], arguments.prompts, runs=2)
    # Two pictures to warm up, then both prompts twice.
    assert {name: round(made.max(), 2) for name, made in measured.pictures.items()} == {"cat": 0.04, "bee": 0.05}


def test_exact_bytes_are_not_claimed_of_what_is_compiled(context: PipelineContext, arguments: Arguments) -> None:
    entry = measure(context, arguments, row("compiles", lambda _: proven(True), stage="compile")).entry
    assert entry["peak"]["exact_bytes"] is None
    assert "compiled" in entry["why_not_exact"]
