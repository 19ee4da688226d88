"""Caches between steps: DeepCache, the hooks of diffusers, and libraries that bring their own.

Neighbouring steps differ little, so parts of the denoiser are computed at some steps only.  What is kept must be
forgotten before the next picture, and when guidance ends: the batch is half as large from then on.  Every row here
does both.

The hooks of diffusers are made for transformers; on a UNet some of them find nothing to hook and some break.  They
are tried all the same, so that a version that mends them is noticed.  A transformer has ``enable_cache`` and its
pipeline says where the loop is; a UNet has neither, so the functions behind it are called, and the denoiser's own
arguments are listened to.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from .evidence import spared, watching
from .pipeline_context import PipelineContext
from .technique import Missing, Proof, Undo, Watch

#: The guide's settings: a full step, then two that compute the outermost blocks alone.
_INTERVAL, _BRANCH = 3, 0

#: Enough for a step to be left out, wherever a cache begins to.
_TRIAL_STEPS = 4


def deepcache(context: PipelineContext, undo: Undo) -> Watch:
    """The outermost blocks at every step, the others at every third."""
    undo.keep(context.pipe.unet, "forward")
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


def _last_attention_spared(context: PipelineContext) -> Watch:
    """A witness that the last attention is computed less often than the denoiser is called.

    Seen at what projects its output, which runs when that attention is computed, fused or not.
    """
    return spared(context, ".to_out.0", "the last attention")


def hooked(
    context: PipelineContext, undo: Undo, config: str, apply: str, timed: bool = False, **settings: Any
) -> Watch:
    """A cache of diffusers, whose hooks are reset before every picture and when guidance ends.

    Args:
        context: Whose denoiser the hooks hang on.
        undo: Hears how they come off.
        config: Name of the cache's config in ``diffusers.hooks``.
        apply: Name of its function there.
        timed: Whether it asks where the loop is.
        settings: Of the config.
    """
    from diffusers import hooks

    if timed:
        settings["current_timestep_callback"] = _clock(context, undo)
    denoiser = context.denoiser
    before = set(_hooks(denoiser))
    registry = hooks.HookRegistry.check_if_exists_or_initialize(denoiser)

    def take_off() -> None:
        # The last first: of two on a module, a later one goes on calling an earlier one that was taken away.
        for part, name in reversed(_hooks(denoiser)):
            if (part, name) not in before:
                part._diffusers_hook.remove_hook(name, recurse=False)
        _drop_idle(denoiser)
        registry.invalidate_child_registries_cache()

    undo.by(take_off)
    getattr(hooks, apply)(denoiser, getattr(hooks, config)(**settings))
    registry.invalidate_child_registries_cache()
    found = len(_hooks(denoiser)) - len(before)

    def forget(_step: int | None = None) -> None:
        registry.reset_stateful_hooks(recurse=True)

    undo.listen(context.before_picture, forget)
    undo.listen(context.guidance_ended, forget)

    def judge(proof: Callable[[], Proof]) -> Proof:
        return Proof(proof().took_effect, f"hooks: {found}; {proof().evidence}")

    return watching(judge, _last_attention_spared(context))


def _drop_idle(module: torch.nn.Module) -> None:
    """Takes off the module, and all that is in it, forwards that do what those of their classes do."""
    for part in module.modules():
        own = vars(part).get("forward")
        if getattr(own, "__self__", None) is part and getattr(own, "__func__", None) is type(part).forward:
            del part.forward


def _hooks(denoiser: Any) -> list[tuple[Any, str]]:
    """Modules and names of what hangs on them, on each in the order in which it was hung."""
    owners = (part for part in denoiser.modules() if hasattr(part, "_diffusers_hook"))
    return [(part, name) for part in owners for name in part._diffusers_hook.hooks]


def _clock(context: PipelineContext, undo: Undo) -> Callable[[], float]:
    """Says where the loop is, from 1000 down to 0.

    It is read from the denoiser's arguments: not every pipeline says it.
    """
    scale = 1000 if type(context.pipe).__name__.startswith("Flux") else 1  # Flux calls its last timestep 1
    now = 1000.0

    def read_timestep(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal now
        given = kwargs["timestep"] if "timestep" in kwargs else args[1]
        now = float(torch.as_tensor(given).flatten()[0]) * scale

    undo.by(context.denoiser.register_forward_pre_hook(read_timestep, with_kwargs=True).remove)
    return lambda: now


def taylorseer(context: PipelineContext, undo: Undo, **settings: Any) -> Watch:
    """TaylorSeer, told which modules, or with the library's own choice."""
    if not hasattr(context.denoiser, "cache_context"):  # else its pipeline names the calls
        undo.by(context.denoiser.register_forward_pre_hook(_name_call, with_kwargs=True).remove)
    settings["taylor_factors_dtype"] = context.denoiser.dtype
    return hooked(context, undo, "TaylorSeerCacheConfig", "apply_taylorseer_cache", **settings)


def _name_call(denoiser: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Features are kept by the call's name.  Here it is the size of the batch, which guidance doubles."""
    from diffusers.hooks.hooks import CacheContext, _set_cache_context

    first = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
    _set_cache_context(denoiser, CacheContext(f"batch of {first.shape[0]}"))


def why_no_first_block(context: PipelineContext) -> Missing | None:
    """diffusers looks for the lists of blocks that its transformers have; without one it raises an IndexError."""
    from diffusers.hooks._common import _ALL_TRANSFORMER_BLOCK_IDENTIFIERS

    names = {name for name, part in context.denoiser.named_children() if isinstance(part, torch.nn.ModuleList)}
    if not names.isdisjoint(_ALL_TRANSFORMER_BLOCK_IDENTIFIERS):
        return None
    reason = f"it works on a list of transformer blocks, which a {type(context.denoiser).__name__} does not have"
    return Missing("unavailable", reason, "deepcache" if context.denoiser_name == "unet" else None)


def mag_cache(context: PipelineContext, undo: Undo) -> Watch:
    """MagCache with the ratios of Flux: they belong to a checkpoint, and no others are published with the code."""
    from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

    steps = context.arguments.get("num_inference_steps", 28)
    settings = {"mag_ratios": FLUX_MAG_RATIOS, "num_inference_steps": steps}
    return hooked(context, undo, "MagCacheConfig", "apply_mag_cache", **settings)


def faster_cache(context: PipelineContext, undo: Undo) -> Watch:
    """FasterCache, which is tried at once."""
    settings: dict[str, Any] = {"tensor_format": "BCHW", "attention_weight_callback": lambda _: 0.5}
    witness = hooked(context, undo, "FasterCacheConfig", "apply_faster_cache", timed=True, **settings)
    # What breaks it is reached at the first step that is left out.
    context.picture("", seed=0, num_inference_steps=_TRIAL_STEPS)
    return witness


def para_attention(context: PipelineContext, _: Undo) -> Watch:
    """ParaAttention's adapters know no way back."""
    adapters: Any = importlib.import_module("para_attn.first_block_cache.diffusers_adapters")
    adapters.apply_cache_on_pipe(context.pipe)
    return _last_attention_spared(context)


def cache_dit(context: PipelineContext, undo: Undo) -> Watch:
    """cache-dit with its own settings."""
    cache_dit: Any = importlib.import_module("cache_dit")
    cache_dit.enable_cache(context.pipe)
    undo.by(cache_dit.disable_cache, context.pipe)
    return _last_attention_spared(context)
