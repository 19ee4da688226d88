"""Fewer tokens: ToMe merges those that are alike, T-GATE stops reading the prompt once it has had its say."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from .evidence import spared, watching
from .pipeline_context import PipelineContext
from .technique import Proof, Undo, Watch

#: Of the tokens, so many are merged away: ToMe's default.
_MERGED = 0.5

#: The part of the steps in which T-GATE computes cross-attention: its own example for SDXL, 10 of 25.
_GATE = 0.4

#: By pipeline: diffusers' classes, and what T-GATE has for them.
_LOADERS = {"StableDiffusionXLPipeline": "TgateSDXLLoader", "StableDiffusionPipeline": "TgateSDLoader"}


def tome(context: PipelineContext, undo: Undo, max_downsample: int) -> Watch:
    """ToMe in the blocks down to this factor of the latents' size."""
    tomesd: Any = importlib.import_module("tomesd")
    unet = context.pipe.unet
    undo.keep(unet, "_tome_info")
    tomesd.apply_patch(context.pipe, ratio=_MERGED, max_downsample=max_downsample)
    undo.by(tomesd.remove_patch, context.pipe)

    def same_choice() -> None:
        # Which tokens are merged is drawn by lot, by default from where torch's own generator happens to stand.
        unet._tome_info["args"]["generator"] = torch.Generator(context.device).manual_seed(0)

    undo.listen(context.before_picture, same_choice)
    return _fewer_tokens(context)


def _fewer_tokens(context: PipelineContext) -> Watch:
    """Tokens that come into a block, beside those that its self-attention gets to see."""
    from diffusers.models.attention import BasicTransformerBlock

    def blocks() -> list[Any]:
        return [part for part in context.denoiser.modules() if isinstance(part, BasicTransformerBlock)]

    def judge(come: list[int], seen: list[int]) -> Proof:
        evidence = f"self-attention saw {sum(seen)} of {sum(come)} tokens in {len(blocks())} blocks"
        return Proof(sum(seen) < sum(come), evidence)

    return watching(
        judge, lambda: _tokens_into(blocks()), lambda: _tokens_into([block.attn1 for block in blocks()])
    )


@contextmanager
def _tokens_into(modules: list[Any]) -> Iterator[list[int]]:
    """How long the sequence is at every call."""
    lengths: list[int] = []

    def note(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sequence = args[0] if args else kwargs["hidden_states"]  # (B, tokens, channels)
        lengths.append(int(sequence.shape[1]))

    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield lengths


def tgate(context: PipelineContext, undo: Undo) -> Watch:
    """T-GATE's own loop, and its attention modules."""
    loader = getattr(importlib.import_module("tgate"), _LOADERS[type(context.pipe).__name__])
    # Or the next plain call would answer with what was kept of the last gated one.
    undo.keep(context.pipe.unet, "forward", "cache")
    loader(context.pipe)
    undo.by(delattr, context.pipe, "tgate")
    undo.set(context, "generate", _gated)
    return spared(context, ".attn2.to_out.0", "attention to the prompt")


def _gated(context: PipelineContext, prompt: str, generator: torch.Generator, arguments: dict[str, Any]) -> Any:
    """T-GATE's own loop: up to the gate as ever, then without guidance and with the prompt's attention kept."""
    steps = arguments.get("num_inference_steps", 50)
    gate = max(1, round(_GATE * steps))
    return context.pipe.tgate(prompt, gate_step=gate, generator=generator, output_type="np", **arguments).images
