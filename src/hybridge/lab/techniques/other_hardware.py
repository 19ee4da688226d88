"""Other hardware: where it is there and moving the pipeline to it is all that a row asks, it is moved.

Gaudi: Intel's bridge adds torch.hpu when it is imported; optimum-habana's own pipelines pin an older diffusers.
Neuron: diffusers' SDXL pipeline knows the device; optimum-neuron's own pipelines pin an older transformers.
"""

from __future__ import annotations

import torch

from .evidence import watching
from .pipeline_context import PipelineContext
from .technique import Proof, Undo, Watch


def moved(context: PipelineContext, undo: Undo, kind: str) -> Watch:
    """For hardware that ``pipe.to`` reaches."""

    def move(device: torch.device) -> None:
        context.pipe.to(device)
        context.device = device

    def look() -> Proof:
        devices = {parameter.device.type for parameter in context.denoiser.parameters()}
        return Proof(devices == {kind}, f"the denoiser's weights are on {', '.join(sorted(devices))}")

    undo.by(move, context.device)
    move(torch.device(kind))
    return watching(look)
