"""Layout of the UNet, on the tiny pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hybridge.lab.harness.memory import storage_bytes
from hybridge.lab.techniques.catalogue import TECHNIQUES
from hybridge.lab.techniques.pipeline_context import PipelineContext


def test_channels_last_turns_every_kernel_and_back(context: PipelineContext, trial: Callable[..., Any]) -> None:
    with trial(context, "channels-last") as run:
        proof = run.picture()
        assert proof.took_effect, proof.evidence
        np.testing.assert_allclose(run.after, run.before, atol=1e-5)


def test_channels_last_needs_kernels(other_context: PipelineContext, trial: Callable[..., Any]) -> None:
    with trial(other_context, "channels-last") as run:
        proof = run.picture()
        assert proof.took_effect == (type(other_context.denoiser).__name__ != "FluxTransformer2DModel"), (
            proof.evidence
        )
        np.testing.assert_allclose(run.after, run.before, atol=1e-4)


def test_freeu_changes_the_picture_and_gives_it_back(context: PipelineContext, trial: Callable[..., Any]) -> None:
    with trial(context, "freeu") as run:
        assert run.picture().evidence == "3 of 3 blocks of the way up have their scales"
        assert run.proofs[0].took_effect
        assert np.abs(run.after - run.before).mean() > 1e-3


def test_freeu_is_for_unets(other_context: PipelineContext, trial: Callable[..., Any]) -> None:
    if not hasattr(other_context.pipe, "unet"):
        assert TECHNIQUES["freeu"].why_missing(other_context) is not None
        return
    with trial(other_context, "freeu") as run:
        assert run.picture().took_effect


def test_fused_projections_give_the_same_picture(context: PipelineContext, trial: Callable[..., Any]) -> None:
    before_bytes = storage_bytes(context.denoiser)
    with trial(context, "fused-qkv") as run:
        proof = run.picture()
        assert proof.took_effect, proof.evidence
        assert proof.evidence.startswith("28 to_qkv, 28 to_kv, 0 to_added_qkv; 2 forwards")
        np.testing.assert_allclose(run.after, run.before, atol=1e-5)
        assert storage_bytes(context.denoiser) > before_bytes
    assert storage_bytes(context.denoiser) == before_bytes


def test_fused_projections_on_other_families(other_context: PipelineContext, trial: Callable[..., Any]) -> None:
    with trial(other_context, "fused-qkv") as run:
        proof = run.picture()
        assert proof.took_effect, proof.evidence
        np.testing.assert_allclose(run.after, run.before, atol=1e-4)
