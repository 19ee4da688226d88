"""The refiner, on the tiny pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hybridge.lab.techniques.catalogue import TECHNIQUES
from hybridge.lab.techniques.pipeline_context import PipelineContext


@pytest.mark.parametrize(
    ("name", "steps", "forwards"),
    [
        ("refiner-ensemble-80", 5, (4, 1)),
        ("refiner-ensemble-90", 10, (9, 1)),
        ("refiner-img2img-10", 2, (2, 3)),
        ("refiner-img2img-20", 2, (2, 6)),
    ],
)
def test_the_refiner_does_its_share(
    context: PipelineContext, trial: Callable[..., Any], name: str, steps: int, forwards: tuple[int, int]
) -> None:
    with trial(context, name, num_inference_steps=steps) as run:
        proof = run.picture()
        assert proof.took_effect
        assert proof.evidence == f"{forwards[0]} forwards of the base and {forwards[1]} of the refiner, as planned"
        assert run.after.shape == run.before.shape
        assert np.abs(run.after - run.before).mean() > 1e-4


@pytest.mark.parametrize("name", ["refiner-ensemble-80", "refiner-img2img-10"])
def test_several_pictures(context: PipelineContext, name: str) -> None:
    arguments = {"num_inference_steps": 4, "height": 64, "width": 64, "num_images_per_prompt": 2}
    applied = TECHNIQUES[name].apply(context)
    with applied.witness() as proof:
        assert context.picture("a cat", seed=0, **arguments).shape == (2, 64, 64, 3)
    assert proof().took_effect, proof().evidence


def test_guidance_of_the_base_may_end_early(context: PipelineContext) -> None:
    TECHNIQUES["cfg-cutoff-50"].apply(context)
    applied = TECHNIQUES["refiner-ensemble-80"].apply(context)
    with applied.witness() as proof:
        context.picture("a cat", seed=0, num_inference_steps=5, height=64, width=64)
    assert proof().took_effect, proof().evidence


def test_only_one_makes_the_picture(context: PipelineContext) -> None:
    TECHNIQUES["refiner-ensemble-80"].apply(context)
    for name in ("refiner-ensemble-90", "batch-processing"):
        missing = TECHNIQUES[name].why_missing(context)
        assert missing is not None
        assert "in its own way" in missing.reason


def test_the_refiner_is_sdxls(other_context: PipelineContext) -> None:
    missing = TECHNIQUES["refiner-ensemble-80"].why_missing(other_context)
    assert missing is not None
    assert "SDXL's latents" in missing.reason
