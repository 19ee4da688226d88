"""Layout and wiring of the UNet: channels last, FreeU, fused projections."""

from __future__ import annotations

import torch

from .evidence import looked_at
from .rig import Rig
from .technique import Applied, Proof, Technique


def _channels_last(rig: Rig) -> Applied:
    module = rig.denoiser
    module.to(memory_format=torch.channels_last)

    def look() -> Proof:
        # A kernel of 1×1 is both layouts at once and proves nothing.
        kernels = [p for p in module.parameters() if p.dim() == 4 and max(p.shape[2:]) > 1 and p.shape[1] > 1]
        turned = sum(kernel.stride(1) == 1 for kernel in kernels)
        return Proof(0 < turned == len(kernels), f"{turned} of {len(kernels)} kernels have their channels last")

    return Applied(looked_at(look), lambda: module.to(memory_format=torch.contiguous_format))


ROWS: tuple[Technique, ...] = (
    Technique(
        name="channels-last",
        title="Channels last",
        claim="Convolutions read what lies together; faster on most devices, same picture.",
        source="https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html",
        exactness="rounding",
        stage="layout",
        apply=_channels_last,
    ),
)
