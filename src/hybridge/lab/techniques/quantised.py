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
from typing import Any

import torch
from torch import nn

from ...errors import ModelUnavailable
from ..harness.memory import storage_bytes
from .evidence import looked_at
from .pipeline_context import PipelineContext
from .technique import Change, Proof, Technique, Undo, Witness, row
from .weights import filled, outline, sum_of_bits

#: What quantisers leave on a module to say that it was quantised; a second one would refuse it.
_MARKS = ("quantization_config", "quantization_method")

#: Of weights that share a scale, and of rows that bitsandbytes arranges together for a CPU.
_NF4_BLOCK, _NF4_ROWS = 64, 32


#: What is remembered of a layer: of each parameter its outline and a sum of its bits.
_Kept = dict[str, tuple[torch.Tensor, int]]


def _quantised(quantise: Callable[[PipelineContext], None], is_done: Callable[[nn.Module], bool]) -> Change:
    """The change of a row.

    Args:
        quantise: Changes the context's denoiser in place.
        is_done: Whether a layer is as this library makes them.
    """

    def apply(context: PipelineContext, undo: Undo) -> Callable[[], Witness]:
        denoiser = context.denoiser
        whole_bytes = storage_bytes(denoiser)
        whole = {name: _kept(layer) for name, layer in _layers(denoiser)}

        def put_back() -> None:
            done = {name: kept for name, kept in whole.items() if is_done(denoiser.get_submodule(name))}
            _put_back(context, done)

        def look() -> Proof:
            done = sum(is_done(denoiser.get_submodule(name)) for name in whole)
            share = storage_bytes(denoiser) / whole_bytes
            evidence = f"{done} of {len(whole)} layers in fewer bits; {share:.0%} of the bytes are left"
            return Proof(done > 0, evidence)

        if context.is_kept:
            anew = dict(_layers(_loaded_anew(context)))
            for name, kept in whole.items():
                _check(name, kept, anew.get(name))
        undo.by(put_back)
        quantise(context)
        return looked_at(look)

    return apply


def _kept(layer: nn.Module) -> _Kept:
    return {name: (outline(p), sum_of_bits(p)) for name, p in layer.named_parameters(recurse=False)}


