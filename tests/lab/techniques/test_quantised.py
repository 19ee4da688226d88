"""Weights in fewer bits, on the tiny pipeline: fewer bytes, another picture, and the first one back."""

from __future__ import annotations

import numpy as np
import pytest

from hybridge.errors import ModelUnavailable
from hybridge.lab.harness.memory import storage_bytes
from hybridge.lab.techniques.catalogue import TECHNIQUES
from hybridge.lab.techniques.pipeline_context import PipelineContext

PROMPT = "a cat in the rain"

#: Share of the denoiser's bytes that is left.  Convolutions stay, but not quanto's; SDNQ leaves small layers alone.
SHARES = {
    "torchao-int8": 0.51,
    "torchao-int8-dynamic": 0.51,
    "torchao-fp8": 0.51,
    "bitsandbytes-int8": 0.51,
    "bitsandbytes-nf4": 0.43,
    "quanto-int8": 0.26,
    "sdnq-int8": 0.72,
    "torch-ao-dynamic": 0.51,
}

pytestmark = [
    pytest.mark.quantisers,
    # The libraries' own: their wheels bring extensions for other machines, and build on what torch is retiring.
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
]


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    # SDNQ compiles a kernel for each shape of layer, which takes longer than all else in this file.
    monkeypatch.setenv("SDNQ_USE_TORCH_COMPILE", "0")


@pytest.fixture
def context(context: PipelineContext) -> PipelineContext:
    """One step is enough to see every layer."""
    context.arguments["num_inference_steps"] = 1
    return context


@pytest.mark.parametrize("name", SHARES)
def test_fewer_bits_and_back(context: PipelineContext, name: str) -> None:
    technique = TECHNIQUES[name]
    assert technique.why_missing(context) is None
    before, whole_bytes = context.picture(PROMPT, seed=0), storage_bytes(context.denoiser)

    applied = technique.apply(context)
    with applied.witness() as proof:
        picture = context.picture(PROMPT, seed=0)
    assert proof().took_effect, proof().evidence
    assert storage_bytes(context.denoiser) / whole_bytes == pytest.approx(SHARES[name], abs=0.01)
    assert 1e-6 < np.abs(picture - before).mean() < 2e-2

    assert applied.undo is not None
    applied.undo()
    with applied.witness() as proof:
        again = context.picture(PROMPT, seed=0)
    assert not proof().took_effect
    assert storage_bytes(context.denoiser) == whole_bytes
    assert np.array_equal(again, before)


def test_fused_projections_come_back_fused(context: PipelineContext) -> None:
    context.denoiser.fuse_qkv_projections()
    before = context.picture(PROMPT, seed=0)
    applied = TECHNIQUES["torchao-int8"].apply(context)
    assert applied.undo is not None
    applied.undo()
    assert np.array_equal(context.picture(PROMPT, seed=0), before)


def test_weights_that_no_file_has_are_refused_before_anything_is_changed(context: PipelineContext) -> None:
    context.denoiser.time_embedding.linear_1.weight.data[0, 0] += 1
    before = context.picture(PROMPT, seed=0)
    with pytest.raises(ModelUnavailable, match=r"time_embedding.linear_1.weight, loaded anew, is not the weight"):
        TECHNIQUES["torchao-int8"].apply(context)
    assert np.array_equal(context.picture(PROMPT, seed=0), before)


def test_they_are_quantised_where_nobody_wants_them_back(context: PipelineContext) -> None:
    context.is_kept = False
    context.denoiser.time_embedding.linear_1.weight.data[0, 0] += 1
    with TECHNIQUES["torchao-int8"].apply(context).witness() as proof:
        context.picture(PROMPT, seed=0)
    assert proof().took_effect, proof().evidence


def test_a_library_that_fails_half_way_leaves_what_was_there(
    context: PipelineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise MemoryError("no room")

    before = context.picture(PROMPT, seed=0)
    monkeypatch.setattr("optimum.quanto.freeze", full)
    with pytest.raises(MemoryError):
        TECHNIQUES["quanto-int8"].apply(context)
    assert not any(type(module).__name__ == "QLinear" for module in context.denoiser.modules())
    assert np.array_equal(context.picture(PROMPT, seed=0), before)
