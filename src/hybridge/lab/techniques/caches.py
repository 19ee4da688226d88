"""Caches between steps from libraries of their own; :mod:`.diffusers_caches` has those of diffusers.

Neighbouring steps differ little, so parts of the denoiser are computed at some steps only.  What is kept must be
forgotten before the next picture, and when guidance ends: the batch is half as large from then on.  Every row
does both.
"""

from __future__ import annotations

import importlib
from typing import Any

from .diffusers_caches import last_attention_spared
from .evidence import spared
from .patching import remembered
from .pipeline_context import PipelineContext
from .technique import Undo, Watch

#: The guide's settings: a full step, then two that compute the outermost blocks alone.
_INTERVAL, _BRANCH = 3, 0


def deepcache(context: PipelineContext, undo: Undo) -> Watch:
    """The outermost blocks at every step, the others at every third."""
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
    # Not the block itself: its forward is called at every step, and gives what was kept.
    return spared(context, "mid_block.resnets.0", "the middle block")


def para_attention(context: PipelineContext, _: Undo) -> Watch:
    """ParaAttention's adapters know no way back."""
    adapters: Any = importlib.import_module("para_attn.first_block_cache.diffusers_adapters")
    adapters.apply_cache_on_pipe(context.pipe)
    return last_attention_spared(context)


def cache_dit(context: PipelineContext, undo: Undo) -> Watch:
    """cache-dit with its own settings."""
    cache_dit: Any = importlib.import_module("cache_dit")
    cache_dit.enable_cache(context.pipe)
    undo.by(cache_dit.disable_cache, context.pipe)
    return last_attention_spared(context)
