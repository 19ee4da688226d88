"""Caches between steps: DeepCache, the hooks of diffusers, and libraries that bring their own.

Neighbouring steps differ little, so parts of the denoiser are computed at some steps only.  What is kept must be
forgotten before the next picture, and when guidance ends: the batch is half as large from then on.  Every row here
does both.

The hooks of diffusers are made for transformers; on a UNet some of them find nothing to hook and some break.  They
are tried all the same, so that a version that mends them is noticed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from .diffusers_caches import DIFFUSERS_CACHES, last_attention_spared
from .evidence import spared
from .patching import remembered
from .pipeline_context import PipelineContext
from .technique import Technique, Undo, Witness, row

#: The guide's settings: a full step, then two that compute the outermost blocks alone.
_INTERVAL, _BRANCH = 3, 0


def _deepcache(context: PipelineContext, undo: Undo) -> Callable[[], Witness]:
    undo.by(remembered(context.pipe.unet, "forward"))
    helper: Any = importlib.import_module("DeepCache").DeepCacheSDHelper(pipe=context.pipe)
    helper.set_params(cache_interval=_INTERVAL, cache_branch_id=_BRANCH)
    helper.enable()
    undo.by(helper.reset_states)

    def begin_again() -> None:
        helper.start_timestep = None

    def guidance_ended(step: int) -> None:
        # Full steps are counted from this index: the first of half the batch is one, and what was kept is replaced.
        helper.start_timestep = step + 1

    undo.listen(context.before_picture, begin_again)
    undo.listen(context.guidance_ended, guidance_ended)
    return spared(lambda: context.denoiser, _middle, "the middle block")


def _middle(unet: Any) -> torch.nn.Module:
    # Not the block itself: its forward is called at every step, and gives what was kept.
    inner: torch.nn.Module = unet.mid_block.resnets[0]
    return inner


def _para_attention(context: PipelineContext, _: Undo) -> Callable[[], Witness]:
    adapters: Any = importlib.import_module("para_attn.first_block_cache.diffusers_adapters")
    adapters.apply_cache_on_pipe(context.pipe)
    return last_attention_spared(context)


def _cache_dit(context: PipelineContext, undo: Undo) -> Callable[[], Witness]:
    cache_dit: Any = importlib.import_module("cache_dit")
    cache_dit.enable_cache(context.pipe)
    undo.by(cache_dit.disable_cache, context.pipe)
    return last_attention_spared(context)


ROWS: tuple[Technique, ...] = (
    row("deepcache", _deepcache),
    *DIFFUSERS_CACHES,
    row("para-attention", _para_attention),
    row("cache-dit", _cache_dit),
)
