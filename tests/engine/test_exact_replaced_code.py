"""Code that is replaced below a wrapped VAE: classes, methods, torch's functions, and how weights are kept."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import small_kl
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import nn
from torch.nn import functional

from hybridge.engine.exact import ExactVAE, exact

Undo = Callable[[], Any]


def _in_strips(vae: Any) -> ExactVAE:
    wrapped = exact(vae)
    wrapped.modes = ("strips",)
    return wrapped


def _latents() -> torch.Tensor:
    return torch.randn((1, 4, 8, 10), generator=torch.Generator().manual_seed(0))


def _same(wrapped: ExactVAE, vae: Any) -> bool:
    ours, theirs = (module.decode(_latents()).sample for module in (wrapped, vae))
    return bool((ours - theirs).norm() <= 5e-5 * theirs.norm())


class _Doubling(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class _DoublingProcessor(AttnProcessor2_0):
    def __call__(self, *given: Any, **named: Any) -> Any:
        return super().__call__(*given, **named) * 2


def another_class(vae: Any) -> Undo:
    conv = vae.decoder.conv_in
    conv.__class__ = _Doubling
    return lambda: setattr(conv, "__class__", nn.Conv2d)


def another_class_of_a_processor(vae: Any) -> Undo:
    processor = vae.decoder.mid_block.attentions[0].processor
    processor.__class__ = _DoublingProcessor
    return lambda: setattr(processor, "__class__", AttnProcessor2_0)


def a_method_of_another_class(vae: Any) -> Undo:
    before = nn.SiLU.forward
    nn.SiLU.forward = nn.Hardswish.forward  # type: ignore[assignment, method-assign]
    return lambda: setattr(nn.SiLU, "forward", before)


def attention_scores(vae: Any) -> Undo:
    """As guidance by self-attention takes hold of them."""
    before, processors = Attention.get_attention_scores, vae.attn_processors
    vae.set_attn_processor(AttnProcessor())
    Attention.get_attention_scores = lambda self, query, *others: before(self, 9 * query, *others)

    def undo() -> None:
        Attention.get_attention_scores = before
        vae.set_attn_processor(processors)

    return undo


def function(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Undo]:
    def edit(vae: Any) -> Undo:
        before = getattr(functional, name)
        setattr(functional, name, lambda *given, **named: change(before(*given, **named)))
        return lambda: setattr(functional, name, before)

    return edit


EDITS: dict[str, Callable[[Any], Undo]] = {
    "another class": another_class,
    "another class of a processor": another_class_of_a_processor,
    "a method of another class": a_method_of_another_class,
    "attention scores": attention_scores,
    **{
        name: function(name, lambda made: made * 1.5)
        for name in ("conv2d", "group_norm", "silu", "linear", "scaled_dot_product_attention")
    },
    "interpolate": function("interpolate", lambda made: made.flip(-1)),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@torch.no_grad()
def test_it_is_noticed_and_so_is_its_undoing(edit: Callable[[Any], Undo]) -> None:
    vae = small_kl(4)
    wrapped = _in_strips(vae)
    before = wrapped.decode(_latents()).sample
    undo = edit(vae)
    try:
        assert not torch.allclose(vae.decode(_latents()).sample, before, rtol=1e-3, atol=1e-3)
        assert _same(wrapped, vae)
    finally:
        undo()
    assert _same(wrapped, vae)
    assert wrapped.why_plain("decode", _latents()) is None


@pytest.mark.parametrize("kept_as", ["a buffer", "an attribute"])
@torch.no_grad()
def test_weights_that_are_no_parameters(kept_as: str) -> None:
    vae = small_kl(4)
    wrapped = _in_strips(vae)
    conv = vae.decoder.up_blocks[0].resnets[0].conv1
    weight = conv.weight.detach().clone()
    del conv.weight
    if kept_as == "a buffer":
        conv.register_buffer("weight", weight)
    else:
        conv.weight = weight
    assert _same(wrapped, vae)
    weight.mul_(-3.0)
    assert _same(wrapped, vae)


@torch.no_grad()
def test_a_thread_that_comes_while_another_prepares_older_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from hybridge.engine.execution import executor

    vae = small_kl(4)
    wrapped = _in_strips(vae)
    layer = "decoder.up_blocks.0.resnets.0.conv1"
    has_begun, prepare = threading.Event(), executor.Executor._convolution

    def slowly(op: Any, *others: Any) -> Any:
        prepared = prepare(op, *others)
        if op.weights.name == layer and not has_begun.is_set():
            has_begun.set()
            vae.get_submodule(layer).weight.data.mul_(-3.0)
            second.start()
            second.join(1.0)  # it may be made to wait for this thread
        return prepared

    def decode() -> None:
        with torch.no_grad():
            wrapped.decode(_latents())

    second = threading.Thread(target=decode)
    monkeypatch.setattr(executor.Executor, "_convolution", staticmethod(slowly))
    decode()
    second.join(60)
    assert not second.is_alive()
    assert _same(wrapped, vae)
