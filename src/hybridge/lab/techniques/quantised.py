"""Weights in fewer bits: torchao, bitsandbytes, quanto, SDNQ, torch.ao.

The denoiser's layers are quantised where they are.  The way back loads them anew: to keep the whole weights aside
would cost the memory that quantising saves, and to write them to a disk would be paid for by everybody who never
wants them back.  What is kept is a sum of their bits.  Where a way back is wanted, the weights on the disk are
compared with it before anything is changed: a pipeline that did not come from files, or has a LoRA merged into it,
is refused.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from ...errors import ModelUnavailable
from ..harness.memory import storage_bytes
from .evidence import watching
from .pipeline_context import PipelineContext
from .technique import Proof, Undo, Watch
from .weights import SAVE_FIRST, filled, outline, sum_of_bits

#: What quantisers leave on a module to say that it was quantised; a second one would refuse it.
_MARKS = ("quantization_config", "quantization_method")

#: Of weights that share a scale, and of rows that bitsandbytes arranges together for a CPU.
_NF4_BLOCK, _NF4_ROWS = 64, 32

#: What is remembered of a layer: of each parameter its outline and a sum of its bits.
_Kept = dict[str, tuple[torch.Tensor, int]]


def _quantised(
    context: PipelineContext, undo: Undo, quantise: Callable[[], object], is_done: Callable[[nn.Module], bool]
) -> Watch:
    """The change of a row.

    Args:
        context: Whose denoiser ``quantise`` changes in place.
        quantise: Called once the weights on the disk are known to be these.
        is_done: Whether a layer is as this library makes them.
    """
    denoiser = context.denoiser
    whole_bytes = storage_bytes(denoiser)
    whole = {name: _kept(layer) for name, layer in _layers(denoiser)}

    def put_back() -> None:
        _put_back(context, {name: kept for name, kept in whole.items() if is_done(denoiser.get_submodule(name))})

    def look() -> Proof:
        done = sum(is_done(denoiser.get_submodule(name)) for name in whole)
        share = storage_bytes(denoiser) / whole_bytes
        return Proof(done > 0, f"{done} of {len(whole)} layers in fewer bits; {share:.0%} of the bytes are left")

    if context.is_kept:
        anew = dict(_layers(_loaded_anew(context)))
        for name, kept in whole.items():
            _check(name, kept, anew.get(name))
    undo.by(put_back)
    quantise()
    return watching(look)


def _kept(layer: nn.Module) -> _Kept:
    return {name: (outline(p), sum_of_bits(p)) for name, p in layer.named_parameters(recurse=False)}


def _check(name: str, kept: _Kept, layer: nn.Module | None) -> None:
    """Raises ModelUnavailable unless a layer that was loaded anew has the weights that it had here."""
    for parameter, (like, sum_) in kept.items():
        if layer is None or sum_of_bits(layer.get_parameter(parameter).to(like.dtype)) != sum_:
            raise ModelUnavailable(
                f"{name}.{parameter}, loaded anew, is not the weight that this pipeline has",
                expected="weights as they came from the files, or quantising could not be undone",
                hint=SAVE_FIRST,
            )


def _layers(denoiser: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in denoiser.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            yield name, module


def _put_back(context: PipelineContext, layers: dict[str, _Kept]) -> None:
    denoiser = context.denoiser
    anew: Any = _loaded_anew(context) if layers else None
    restored = {}
    for name, kept in layers.items():
        layer = restored[name] = anew.get_submodule(name)
        _check(name, kept, layer)
        for parameter, (like, _) in kept.items():
            setattr(layer, parameter, filled(like, layer.get_parameter(parameter), context.device))
    for name, layer in restored.items():
        _replace(denoiser, name, layer.train(denoiser.training))
    for mark in _MARKS:
        vars(denoiser).pop(mark, None)


def _replace(denoiser: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(denoiser.get_submodule(parent), leaf, layer)


def _loaded_anew(context: PipelineContext) -> Any:
    denoiser = getattr(context.loaded_anew(context.denoiser_name), context.denoiser_name)
    if any(getattr(module, "fused_projections", False) for module in context.denoiser.modules()):
        denoiser.fuse_qkv_projections()
    return denoiser


def _made_by(package: str, *kinds: str) -> Callable[[nn.Module], bool]:
    """Whether a layer is of one of these classes, somewhere in a package."""
    return lambda layer: type(layer).__module__.startswith(f"{package}.") and type(layer).__name__ in kinds


def torchao(context: PipelineContext, undo: Undo, config: str, kind: str, dynamic: bool = False) -> Watch:
    """A config of torchao's, which makes weights of this class, with activations quantised or not."""
    quantization = importlib.import_module("torchao.quantization")

    def is_done(layer: nn.Module) -> bool:
        weight = getattr(layer, "weight", None)
        return type(weight).__name__ == kind and (getattr(weight, "act_quant_kwargs", None) is not None) == dynamic

    return _quantised(
        context, undo, lambda: quantization.quantize_(context.denoiser, getattr(quantization, config)()), is_done
    )


