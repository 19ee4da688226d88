"""Precision, on the tiny pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hybridge.lab.techniques.catalogue import TECHNIQUES
from hybridge.lab.techniques.pipeline_context import PipelineContext

pytestmark = [
    pytest.mark.usefixtures("from_disk"),
    pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning"),  # diffusers' own call
]


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_half_types_halve_the_bytes_and_come_back(
    context: PipelineContext, trial: Callable[..., Any], name: str
) -> None:
    with trial(context, name) as run:
        proof = run.picture()
        assert proof.took_effect, proof.evidence
        assert proof.evidence.startswith("2 of 2 forwards of the denoiser in")
        assert "50% of the bytes" in proof.evidence
        assert 0 < np.abs(run.after - run.before).mean() < 0.02
    assert {parameter.dtype for parameter in context.pipe.vae.parameters()} == {torch.float32}


def test_a_half_type_that_is_there_already_has_no_effect(context: PipelineContext) -> None:
    context.pipe.to(dtype=torch.bfloat16)
    applied = TECHNIQUES["bf16"].apply(context)
    with applied.witness() as proof:
        context.picture("a cat", seed=0, num_inference_steps=1, height=64, width=64)
    assert not proof().took_effect
    assert "was bfloat16 before" in proof().evidence


def test_half_types_on_other_families(other_context: PipelineContext, trial: Callable[..., Any]) -> None:
    with trial(other_context, "bf16") as run:
        assert run.picture().took_effect


def test_tf32_is_flags_alone_on_a_cpu(context: PipelineContext, trial: Callable[..., Any]) -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with trial(context, "tf32") as run:
        assert torch.backends.cuda.matmul.allow_tf32
        proof = run.picture()
        assert not proof.took_effect
        assert proof.evidence == "the flags say True, and a cpu has no TF32"
        assert np.array_equal(run.after, run.before)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_fp8_storage_rests_in_eight_bits(context: PipelineContext) -> None:
    before = context.picture("a cat", seed=0, num_inference_steps=1, height=64, width=64)
    applied = TECHNIQUES["fp8-storage"].apply(context)
    assert applied.undo is None
    with applied.witness() as proof:
        after = context.picture("a cat", seed=0, num_inference_steps=1, height=64, width=64)
    assert proof().took_effect, proof().evidence
    assert "computed in float32" in proof().evidence
    assert 0 < np.abs(after - before).mean() < 0.05


def test_fp8_storage_on_other_families(other_context: PipelineContext) -> None:
    applied = TECHNIQUES["fp8-storage"].apply(other_context)
    with applied.witness() as proof:
        other_context.picture("a cat", seed=0)
    assert proof().took_effect, proof().evidence
