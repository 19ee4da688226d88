"""Caches between steps, on the tiny pipeline: proven, forgotten in time, and undone to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel, StableDiffusionXLPipeline
from pipelines import load_small_pipelines

from hybridge.lab.harness.environment import version
from hybridge.lab.techniques import stack
from hybridge.lab.techniques.catalogue import TECHNIQUES, named
from hybridge.lab.techniques.evidence import CallLog
from hybridge.lab.techniques.pipeline_context import PipelineContext

PROMPT = "a cat in the rain"

STEPS = 10

#: The last one under guidance; the next is not one that any of the caches would compute in full by itself.
LAST_GUIDED = 4


@pytest.fixture
def context(context: PipelineContext) -> PipelineContext:
    """With ten steps, of which caches leave some out."""
    context.arguments["num_inference_steps"] = STEPS
    return context


@pytest.fixture(scope="module")
def before(tiny_folder: Path) -> Any:
    """The picture of ten steps, before anything is done to the pipeline."""
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_folder / "base", add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": STEPS, "guidance_scale": 5.0}
    return PipelineContext(pipe, arguments, tiny_folder, torch.device("cpu"), reload=lambda **_: pipe).picture(
        PROMPT, seed=0
    )


def is_clean(context: PipelineContext) -> bool:
    """Nothing listens any more."""
    return not (context.before_picture or context.guidance_ended or context.denoiser._forward_pre_hooks)


def test_first_block_cache_needs_a_list_of_blocks(context: PipelineContext) -> None:
    """diffusers' own code ends in `pop from empty list` there."""
    (step,) = stack.apply(context, named(["first-block-cache"]))
    assert step.missing is not None
    assert (step.missing.outcome, step.missing.instead) == ("unavailable", "deepcache")
    assert "which a UNet2DConditionModel does not have" in step.missing.reason


@pytest.mark.parametrize(
    ("name", "evidence"),
    [
        ("deepcache", "4 of 10 forwards computed the middle block"),
        ("pab", "hooks: 56; 4 of 10 forwards computed the last attention"),
        ("taylorseer", "hooks: 28; 5 of 10 forwards computed the last attention"),
    ],
)
def test_a_cache_takes_effect_begins_anew_and_goes(
    context: PipelineContext, before: Any, name: str, evidence: str
) -> None:
    applied = TECHNIQUES[name].apply(context)
    with applied.witness() as proof:
        first = context.picture(PROMPT, seed=0)
    assert proof().took_effect
    assert proof().evidence == evidence
    assert not np.array_equal(first, before)
    assert np.array_equal(context.picture(PROMPT, seed=0), first), "what was kept of one picture got into the next"

    assert applied.undo is not None
    applied.undo()
    assert np.array_equal(context.picture(PROMPT, seed=0), before)
    assert is_clean(context)


@pytest.mark.parametrize("name", ["taylorseer-defaults", "mag-cache"])
def test_caches_that_find_nothing_to_hook_are_found_out(context: PipelineContext, name: str) -> None:
    context.arguments["num_inference_steps"] = 4
    before = context.picture(PROMPT, seed=0)
    applied = TECHNIQUES[name].apply(context)
    with applied.witness() as proof:
        same = context.picture(PROMPT, seed=0)
    assert not proof().took_effect
    assert proof().evidence == "hooks: 0; 4 of 4 forwards computed the last attention"
    assert np.array_equal(same, before)


@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("sea-cache", "ValueError: SeaCache found no repeated transformer blocks"),
        ("faster-cache", "RuntimeError: chunk expects at least a 1-dimensional tensor"),
    ],
)
def test_caches_that_break_on_a_unet_leave_it_as_it_was(context: PipelineContext, name: str, why: str) -> None:
    context.arguments["num_inference_steps"] = 2
    before = context.picture(PROMPT, seed=0)
    (step,) = stack.apply(context, named([name]))
    assert step.failure is not None
    assert why in step.failure
    assert is_clean(context)
    assert np.array_equal(context.picture(PROMPT, seed=0), before)


@pytest.mark.parametrize(
    ("name", "evidence"),
    [
        ("deepcache", "4 of 10 forwards computed the middle block"),  # steps 0, 3, 5 and 8
        ("pab", "hooks: 56; 4 of 10 forwards computed the last attention"),  # 0, 1, 5 and 9, past its range
        ("taylorseer", "hooks: 28; 8 of 10 forwards computed the last attention"),  # four of five, twice
    ],
)
def test_a_cache_forgets_when_guidance_ends(context: PipelineContext, name: str, evidence: str) -> None:
    context.after_step.append(end_guidance)
    with TECHNIQUES[name].apply(context).witness() as proof, CallLog(context.denoiser) as calls:
        context.picture(PROMPT, seed=0)
    assert calls.batches == [2] * 5 + [1] * 5
    assert proof().took_effect
    assert proof().evidence == evidence


@pytest.mark.parametrize("name", ["deepcache", "pab"])
def test_a_cache_that_is_not_told_breaks(context: PipelineContext, name: str) -> None:
    TECHNIQUES[name].apply(context)
    context.after_step.append(end_guidance)
    context.guidance_ended.clear()
    with pytest.raises((RuntimeError, ValueError)):
        context.picture(PROMPT, seed=0)


def end_guidance(context: PipelineContext, step: int, tensors: dict[str, Any]) -> None:
    """After :data:`LAST_GUIDED`, goes on with the half of the batch that has the prompt."""
    if step != LAST_GUIDED:
        return
    for name, doubled in tensors.items():
        tensors[name] = doubled.chunk(2)[-1]
    context.pipe._guidance_scale = 0.0
    for hear in context.guidance_ended:
        hear(step)


@pytest.mark.parametrize(("name", "distribution"), [("para-attention", "para-attn"), ("cache-dit", "cache-dit")])
def test_libraries_for_transformers_say_what_is_missing_or_refuse(
    context: PipelineContext, name: str, distribution: str
) -> None:
    (step,) = stack.apply(context, named([name]))
    assert step.applied is None
    if version(distribution) is None:
        assert step.missing is not None
        assert (step.missing.outcome, step.missing.instead) == ("unavailable", "taylorseer")
        assert distribution in step.missing.reason
    else:
        assert step.failure is not None
        assert "StableDiffusionXLPipeline" in step.failure


def test_hooks_work_where_they_were_made_for(tmp_path: Path) -> None:
    small = load_small_pipelines()
    pipe = small.flux(small.vae(16, shift_factor=0.1))
    torch.manual_seed(0)
    pipe.transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=small.TEXT_WIDTH,
        pooled_projection_dim=small.TEXT_WIDTH,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    arguments = {"num_inference_steps": 10, "height": 64, "width": 64}
    context = PipelineContext(pipe, arguments, tmp_path, torch.device("cpu"), reload=lambda **_: pipe)
    assert TECHNIQUES["first-block-cache"].why_missing(context) is None

    before = context.picture(PROMPT, seed=0)
    for name in ("pab", "taylorseer", "taylorseer-defaults", "mag-cache"):
        applied = TECHNIQUES[name].apply(context)
        with applied.witness() as proof:
            context.picture(PROMPT, seed=0)
        assert proof().took_effect, f"{name}: {proof().evidence}"
        assert applied.undo is not None
        applied.undo()
        assert np.array_equal(context.picture(PROMPT, seed=0), before), name

    missing = TECHNIQUES["deepcache"].why_missing(context)
    assert missing is not None
    assert "FluxTransformer2DModel" in missing.reason