def _bitsandbytes(context: PipelineContext, undo: Undo, kind: str, make: Callable[[nn.Linear], Any]) -> Watch:
    """Replaces layers by hand: diffusers' loader refuses without a GPU, the layers themselves run anywhere."""
    denoiser = context.denoiser

    def quantise() -> None:
        for name, layer in [*_layers(denoiser)]:
            if isinstance(layer, nn.Linear):
                made = make(layer)
                made.bias = layer.bias
                # Moving it is what quantises it.
                _replace(denoiser, name, made.to(context.device).train(layer.training))

    return _quantised(context, undo, quantise, _made_by("bitsandbytes", kind))


def bitsandbytes_int8(context: PipelineContext, undo: Undo) -> Watch:
    """LLM.int8() in linear layers."""
    bnb = importlib.import_module("bitsandbytes.nn")
    more = {"requires_grad": False, "has_fp16_weights": False}

    def make(layer: nn.Linear) -> Any:
        made = bnb.Linear8bitLt(layer.in_features, layer.out_features, False, has_fp16_weights=False, device="meta")
        # On the CPU first, wherever the layer is: only on its way from there is a weight quantised.
        made.weight = bnb.Int8Params(layer.weight.detach().cpu(), **more)
        return made

    return _bitsandbytes(context, undo, "Linear8bitLt", make)


def bitsandbytes_nf4(context: PipelineContext, undo: Undo) -> Watch:
    """Four bits of a normal distribution in linear layers."""
    bnb = importlib.import_module("bitsandbytes.nn")

    def make(layer: nn.Linear) -> Any:
        how = {"compute_dtype": layer.weight.dtype, "quant_type": "nf4", "device": "meta"}
        made: Any = bnb.Linear4bit(layer.in_features, layer.out_features, False, **how)
        made.weight = bnb.Params4bit(
            layer.weight.detach().cpu(), requires_grad=False, quant_type="nf4", module=made
        )
        if layer.in_features % _NF4_BLOCK or layer.out_features % _NF4_ROWS:
            # Where a CPU multiplies bfloat16 (AVX512_BF16), it rearranges every layer, and fails with such a one.
            made.support_avx512bf16_for_cpu = False
        return made

    return _bitsandbytes(context, undo, "Linear4bit", make)


def quanto(context: PipelineContext, undo: Undo) -> Watch:
    """Weights in int8."""
    library = importlib.import_module("optimum.quanto")

    def quantise() -> None:
        library.quantize(context.denoiser, weights=library.qint8)
        library.freeze(context.denoiser)

    return _quantised(context, undo, quantise, _made_by("optimum", "QLinear", "QConv2d"))


def sdnq(context: PipelineContext, undo: Undo) -> Watch:
    """Weights in int8."""
    library = importlib.import_module("sdnq")
    quantise = partial(library.sdnq_post_load_quant, context.denoiser, weights_dtype="int8")
    return _quantised(context, undo, quantise, _made_by("sdnq", "SDNQLinear"))


def torch_ao(context: PipelineContext, undo: Undo) -> Watch:
    """Dynamic quantisation of linear layers, as torch itself had it first."""
    quantization: Any = torch.ao.quantization
    quantise = partial(
        quantization.quantize_dynamic, context.denoiser, {nn.Linear}, dtype=torch.qint8, inplace=True
    )
    return _quantised(context, undo, quantise, _made_by("torch.ao.nn.quantized.dynamic", "Linear"))
