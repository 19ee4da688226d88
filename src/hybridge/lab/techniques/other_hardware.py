"""Other hardware: where it is there and moving the pipeline to it is all that a row asks, it is moved."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .evidence import looked_at
from .pipeline_context import PipelineContext
from .technique import Change, Proof, Technique, Undo, Witness, row


def _moved_to(kind: str) -> Change:
    """For hardware that ``pipe.to`` reaches."""

    def apply(context: PipelineContext, undo: Undo) -> Callable[[], Witness]:
        def move(device: torch.device) -> None:
            context.pipe.to(device)
            context.device = device

        def look() -> Proof:
            devices = {parameter.device.type for parameter in context.denoiser.parameters()}
            return Proof(devices == {kind}, f"the denoiser's weights are on {', '.join(sorted(devices))}")

        undo.by(move, context.device)
        move(torch.device(kind))
        return looked_at(look)

    return apply


ROWS: tuple[Technique, ...] = (
    row("mps", _moved_to("mps")),
    # Intel's bridge adds torch.hpu when it is imported; optimum-habana's own pipelines pin an older diffusers.
    row("gaudi", _moved_to("hpu")),
    # diffusers' SDXL pipeline knows the device; optimum-neuron's own pipelines pin an older transformers.
    row("neuron", _moved_to("neuron")),
)
