"""Compilers, with the compiler that is there, on a UNet that is compiled in seconds."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from hybridge.lab.harness.environment import no_cpp_compiler
from hybridge.lab.techniques import stack
from hybridge.lab.techniques.catalogue import TECHNIQUES, named
from hybridge.lab.techniques.pipeline_context import PipelineContext

PROMPT = "a cat in the rain"


@pytest.fixture
def context(context: PipelineContext) -> PipelineContext:
    """Two steps of a UNet with one level and one transformer; the tiny one takes the compiler minutes."""
    return with_unet(context, "CrossAttnDownBlock2D")


def with_unet(context: PipelineContext, down_block: str) -> PipelineContext:
    torch.manual_seed(0)
    whole = context.pipe.unet.config
    context.pipe.unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16,),
        down_block_types=(down_block,),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        attention_head_dim=(2,),
        norm_num_groups=4,
        cross_attention_dim=whole.cross_attention_dim,
        addition_embed_type="text_time",
        addition_time_embed_dim=whole.addition_time_embed_dim,
        projection_class_embeddings_input_dim=whole.projection_class_embeddings_input_dim,
        use_linear_projection=True,
    ).eval()
    context.arguments["num_inference_steps"] = 2
    return context


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # Inductor imports what torch has deprecated
@pytest.mark.parametrize(
    ("name", "down_block"), [("compile", "DownBlock2D"), ("compile-regional", "CrossAttnDownBlock2D")]
)
def test_compiled_code_runs_and_goes(context: PipelineContext, name: str, down_block: str) -> None:
    """The whole is one without a transformer, whose kernels would take the compiler as long again."""
    assert no_cpp_compiler() is None, "this test needs a C++ compiler"
    with_unet(context, down_block)
    before = context.picture(PROMPT, seed=0)
    applied = TECHNIQUES[name].apply(context)
    with applied.witness() as proof:
        compiled = context.picture(PROMPT, seed=0)
    assert proof().took_effect
    assert proof().evidence == "2 calls of 1 compiled modules, in 1 graphs"
    np.testing.assert_allclose(compiled, before, atol=1e-5)

    assert applied.undo is not None
    applied.undo()
    with applied.witness() as proof:
        again = context.picture(PROMPT, seed=0)
    assert not proof().took_effect
    assert np.array_equal(again, before)


def test_blocks_of_another_name_leave_nothing_half_compiled(context: PipelineContext) -> None:
    context.pipe.unet._repeated_blocks = ["NoSuchBlock"]
    (step,) = stack.apply(context, named(["compile-regional"]))
    assert step.failure is not None
    assert "NoSuchBlock" in step.failure


def test_without_a_compiler_a_cpu_is_told_so(
    context: PipelineContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert shutil.which("g++") is None
    missing = TECHNIQUES["compile"].why_missing(context)
    assert missing is not None
    assert "C++" in missing.reason


def test_stable_fast_says_how_it_is_built(context: PipelineContext) -> None:
    missing = TECHNIQUES["stable-fast"].why_missing(context)
    if importlib.util.find_spec("sfast") is not None:
        assert missing is None
    else:
        assert missing is not None
        assert "WITH_CUDA=0" in missing.reason
        assert missing.instead == "compile"
