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

from .diffusers_caches import DIFFUSERS_CACHES, last_attention
from .evidence import spared
from .patching import remembered
from .pipeline_context import PipelineContext
from .requirements import no_unet, not_installed
from .technique import Applied, Missing, Technique, row

#: The guide's settings: a full step, then two that compute the outermost blocks alone.
_INTERVAL, _BRANCH = 3, 0


def _deepcache(context: PipelineContext) -> Applied:
    unet = context.pipe.unet
    put_back = remembered(unet, "forward")
    helper: Any = importlib.import_module("DeepCache").DeepCacheSDHelper(pipe=context.pipe)
    helper.set_params(cache_interval=_INTERVAL, cache_branch_id=_BRANCH)
    try:
        helper.enable()
    except BaseException:
        put_back()
        raise

    def begin_again() -> None:
        helper.start_timestep = None

    def guidance_ended(step: int) -> None:
        # Full steps are counted from this index: the first of half the batch is one, and what was kept is replaced.
        helper.start_timestep = step + 1

    context.before_picture.append(begin_again)
    context.guidance_ended.append(guidance_ended)

    def undo() -> None:
        put_back()
        helper.reset_states()
        context.before_picture.remove(begin_again)
        context.guidance_ended.remove(guidance_ended)

    return Applied(spared(lambda: context.denoiser, _middle, "the middle block"), undo)


def _middle(unet: Any) -> torch.nn.Module:
    # Not the block itself: its forward is called at every step, and gives what was kept.
    inner: torch.nn.Module = unet.mid_block.resnets[0]
    return inner


def _why_not_deepcache(context: PipelineContext) -> Missing | None:
    return no_unet(context, instead="first-block-cache")


def _para_attention(context: PipelineContext) -> Applied:
    adapters: Any = importlib.import_module("para_attn.first_block_cache.diffusers_adapters")
    adapters.apply_cache_on_pipe(context.pipe)
    return Applied(_last_attention_spared(context))


def _cache_dit(context: PipelineContext) -> Applied:
    cache_dit: Any = importlib.import_module("cache_dit")
    cache_dit.enable_cache(context.pipe)
    return Applied(_last_attention_spared(context), lambda: cache_dit.disable_cache(context.pipe))


def _last_attention_spared(context: PipelineContext) -> Any:
    return spared(lambda: context.denoiser, last_attention, "the last attention")


def _unless_installed(distribution: str) -> Callable[[PipelineContext], Missing | None]:
    return lambda context: not_installed(
        distribution,
        instead="taylorseer" if getattr(context.pipe, "unet", None) is not None else "first-block-cache",
    )


ROWS: tuple[Technique, ...] = (
    row("deepcache", _deepcache, _why_not_deepcache),
    *DIFFUSERS_CACHES,
    row("para-attention", _para_attention, _unless_installed("para-attn")),
    row("cache-dit", _cache_dit, _unless_installed("cache-dit")),
)
