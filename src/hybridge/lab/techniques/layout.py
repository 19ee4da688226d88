"""Layout and wiring of the UNet: channels last, FreeU, fused projections."""

from __future__ import annotations

from functools import partial

import torch

from .evidence import CallLog, counted, watching
from .pipeline_context import PipelineContext
from .technique import Proof, Undo, Watch


def channels_last(context: PipelineContext, undo: Undo) -> Watch:
    """Of the denoiser, which has most of the convolutions."""
    module = context.denoiser
    undo.by(partial(module.to, memory_format=torch.contiguous_format))
    module.to(memory_format=torch.channels_last)

    def look() -> Proof:
        # A kernel of 1×1 is both layouts at once and proves nothing.
        kernels = [p for p in module.parameters() if p.dim() == 4 and max(p.shape[2:]) > 1 and p.shape[1] > 1]
        turned = sum(kernel.stride(1) == 1 for kernel in kernels)
        return Proof(0 < turned == len(kernels), f"{turned} of {len(kernels)} kernels have their channels last")

    return watching(look)


#: Scales of the skip connections (s) and of the backbone (b), as FreeU's authors give them.
_FREEU = {
    "StableDiffusionXLPipeline": {"s1": 0.9, "s2": 0.2, "b1": 1.3, "b2": 1.4},
    "StableDiffusionPipeline": {"s1": 0.9, "s2": 0.2, "b1": 1.5, "b2": 1.6},
}


def freeu(context: PipelineContext, undo: Undo) -> Watch:
    """FreeU with its authors' scales for this pipeline."""
    pipe, scales = context.pipe, _FREEU[type(context.pipe).__name__]
    pipe.enable_freeu(**scales)
    undo.by(pipe.disable_freeu)

    def look() -> Proof:
        blocks = pipe.unet.up_blocks
        scaled = sum(all(getattr(block, name, None) == scale for name, scale in scales.items()) for block in blocks)
        return Proof(scaled > 0, f"{scaled} of {len(blocks)} blocks of the way up have their scales")

    return watching(look)


#: What fusing adds to an attention.
_FUSED = ("to_qkv", "to_kv", "to_added_qkv")


def fused_qkv(context: PipelineContext, undo: Undo) -> Watch:
    """Of the denoiser alone: pipelines also ask a VAE that may not know it."""
    module = context.denoiser
    before = dict(module.attn_processors)
    module.fuse_qkv_projections()
    fused = [(owner, name) for owner in module.modules() for name in _FUSED if hasattr(owner, name)]
    first = getattr(*fused[0])

    def judge(log: CallLog) -> Proof:
        kinds = ", ".join(f"{sum(name == kind for _, name in fused)} {kind}" for kind in _FUSED)
        return Proof(len(log) > 0, f"{kinds}; {len(log)} forwards of the first")

    # diffusers puts the processors back, and of a UNet leaves the fused weights where they are.
    for owner, name in fused:
        undo.by(setattr, owner, "fused_projections", False)
        undo.by(delattr, owner, name)
    undo.by(module.set_attn_processor, before)
    return counted(lambda: first, judge)
