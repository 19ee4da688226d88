"""Attention, on the tiny pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from hybridge.lab.techniques.catalogue import TECHNIQUES
from hybridge.lab.techniques.pipeline_context import PipelineContext


@pytest.mark.parametrize(
    ("name", "processor"), [("attention-vanilla", "AttnProcessor"), ("attention-slicing", "SlicedAttnProcessor")]
)
def test_other_processors(context: PipelineContext, trial: Callable[..., Any], name: str, processor: str) -> None:
    with trial(context, name) as run:
        proof = run.picture()
        assert proof.took_effect, proof.evidence
        assert f" {processor} in the denoiser" in proof.evidence
        np.testing.assert_allclose(run.after, run.before, atol=1e-4)


def test_sdpa_is_the_default_already(context: PipelineContext, trial: Callable[..., Any]) -> None:
    with trial(context, "attention-sdpa") as run:
        assert not run.picture().took_effect
        assert np.array_equal(run.after, run.before)


def test_sdpa_after_something_else(context: PipelineContext, trial: Callable[..., Any]) -> None:
    TECHNIQUES["attention-vanilla"].apply(context)
    with trial(context, "attention-sdpa", fresh=False) as run:
        assert run.picture().took_effect


def test_a_named_backend_is_a_silent_no_op_on_a_unet(context: PipelineContext, trial: Callable[..., Any]) -> None:
    default = _AttentionBackendRegistry.get_active_backend()
    with trial(context, "attention-backend") as run:
        assert _AttentionBackendRegistry.get_active_backend() == default
        proof = run.picture()
        assert not proof.took_effect
        assert proof.evidence.startswith("0 of ")
        assert np.array_equal(run.after, run.before)


def test_a_named_backend_on_other_families(other_context: PipelineContext, trial: Callable[..., Any]) -> None:
    default = _AttentionBackendRegistry.get_active_backend()
    with trial(other_context, "attention-backend") as run:
        proof = run.picture()
        assert proof.took_effect == (type(other_context.denoiser).__name__ == "FluxTransformer2DModel"), (
            proof.evidence
        )
        np.testing.assert_allclose(run.after, run.before, atol=1e-4)
    assert _AttentionBackendRegistry.get_active_backend() == default


def test_slicing_finds_nothing_to_slice_in_a_transformer(
    other_context: PipelineContext, trial: Callable[..., Any]
) -> None:
    with trial(other_context, "attention-slicing") as run:
        proof = run.picture()
        assert proof.took_effect == hasattr(other_context.pipe, "unet"), proof.evidence


@pytest.mark.parametrize("name", ["attention-vanilla", "attention-sdpa"])
def test_processors_of_a_unet_are_not_a_transformers(other_context: PipelineContext, name: str) -> None:
    missing = TECHNIQUES[name].why_missing(other_context)
    assert (missing is None) == hasattr(other_context.pipe, "unet")


def test_xformers_wants_a_gpu(context: PipelineContext) -> None:
    missing = TECHNIQUES["xformers"].why_missing(context)
    assert missing is not None
    assert "not on a cpu" in missing.reason
    context.device = torch.device("cuda")
    missing = TECHNIQUES["xformers"].why_missing(context)
    assert missing is None or "not installed" in missing.reason


def test_what_raises_leaves_the_processors(context: PipelineContext) -> None:
    before = dict(context.denoiser.attn_processors)
    with pytest.raises((ModuleNotFoundError, ValueError)):
        TECHNIQUES["xformers"].apply(context)
    assert context.denoiser.attn_processors == before
