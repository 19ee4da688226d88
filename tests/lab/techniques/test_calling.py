"""Arguments of the call, on the tiny pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hybridge.lab.techniques.catalogue import TECHNIQUES
from hybridge.lab.techniques.evidence import CallLog
from hybridge.lab.techniques.facts import last_guided_step
from hybridge.lab.techniques.pipeline_context import PipelineContext

SMALL = {"height": 64, "width": 64}


def test_fewer_steps(context: PipelineContext) -> None:
    context.arguments = {"num_inference_steps": 50, "guidance_scale": 1.0, **SMALL}
    applied = TECHNIQUES["steps-25"].apply(context)
    again = TECHNIQUES["steps-25"].apply(context)
    with applied.witness() as proof, again.witness() as proof_again:
        context.picture("a cat", seed=0)
    assert proof().took_effect
    assert proof().evidence == "25 steps of the scheduler, 25 forwards of the denoiser; 50 steps were asked"
    assert not proof_again().took_effect  # there were 25 already
    for done in (again, applied):
        assert done.undo is not None
        done.undo()
    assert context.arguments["num_inference_steps"] == 50


def test_steps_that_nobody_had_named(context: PipelineContext) -> None:
    context.arguments = {}
    applied = TECHNIQUES["steps-30"].apply(context)
    assert context.arguments == {"num_inference_steps": 30}
    assert applied.undo is not None
    applied.undo()
    assert context.arguments == {}


def test_the_step_after_which_guidance_ends() -> None:
    """The guide's 76, not 75, of 100 forwards."""
    step = last_guided_step(0.5, 50)
    assert step == 25
    assert 2 * (step + 1) + (50 - step - 1) == 76
    assert [last_guided_step(0.75, steps) for steps in (4, 10, 25, 50)] == [3, 7, 18, 37]


@pytest.mark.parametrize(("percent", "steps", "guided"), [(50, 10, 6), (75, 5, 4)])
def test_guidance_ends_early(
    context: PipelineContext, trial: Callable[..., Any], percent: int, steps: int, guided: int
) -> None:
    heard: list[int] = []
    context.guidance_ended.append(heard.append)
    with (
        trial(context, f"cfg-cutoff-{percent}", num_inference_steps=steps) as run,
        CallLog(context.denoiser) as log,
    ):
        proof = run.picture()
        assert proof.took_effect
        assert proof.evidence == f"{guided} forwards of batch 2, then {steps - guided} of 1"
        assert log.batches == [2] * guided + [1] * (steps - guided)
        assert heard == [guided - 1]
    assert context.after_step == []


def test_guidance_ends_for_several_pictures(context: PipelineContext, trial: Callable[..., Any]) -> None:
    with trial(context, "cfg-cutoff-50", num_inference_steps=4, num_images_per_prompt=3) as run:
        assert run.picture().evidence == "3 forwards of batch 6, then 1 of 3"


def test_too_few_steps_to_end_guidance_in(context: PipelineContext, trial: Callable[..., Any]) -> None:
    with trial(context, "cfg-cutoff-75", num_inference_steps=4) as run:
        proof = run.picture()
        assert not proof.took_effect
        assert proof.evidence == "4 forwards of batch 2, then 0 of 1"


def test_guidance_that_never_was(context: PipelineContext, trial: Callable[..., Any]) -> None:
    with trial(context, "cfg-cutoff-50", guidance_scale=1.0) as run:
        assert not run.picture().took_effect


def test_guidance_of_other_families(other_context: PipelineContext, trial: Callable[..., Any]) -> None:
    if type(other_context.pipe).__name__ == "FluxPipeline":
        missing = TECHNIQUES["cfg-cutoff-50"].why_missing(other_context)
        assert missing is not None
        assert "distilled" in missing.reason
        return
    with trial(other_context, "cfg-cutoff-50", num_inference_steps=4) as run:
        assert run.picture().evidence == "3 forwards of batch 2, then 1 of 1"


def test_steps_of_other_families(other_context: PipelineContext, trial: Callable[..., Any]) -> None:
    applied = TECHNIQUES["steps-25"].apply(other_context)
    with applied.witness() as proof:
        other_context.picture("a cat", seed=0)
    assert proof().took_effect, proof().evidence
