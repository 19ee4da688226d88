"""One component at a time, on the tiny pipeline."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch

from hybridge.errors import RequestError
from hybridge.lab.harness.memory import storage_bytes
from hybridge.lab.techniques.catalogue import TECHNIQUES
from hybridge.lab.techniques.pipeline_context import PipelineContext, plainly
from hybridge.lab.techniques.weights import bring_back, send_away, weights

pytestmark = pytest.mark.usefixtures("from_disk")


def test_no_part_outlives_its_phase(context: PipelineContext, trial: Callable[..., Any]) -> None:
    with trial(context, "batch-processing", num_images_per_prompt=2, negative_prompt="a dog") as run:
        assert storage_bytes(context.denoiser) == storage_bytes(context.pipe.text_encoder) == 0
        proof = run.picture()
        assert proof.took_effect, proof.evidence
        for part in ("text_encoder", "text_encoder_2", "unet"):
            assert f" of the {part}'s" in proof.evidence
        assert np.array_equal(run.after, run.before)
        assert storage_bytes(context.denoiser) == 0
    assert storage_bytes(context.denoiser) > 0


def test_without_guidance(context: PipelineContext, trial: Callable[..., Any]) -> None:
    with trial(context, "batch-processing", guidance_scale=1.0) as run:
        assert run.picture().took_effect
        assert np.array_equal(run.after, run.before)


def test_a_weight_that_somebody_keeps_is_seen(context: PipelineContext) -> None:
    kept: list[torch.Tensor] = []
    context.denoiser.register_forward_pre_hook(lambda module, _: kept.append(module.conv_in.weight))
    applied = TECHNIQUES["batch-processing"].apply(context)
    with applied.witness() as proof:
        context.picture("a cat", seed=0, num_inference_steps=1, height=64, width=64)
    assert not proof().took_effect
    assert "1 of " in proof().evidence


def test_other_techniques_survive_the_loading(context: PipelineContext) -> None:
    names = ["bf16", "tiny-vae", "channels-last", "freeu", "cfg-cutoff-50"]
    applied = {name: TECHNIQUES[name].apply(context) for name in names}
    arguments = {"num_inference_steps": 3, "height": 64, "width": 64}
    before = context.picture("a cat", seed=0, **arguments)
    applied["batch-processing"] = TECHNIQUES["batch-processing"].apply(context)
    with ExitStack() as watching:
        proofs = {name: watching.enter_context(done.witness()) for name, done in applied.items() if name != "bf16"}
        after = context.picture("a cat", seed=0, **arguments)
    for name, proof in proofs.items():
        assert proof().took_effect, f"{name}: {proof().evidence}"
    assert {tensor.dtype for _, tensor in weights(context.denoiser)} == {torch.bfloat16}
    assert np.array_equal(after, before)


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")  # diffusers' own call
def test_a_vae_that_must_not_be_float16(context: PipelineContext, trial: Callable[..., Any]) -> None:
    context.pipe.to(dtype=torch.float16)
    with trial(context, "batch-processing", fresh=False, num_inference_steps=1) as run:
        assert run.picture().took_effect
        assert np.array_equal(run.after, run.before)
        assert context.pipe.vae.dtype is torch.float16


def test_phases_of_other_families(other_context: PipelineContext, trial: Callable[..., Any]) -> None:
    with trial(other_context, "batch-processing", num_images_per_prompt=2) as run:
        proof = run.picture()
        assert proof.took_effect, proof.evidence
        assert np.array_equal(run.after, run.before)


def test_weights_that_are_elsewhere(context: PipelineContext) -> None:
    context.pipe.unet.to("meta")
    missing = TECHNIQUES["batch-processing"].why_missing(context)
    assert missing is not None
    assert "unet" in missing.reason


def test_weights_that_the_disk_does_not_have(context: PipelineContext) -> None:
    TECHNIQUES["fused-qkv"].apply(context)
    before = storage_bytes(context.denoiser)
    with pytest.raises(RequestError, match="to_qkv"):
        TECHNIQUES["batch-processing"].apply(context)
    assert storage_bytes(context.denoiser) == before
    assert context.generate is plainly


def test_weights_come_back_as_they_were() -> None:
    def linear() -> torch.nn.Sequential:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))

    module = linear().to(torch.bfloat16)
    module[0].bias = module[1].bias  # shared
    expected = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    (*_, dead) = [reference() for reference in send_away(module)]
    assert dead is None
    assert {tensor.device.type for tensor in module.state_dict().values()} == {"meta"}
    fresh = linear()
    fresh[0].bias = fresh[1].bias
    bring_back(module, fresh, torch.device("cpu"))
    assert module[0].bias is module[1].bias
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in expected.items())
    assert module[0].weight.dtype is torch.bfloat16


def test_weights_of_another_module_are_refused() -> None:
    module = torch.nn.Linear(3, 3)
    before = dict(weights(module))
    with pytest.raises(RequestError, match="not those of this module"):
        bring_back(module, torch.nn.Linear(3, 3, bias=False), torch.device("cpu"))
    assert dict(weights(module)).keys() == before.keys()
