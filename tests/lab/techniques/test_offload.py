"""Weights that wait elsewhere, on the tiny pipeline: the same picture to the bit, with and without."""

from __future__ import annotations

import numpy as np
import pytest

from hybridge.lab.harness.memory import storage_bytes
from hybridge.lab.techniques.catalogue import TECHNIQUES
from hybridge.lab.techniques.pipeline_context import PipelineContext

PROMPT = "a cat in the rain"


@pytest.fixture
def context(context: PipelineContext) -> PipelineContext:
    """One step: every layer is fetched once."""
    context.arguments["num_inference_steps"] = 1
    return context


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model-offload", "4 of 4 parts"),
        ("sequential-offload", "they wait in the same memory, and nothing is saved"),
        ("disk-offload", "weights are away between calls"),
    ],
)
def test_offloaded_and_back(context: PipelineContext, name: str, said: str) -> None:
    technique = TECHNIQUES[name]
    assert technique.why_missing(context) is None
    before, whole_bytes = context.picture(PROMPT, seed=0), storage_bytes(context.denoiser)

    applied = technique.apply(context)
    with applied.witness() as proof:
        picture = context.picture(PROMPT, seed=0)
    assert proof().took_effect, proof().evidence
    assert said in proof().evidence
    assert np.array_equal(picture, before)
    # Model offload only moves, and there is nowhere to move to; the others leave nothing in the modules.
    assert storage_bytes(context.denoiser) == (whole_bytes if name == "model-offload" else 0)

    assert applied.undo is not None
    applied.undo()
    with applied.witness() as proof:
        again = context.picture(PROMPT, seed=0)
    assert not proof().took_effect
    assert storage_bytes(context.denoiser) == whole_bytes
    assert np.array_equal(again, before)


@pytest.mark.parametrize("name", ["group-offload", "group-offload-disk"])
def test_offloaded_in_groups(context: PipelineContext, name: str) -> None:
    technique = TECHNIQUES[name]
    before = context.picture(PROMPT, seed=0)

    applied = technique.apply(context)
    with applied.witness() as proof:
        picture = context.picture(PROMPT, seed=0)
    assert proof().took_effect, proof().evidence
    assert np.array_equal(picture, before)
    assert applied.undo is None


def test_a_part_with_tied_weights_stays_in_memory(context: PipelineContext) -> None:
    attention = context.pipe.text_encoder.encoder.layers[0].self_attn
    attention.k_proj.weight = attention.q_proj.weight
    before = context.picture(PROMPT, seed=0)

    TECHNIQUES["group-offload-disk"].apply(context)
    assert np.array_equal(context.picture(PROMPT, seed=0), before)
    parts = {folder.name.split("-")[0] for folder in context.folder.iterdir()}
    assert parts == {"text_encoder_2", "unet", "vae"}
