"""Fewer tokens: ToMe merges those that are alike, T-GATE stops reading the prompt once it has had its say."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from .evidence import spared
from .patching import remembered
from .pipeline_context import PipelineContext
from .requirements import no_unet
from .technique import Applied, Missing, Proof, Technique, Witness, row

#: Of the tokens, so many are merged away: ToMe's default.
_MERGED = 0.5

#: The part of the steps in which T-GATE computes cross-attention: its own example for SDXL, 10 of 25.
_GATE = 0.4

#: By pipeline: diffusers' classes, and what T-GATE has for them.
_LOADERS = {"StableDiffusionXLPipeline": "TgateSDXLLoader", "StableDiffusionPipeline": "TgateSDLoader"}


def _tome(context: PipelineContext, max_downsample: int) -> Applied:
    tomesd: Any = importlib.import_module("tomesd")
    unet = context.pipe.unet
    put_back = remembered(unet, "_tome_info")
    tomesd.apply_patch(context.pipe, ratio=_MERGED, max_downsample=max_downsample)

    def same_choice() -> None:
        # Which tokens are merged is drawn by lot, by default from where torch's own generator happens to stand.
        unet._tome_info["args"]["generator"] = torch.Generator(context.device).manual_seed(0)

    context.before_picture.append(same_choice)

    def undo() -> None:
        context.before_picture.remove(same_choice)
        tomesd.remove_patch(context.pipe)
        put_back()

    return Applied(_fewer_tokens(context), undo)


def _fewer_tokens(context: PipelineContext) -> Callable[[], Witness]:
    """Tokens that come into a block, beside those that its self-attention gets to see."""

    @contextmanager
    def witness() -> Iterator[Callable[[], Proof]]:
        from diffusers.models.attention import BasicTransformerBlock

        blocks = [part for part in context.denoiser.modules() if isinstance(part, BasicTransformerBlock)]
        with _tokens_into(blocks) as come, _tokens_into([block.attn1 for block in blocks]) as seen:
            yield lambda: Proof(
                sum(seen) < sum(come),
                f"self-attention saw {sum(seen)} of {sum(come)} tokens in {len(blocks)} blocks",
            )

    return witness


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


def _tgate(context: PipelineContext) -> Applied:
    loader = getattr(importlib.import_module("tgate"), _LOADERS[type(context.pipe).__name__])
    put_back = remembered(context.pipe.unet, "forward", "cache")
    plainly = context.generate
    loader(context.pipe)
    context.generate = _gated

    def undo() -> None:
        context.generate = plainly
        del context.pipe.tgate
        put_back()  # or the next plain call would answer with what was kept of the last gated one

    return Applied(spared(lambda: context.denoiser, _last_cross_attention, "attention to the prompt"), undo)


def _gated(context: PipelineContext, prompt: str, generator: torch.Generator, arguments: dict[str, Any]) -> Any:
    """T-GATE's own loop: up to the gate as ever, then without guidance and with the prompt's attention kept."""
    steps = arguments.get("num_inference_steps", 50)
    gate = max(1, round(_GATE * steps))
    return context.pipe.tgate(prompt, gate_step=gate, generator=generator, output_type="np", **arguments).images


def _last_cross_attention(unet: torch.nn.Module) -> torch.nn.Module:
    found: list[torch.nn.Module] = [part for name, part in unet.named_modules() if name.endswith(".attn2.to_out.0")]
    return found[-1]


def _why_not_tgate(context: PipelineContext) -> Missing | None:
    kind = type(context.pipe).__name__
    if kind not in _LOADERS:
        return Missing("unavailable", f"T-GATE has a loop of its own for {' and '.join(_LOADERS)}, none for {kind}")
    return None


ROWS: tuple[Technique, ...] = (
    row("tome", lambda context: _tome(context, max_downsample=1), no_unet),
    row("tome-all", lambda context: _tome(context, max_downsample=4), no_unet),
    row("tgate", _tgate, _why_not_tgate),
)
