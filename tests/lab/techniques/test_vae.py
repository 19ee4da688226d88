"""The VAE, on the tiny pipeline."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import constants

from hybridge.lab.techniques import extra_models
from hybridge.lab.techniques.catalogue import TECHNIQUES
from hybridge.lab.techniques.pipeline_context import PipelineContext, default_side


def test_fp16_fix_keeps_a_float16_pipeline_from_widening(
    context: PipelineContext, trial: Callable[..., Any]
) -> None:
    context.pipe.to(dtype=torch.float16)
    with pytest.warns(FutureWarning, match="upcast_vae"):  # diffusers' own call, without the fix
        before = context.picture("a cat in the rain", seed=0, num_inference_steps=1, height=64, width=64)
    applied = TECHNIQUES["vae-fp16-fix"].apply(context)
    with applied.witness() as proof:
        after = context.picture("a cat in the rain", seed=0, num_inference_steps=1, height=64, width=64)
    assert proof().took_effect
    assert proof().evidence == "decoded in float16 instead of float32, every one a number"
    np.testing.assert_allclose(after, before, atol=0.02)
    applied.undo()
    assert context.pipe.vae.config.force_upcast


def test_fp16_fix_has_nothing_to_fix_in_float32(context: PipelineContext, trial: Callable[..., Any]) -> None:
    with trial(context, "vae-fp16-fix") as run:
        proof = run.picture()
        assert not proof.took_effect
        assert "decoded in float32" in proof.evidence
        assert np.array_equal(run.after, run.before)


def test_fp16_fix_sees_what_overflows(context: PipelineContext) -> None:
    """The mark alone does not do it: a decoder that overflows is no fix."""
    context.pipe.to(dtype=torch.float16)
    applied = TECHNIQUES["vae-fp16-fix"].apply(context)
    context.pipe.vae.decoder.conv_in.weight.mul_(1e6)
    with applied.witness() as proof:
        context.picture("a cat", seed=0, num_inference_steps=1, height=64, width=64)
    assert not proof().took_effect
    assert "not all of them numbers" in proof().evidence


def test_fp16_fix_is_sdxls(other_context: PipelineContext) -> None:
    missing = TECHNIQUES["vae-fp16-fix"].why_missing(other_context)
    assert missing is not None
    assert missing.instead == "nothing is needed"


def test_tiny_vae(context: PipelineContext, trial: Callable[..., Any]) -> None:
    with trial(context, "tiny-vae") as run:
        proof = run.picture()
        assert proof.took_effect, proof.evidence
        assert "1 decodes by AutoencoderTiny instead of AutoencoderKL" in proof.evidence
        assert run.after.shape == run.before.shape
    assert type(context.pipe.vae).__name__ == "AutoencoderKL"


def test_tiny_vae_on_other_families(other_context: PipelineContext, trial: Callable[..., Any]) -> None:
    with trial(other_context, "tiny-vae") as run:
        proof = run.picture()
        assert proof.took_effect, proof.evidence
        assert run.after.shape == run.before.shape


def test_slicing_does_nothing_for_one_picture(context: PipelineContext, trial: Callable[..., Any]) -> None:
    with trial(context, "vae-slicing") as run:
        proof = run.picture()
        assert not proof.took_effect
        assert proof.evidence == "the decoder took [1] pictures for [1] asked"
        assert np.array_equal(run.after, run.before)


def test_slicing_takes_three_one_by_one(context: PipelineContext, trial: Callable[..., Any]) -> None:
    with trial(context, "vae-slicing", num_images_per_prompt=3) as run:
        proof = run.picture()
        assert proof.took_effect
        assert proof.evidence == "the decoder took [1, 1, 1] pictures for [3] asked"
        np.testing.assert_allclose(run.after, run.before, atol=1e-5)


def test_tiling_does_nothing_at_the_size_of_training(context: PipelineContext, trial: Callable[..., Any]) -> None:
    with trial(context, "vae-tiling", height=128, width=128) as run:
        proof = run.picture()
        assert not proof.took_effect
        assert proof.evidence.startswith("latents of 16×16 were decoded whole")
        assert np.array_equal(run.after, run.before)


def test_tiling_cuts_at_twice_the_size(context: PipelineContext, trial: Callable[..., Any]) -> None:
    with trial(context, "vae-tiling", height=256, width=256, num_inference_steps=1) as run:
        proof = run.picture()
        assert proof.took_effect
        assert proof.evidence == "9 decodes of tiles for latents of 32×32"
        assert np.abs(run.after - run.before).max() > 1e-3  # the seams are blended, not right


def test_slicing_and_tiling_on_other_families(other_context: PipelineContext, trial: Callable[..., Any]) -> None:
    with trial(other_context, "vae-slicing", num_images_per_prompt=2) as run:
        assert run.picture().took_effect
    with trial(other_context, "vae-tiling") as run:
        run.picture()


def test_exact_decodes_in_strips(context: PipelineContext, trial: Callable[..., Any]) -> None:
    with trial(context, "exact-vae", height=128, width=128) as run:
        proof = run.picture()
        assert proof.took_effect, proof.evidence
        assert re.match(r"\d+ strips; ", proof.evidence)
        np.testing.assert_allclose(run.after, run.before, atol=1e-5)


def test_exact_takes_pictures_larger_than_the_first(context: PipelineContext) -> None:
    context.picture("a cat", seed=0, num_inference_steps=1, height=64, width=64)
    applied = TECHNIQUES["exact-vae"].apply(context)
    for side in (64, 2 * default_side(context.pipe)):
        with applied.witness() as proof:
            context.picture("a cat", seed=0, num_inference_steps=1, height=side, width=side)
        assert proof().took_effect, proof().evidence


def test_a_pipeline_that_says_its_size_in_the_unet_s_config(small_folders: dict[str, Path]) -> None:
    pipe = DiffusionPipeline.from_pretrained(small_folders["sd-v1"])
    assert not hasattr(pipe, "default_sample_size")
    factor = pipe.vae_scale_factor
    for size, side in ((32, 32), ([16, 24], 24), (None, 64)):
        pipe.unet.register_to_config(sample_size=size)
        assert default_side(pipe) == side * factor


def test_exact_after_a_tiny_vae(context: PipelineContext) -> None:
    """One wraps the other, and both are undone in reverse."""
    before = context.pipe.vae
    tiny = TECHNIQUES["tiny-vae"].apply(context)
    applied = TECHNIQUES["exact-vae"].apply(context)
    context.picture("a cat", seed=0, num_inference_steps=1, height=64, width=64)
    for done in (applied, tiny):
        assert done.undo is not None
        done.undo()
    assert context.pipe.vae is before


def test_exact_on_other_families(other_context: PipelineContext, trial: Callable[..., Any]) -> None:
    with trial(other_context, "exact-vae") as run:
        proof = run.picture()
        assert proof.took_effect, proof.evidence
        np.testing.assert_allclose(run.after, run.before, atol=1e-5)


def test_parts_of_a_vae_that_has_none(context: PipelineContext) -> None:
    context.pipe.vae = torch.nn.Identity()
    for name in ("vae-slicing", "vae-tiling"):
        missing = TECHNIQUES[name].why_missing(context)
        assert missing is not None
        assert "Identity" in missing.reason


def test_extra_models_are_the_hubs_where_none_lies_beside(
    context: PipelineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    context.origin = "stabilityai/stable-diffusion-xl-base-1.0"
    assert extra_models.source(context, "tiny-vae") == "madebyollin/taesdxl"
    assert extra_models.source(context, "vae-fp16-fix") == "madebyollin/sdxl-vae-fp16-fix"
    assert extra_models.source(context, "refiner") == "stabilityai/stable-diffusion-xl-refiner-1.0"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    missing = TECHNIQUES["tiny-vae"].why_missing(context)
    assert missing is not None
    assert missing.outcome == "unavailable"
    assert "hf download madebyollin/taesdxl" in str(missing.instead)


def test_extra_models_of_other_families(other_context: PipelineContext) -> None:
    other_context.origin = ""
    name = {"StableDiffusionPipeline": "taesd", "StableDiffusion3Pipeline": "taesd3", "FluxPipeline": "taef1"}
    found = extra_models.source(other_context, "tiny-vae")
    assert found == f"madebyollin/{name[type(other_context.pipe).__name__]}"
    assert extra_models.source(other_context, "refiner") is None
