"""Rows of what is not here: each names what it missed and what lives, and leaves the pipeline alone."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

from hybridge.lab.techniques import stack
from hybridge.lab.techniques.catalogue import named
from hybridge.lab.techniques.pipeline_context import PipelineContext

#: Rows, and what each stands on.
LIBRARIES = {
    "torchao-int4": "mslk",
    "tensorrt": "torch_tensorrt",
    "gaudi": "habana_frameworks",
    "neuron": "torch_neuronx",
}


def test_what_is_not_installed_is_named_with_what_lives(context: PipelineContext) -> None:
    absent = [name for name, module in LIBRARIES.items() if importlib.util.find_spec(module) is None]
    for (step,) in (stack.apply(context, named([name])) for name in absent):
        assert step.applied is None
        assert step.failure is None
        assert step.missing is not None
        assert step.missing.outcome == "unavailable"
        assert "not installed" in step.missing.reason
        assert step.missing.instead


@pytest.mark.skipif(sys.platform == "darwin", reason="this is a Mac")
def test_what_needs_a_mac_says_so(context: PipelineContext) -> None:
    (step,) = stack.apply(context, named(["mps"]))
    assert step.missing is not None
    assert "MPS" in step.missing.reason
    assert step.missing.instead


@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no GPU of Apple's")
def test_moved_to_apples_gpu_and_back(context: PipelineContext) -> None:
    (step,) = stack.apply(context, named(["mps"]))
    assert step.applied is not None
    with step.applied.witness() as proof:
        context.picture("a cat in the rain", seed=0)
    assert proof().took_effect
    assert stack.undo([step]) == []
    assert context.pipe.device.type == context.device.type == "cpu"
