"""Token merging and T-GATE, on the tiny pipeline."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from hybridge.lab.techniques import stack
from hybridge.lab.techniques.catalogue import TECHNIQUES, named
from hybridge.lab.techniques.evidence import CallLog
from hybridge.lab.techniques.pipeline_context import PipelineContext, plainly
from hybridge.lab.techniques.technique import Proof

PROMPT = "a cat in the rain"


def test_merging_as_it_comes_merges_nothing_in_sdxl(context: PipelineContext) -> None:
    before = context.picture(PROMPT, seed=0)
    applied = TECHNIQUES["tome"].apply(context)
    with applied.witness() as proof:
        same = context.picture(PROMPT, seed=0)
    assert proof() == Proof(False, "self-attention saw 3712 of 3712 tokens in 28 blocks")
    assert np.array_equal(same, before)


def test_merging_on_all_levels_halves_what_attention_sees(context: PipelineContext) -> None:
    before = context.picture(PROMPT, seed=0)
    applied = TECHNIQUES["tome-all"].apply(context)
    with applied.witness() as proof:
        first = context.picture(PROMPT, seed=0)
    assert proof() == Proof(True, "self-attention saw 1856 of 3712 tokens in 28 blocks")
    assert not np.array_equal(first, before)
    torch.manual_seed(1)  # where ToMe would draw from
    assert np.array_equal(context.picture(PROMPT, seed=0), first)

    assert applied.undo is not None
    applied.undo()
    assert np.array_equal(context.picture(PROMPT, seed=0), before)
    assert not context.before_picture
    assert not any(hasattr(part, "_tome_info") for part in context.denoiser.modules())


def test_merging_takes_effect_after_hooks_that_were_undone(context: PipelineContext) -> None:
    hooks = TECHNIQUES["taylorseer"].apply(context)
    assert hooks.undo is not None
    hooks.undo()
    with TECHNIQUES["tome-all"].apply(context).witness() as proof:
        context.picture(PROMPT, seed=0)
    assert proof().took_effect, proof().evidence


def test_the_gate_shuts_and_nothing_is_left_behind(context: PipelineContext) -> None:
    context.arguments["num_inference_steps"] = 10
    before = context.picture(PROMPT, seed=0)
    own = {part: set(vars(part)) for part in context.denoiser.modules()}
    applied = TECHNIQUES["tgate"].apply(context)
    with applied.witness() as proof, CallLog(context.denoiser) as calls:
        first = context.picture(PROMPT, seed=0)
    assert calls.batches == [2] * 4 + [1] * 6
    assert proof() == Proof(True, "4 of 10 forwards computed attention to the prompt")
    assert np.array_equal(context.picture(PROMPT, seed=0), first)

    left = context.pipe(
        PROMPT, generator=torch.Generator("cpu").manual_seed(0), output_type="np", **context.arguments
    ).images
    assert not np.array_equal(left, before), "T-GATE cleans up by now, and undo has less to do"
    assert applied.undo is not None
    applied.undo()
    assert context.generate is plainly
    assert {part: set(vars(part)) for part in context.denoiser.modules()} == own
    assert np.array_equal(context.picture(PROMPT, seed=0), before)


@pytest.mark.parametrize("name", ["tome", "tome-all", "tgate"])
def test_pipelines_without_a_unet_are_told(context: PipelineContext, name: str) -> None:
    class Transformer(torch.nn.Module):
        """Any."""

    context.pipe = copy.copy(context.pipe)
    context.pipe.unet = None
    context.pipe.transformer = Transformer()
    context.pipe.__class__ = type("AnotherPipeline", (type(context.pipe),), {})
    (step,) = stack.apply(context, named([name]))
    assert step.missing is not None
    assert step.missing.outcome == "unavailable"
    assert "Transformer" in step.missing.reason or "AnotherPipeline" in step.missing.reason
