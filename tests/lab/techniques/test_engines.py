"""The denoiser in another engine, on the tiny pipeline with a UNet of two blocks: export takes its time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from hybridge.errors import EngineFailure
from hybridge.lab.techniques.catalogue import TECHNIQUES
from hybridge.lab.techniques.pipeline_context import PipelineContext

PROMPT = "a cat in the rain"

pytestmark = [
    # Both exporters trace, which torch is retiring; shape checks in diffusers are not kept, which is said for each.
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*TorchScript-based ONNX export:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


@pytest.fixture
def context(context: PipelineContext) -> PipelineContext:
    """One block down, one up, two steps."""
    whole = context.pipe.unet.config
    kept = {
        name: value
        for name, value in whole.items()
        if name.startswith(("add", "projection", "cross_attention_dim"))
    }
    torch.manual_seed(0)
    context.pipe.unet = UNet2DConditionModel(
        **kept,
        sample_size=whole.sample_size,
        block_out_channels=(16,),
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        attention_head_dim=4,
        use_linear_projection=True,
        norm_num_groups=8,
    ).eval()
    context.arguments["num_inference_steps"] = 2
    return context


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_another_engine_and_back(context: PipelineContext, name: str) -> None:
    technique = TECHNIQUES[name]
    assert technique.why_missing(context) is None
    unet = context.pipe.unet
    before = context.picture(PROMPT, seed=0)
    unguided = context.picture(PROMPT, seed=0, guidance_scale=1.0)
    two = context.picture(PROMPT, seed=0, num_images_per_prompt=2)

    applied = technique.apply(context)
    assert context.pipe.unet is not unet
    with applied.witness() as proof:
        picture = context.picture(PROMPT, seed=0)
    assert proof().took_effect
    assert proof().evidence == "2 forwards in the engine, 0 in torch"
    np.testing.assert_allclose(picture, before, atol=1e-5)
    # Exported with a batch of two; one without guidance and four for two pictures run too.
    np.testing.assert_allclose(context.picture(PROMPT, seed=0, guidance_scale=1.0), unguided, atol=1e-5)
    np.testing.assert_allclose(context.picture(PROMPT, seed=0, num_images_per_prompt=2), two, atol=1e-5)
    with pytest.raises(EngineFailure, match="in another way"):
        context.picture(PROMPT, seed=0, cross_attention_kwargs={"unheard of": 1.0})

    assert applied.undo is not None
    applied.undo()
    assert context.pipe.unet is unet
    with applied.witness() as proof:
        again = context.picture(PROMPT, seed=0)
    assert not proof().took_effect
    assert np.array_equal(again, before)
