"""Token merging and T-GATE, on the tiny pipeline."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from hybridge.lab.techniques import stack
from hybridge.lab.techniques.catalogue import TECHNIQUES, named
from hybridge.lab.techniques.evidence import CallLog
from hybridge.lab.techniques.rig import Rig, plainly
from hybridge.lab.techniques.technique import Proof

PROMPT = "a cat in the rain"


def test_merging_as_it_comes_merges_nothing_in_sdxl(rig: Rig) -> None:
    before = rig.picture(PROMPT, seed=0)
    applied = TECHNIQUES["tome"].apply(rig)
    with applied.witness() as proof:
        same = rig.picture(PROMPT, seed=0)
    assert proof() == Proof(False, "self-attention saw 3712 of 3712 tokens in 28 blocks")
    assert np.array_equal(same, before)


def test_merging_on_all_levels_halves_what_attention_sees(rig: Rig) -> None:
    before = rig.picture(PROMPT, seed=0)
    applied = TECHNIQUES["tome-all"].apply(rig)
    with applied.witness() as proof:
        first = rig.picture(PROMPT, seed=0)
    assert proof() == Proof(True, "self-attention saw 1856 of 3712 tokens in 28 blocks")
    assert not np.array_equal(first, before)
    torch.manual_seed(1)  # where ToMe would draw from
    assert np.array_equal(rig.picture(PROMPT, seed=0), first)

    assert applied.undo is not None
    applied.undo()
    assert np.array_equal(rig.picture(PROMPT, seed=0), before)
    assert not rig.before_picture
    assert not any(hasattr(part, "_tome_info") for part in rig.denoiser.modules())


def test_merging_takes_effect_after_hooks_that_were_undone(rig: Rig) -> None:
    hooks = TECHNIQUES["taylorseer"].apply(rig)
    assert hooks.undo is not None
    hooks.undo()
    with TECHNIQUES["tome-all"].apply(rig).witness() as proof:
        rig.picture(PROMPT, seed=0)
    assert proof().took_effect, proof().evidence


def test_the_gate_shuts_and_nothing_is_left_behind(rig: Rig) -> None:
    rig.arguments["num_inference_steps"] = 10
    before = rig.picture(PROMPT, seed=0)
    own = {part: set(vars(part)) for part in rig.denoiser.modules()}
    applied = TECHNIQUES["tgate"].apply(rig)
    with applied.witness() as proof, CallLog(rig.denoiser) as calls:
        first = rig.picture(PROMPT, seed=0)
    assert calls.batches == [2] * 4 + [1] * 6
    assert proof() == Proof(True, "4 of 10 forwards computed attention to the prompt")
    assert np.array_equal(rig.picture(PROMPT, seed=0), first)

    left = rig.pipe(
        PROMPT, generator=torch.Generator("cpu").manual_seed(0), output_type="np", **rig.arguments
    ).images
    assert not np.array_equal(left, before), "T-GATE cleans up by now, and undo has less to do"
    assert applied.undo is not None
    applied.undo()
    assert rig.generate is plainly
    assert {part: set(vars(part)) for part in rig.denoiser.modules()} == own
    assert np.array_equal(rig.picture(PROMPT, seed=0), before)


@pytest.mark.parametrize("name", ["tome", "tome-all", "tgate"])
def test_pipelines_without_a_unet_are_told(rig: Rig, name: str) -> None:
    class Transformer(torch.nn.Module):
        """Any."""

    rig.pipe = copy.copy(rig.pipe)
    rig.pipe.unet = None
    rig.pipe.transformer = Transformer()
    rig.pipe.__class__ = type("AnotherPipeline", (type(rig.pipe),), {})
    (step,) = stack.apply(rig, named([name]))
    assert step.missing is not None
    assert step.missing.outcome == "unavailable"
    assert "Transformer" in step.missing.reason or "AnotherPipeline" in step.missing.reason