def _check(name: str, kept: _Kept, layer: nn.Module | None) -> None:
    """Raises ModelUnavailable unless a layer that was loaded anew has the weights that it had here."""
    for parameter, (like, sum_) in kept.items():
        if layer is None or sum_of_bits(layer.get_parameter(parameter).to(like.dtype)) != sum_:
            raise ModelUnavailable(
                f"{name}.{parameter}, loaded anew, is not the weight that this pipeline has",
                expected="weights as they came from the files, or quantising could not be undone",
                hint="save_pretrained, then from_pretrained: a part was replaced, or a LoRA merged into one",
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


def _loaded_anew(context: PipelineContext) -> Any:
    denoiser = getattr(context.loaded_anew(context.denoiser_name), context.denoiser_name)
    if any(getattr(module, "fused_projections", False) for module in context.denoiser.modules()):
        denoiser.fuse_qkv_projections()
    return denoiser


def _replace(denoiser: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(denoiser.get_submodule(parent), leaf, layer)


def _torchao(configuration: str) -> Callable[[PipelineContext], None]:
    def quantise(context: PipelineContext) -> None:
        quantization = importlib.import_module("torchao.quantization")
        quantization.quantize_(context.denoiser, getattr(quantization, configuration)())

    return quantise


def _weight_is(kind: str, *, dynamic: bool = False) -> Callable[[nn.Module], bool]:
    """Whether torchao made this layer's weight, and whether activations are quantised with it."""

    def is_done(layer: nn.Module) -> bool:
        weight = getattr(layer, "weight", None)
        return type(weight).__name__ == kind and (getattr(weight, "act_quant_kwargs", None) is not None) == dynamic

    return is_done


def _class_is(*kinds: str) -> Callable[[nn.Module], bool]:
    return lambda layer: f"{type(layer).__module__.split('.')[0]}.{type(layer).__name__}" in kinds


def _bitsandbytes(context: PipelineContext, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Replaces layers by hand: diffusers' loader refuses without a GPU, the layers themselves run anywhere."""
    denoiser = context.denoiser
    for name, layer in [*_layers(denoiser)]:
        if isinstance(layer, nn.Linear):
            made = make(layer)
            made.bias = layer.bias
            # Moving it is what quantises it.
            _replace(denoiser, name, made.to(context.device).train(layer.training))


def _bitsandbytes_int8(context: PipelineContext) -> None:
    bnb = importlib.import_module("bitsandbytes.nn")

    def make(layer: nn.Linear) -> nn.Module:
        made: nn.Module = bnb.Linear8bitLt(
            layer.in_features, layer.out_features, False, has_fp16_weights=False, device="meta"
        )
        # On the CPU first, wherever the layer is: only on its way from there is a weight quantised.
        made.weight = bnb.Int8Params(layer.weight.detach().cpu(), requires_grad=False, has_fp16_weights=False)
        return made

    _bitsandbytes(context, make)


def _bitsandbytes_nf4(context: PipelineContext) -> None:
    bnb = importlib.import_module("bitsandbytes.nn")

    def make(layer: nn.Linear) -> Any:
        dtype = layer.weight.dtype
        made: Any = bnb.Linear4bit(
            layer.in_features, layer.out_features, False, compute_dtype=dtype, quant_type="nf4", device="meta"
        )
        made.weight = bnb.Params4bit(
            layer.weight.detach().cpu(), requires_grad=False, quant_type="nf4", module=made
        )
        if layer.in_features % _NF4_BLOCK or layer.out_features % _NF4_ROWS:
            # Where a CPU multiplies bfloat16 (AVX512_BF16), it rearranges every layer, and fails with such a one.
            made.support_avx512bf16_for_cpu = False
        return made

    _bitsandbytes(context, make)


def _quanto(context: PipelineContext) -> None:
    quanto = importlib.import_module("optimum.quanto")
    quanto.quantize(context.denoiser, weights=quanto.qint8)
    quanto.freeze(context.denoiser)


def _sdnq(context: PipelineContext) -> None:
    importlib.import_module("sdnq").sdnq_post_load_quant(context.denoiser, weights_dtype="int8")


def _torch_ao(context: PipelineContext) -> None:
    quantization: Any = torch.ao.quantization
    quantization.quantize_dynamic(context.denoiser, {nn.Linear}, dtype=torch.qint8, inplace=True)


def _is_packed(layer: nn.Module) -> bool:
    return type(layer).__module__.startswith("torch.ao.nn.quantized.dynamic")


ROWS: tuple[Technique, ...] = (
    row("torchao-int8", _quantised(_torchao("Int8WeightOnlyConfig"), _weight_is("Int8Tensor"))),
    row(
        "torchao-int8-dynamic",
        _quantised(_torchao("Int8DynamicActivationInt8WeightConfig"), _weight_is("Int8Tensor", dynamic=True)),
    ),
    row("torchao-fp8", _quantised(_torchao("Float8WeightOnlyConfig"), _weight_is("Float8Tensor"))),
    row("torchao-int4", _quantised(_torchao("Int4WeightOnlyConfig"), _weight_is("Int4Tensor"))),
    row("bitsandbytes-int8", _quantised(_bitsandbytes_int8, _class_is("bitsandbytes.Linear8bitLt"))),
    row("bitsandbytes-nf4", _quantised(_bitsandbytes_nf4, _class_is("bitsandbytes.Linear4bit"))),
    row("quanto-int8", _quantised(_quanto, _class_is("optimum.QLinear", "optimum.QConv2d"))),
    row("sdnq-int8", _quantised(_sdnq, _class_is("sdnq.SDNQLinear"))),
    row("torch-ao-dynamic", _quantised(_torch_ao, _is_packed)),
)
