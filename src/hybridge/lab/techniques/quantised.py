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
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import ModelUnavailable
from ..harness.memory import storage_bytes
from .evidence import looked_at
from .pipeline_context import PipelineContext
from .requirements import not_installed
from .technique import Applied, Missing, Proof, Technique, row
from .weights import sum_of_bits

#: What quantisers leave on a module to say that it was quantised; a second one would refuse it.
_MARKS = ("quantization_config", "quantization_method")

#: Of weights that share a scale, and of rows that bitsandbytes arranges together for a CPU.
_NF4_BLOCK, _NF4_ROWS = 64, 32


def _quantised(
    quantise: Callable[[PipelineContext], None], is_done: Callable[[nn.Module], bool]
) -> Callable[[PipelineContext], Applied]:
    """The ``apply`` of a row.

    Args:
        quantise: Changes the context's denoiser in place.
        is_done: Whether a layer is as this library makes them.
    """

    def apply(context: PipelineContext) -> Applied:
        denoiser = context.denoiser
        whole_bytes = storage_bytes(denoiser)
        whole = {name: _Kept.of(layer) for name, layer in _layers(denoiser)}

        def undo() -> None:
            _put_back(
                context, {name: kept for name, kept in whole.items() if is_done(denoiser.get_submodule(name))}
            )

        def look() -> Proof:
            done = sum(is_done(denoiser.get_submodule(name)) for name in whole)
            share = storage_bytes(denoiser) / whole_bytes
            return Proof(
                done > 0, f"{done} of {len(whole)} layers in fewer bits; {share:.0%} of the bytes are left"
            )

        if context.is_kept:
            _check_way_back(context, whole)
        try:
            quantise(context)
        except BaseException:
            undo()
            raise
        return Applied(looked_at(look), undo)

    return apply


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is remembered of a layer: a tensor without content and a sum of bits for each of its parameters."""

    likes: dict[str, torch.Tensor]
    sums: dict[str, int]

    @classmethod
    def of(cls, layer: nn.Module) -> _Kept:
        parameters = dict(layer.named_parameters(recurse=False))
        return cls(
            # On the meta device a tensor keeps its shape, type and strides, and takes no memory.
            {
                name: torch.empty_like(p, device="meta", requires_grad=p.requires_grad)
                for name, p in parameters.items()
            },
            {name: sum_of_bits(p) for name, p in parameters.items()},
        )

    def check(self, name: str, layer: nn.Module | None, parameter: str) -> None:
        """Raises ModelUnavailable unless a parameter of a layer that was loaded anew is what it was here."""
        if (
            layer is not None
            and sum_of_bits(layer.get_parameter(parameter).to(self.likes[parameter].dtype))
            == (self.sums[parameter])
        ):
            return
        raise ModelUnavailable(
            f"{name}.{parameter}, loaded anew, is not the weight that this pipeline has",
            expected="weights as they came from the files, or quantising could not be undone",
            hint="save_pretrained, then from_pretrained: a part was replaced, or a LoRA merged into one",
        )

    def restored(self, name: str, layer: nn.Module, device: torch.device) -> nn.Module:
        """A layer that was loaded anew, with the dtype, strides and place that this one had."""
        for parameter, like in self.likes.items():
            self.check(name, layer, parameter)
            value = layer.get_parameter(parameter).detach().to(device, like.dtype)
            if value.stride() != like.stride():
                value = torch.empty_like(like, device=device).copy_(value)
            setattr(layer, parameter, nn.Parameter(value, requires_grad=like.requires_grad))
        return layer


def _layers(denoiser: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in denoiser.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            yield name, module


def _check_way_back(context: PipelineContext, layers: dict[str, _Kept]) -> None:
    anew = dict(_layers(_loaded_anew(context)))
    for name, kept in layers.items():
        for parameter in kept.likes:
            kept.check(name, anew.get(name), parameter)


def _put_back(context: PipelineContext, layers: dict[str, _Kept]) -> None:
    denoiser = context.denoiser
    if layers:
        anew = _loaded_anew(context)
        restored = {
            name: kept.restored(name, anew.get_submodule(name), context.device) for name, kept in layers.items()
        }
        for name, layer in restored.items():
            _replace(denoiser, name, layer.train(denoiser.training))
    for mark in _MARKS:
        vars(denoiser).pop(mark, None)


def _loaded_anew(context: PipelineContext) -> Any:
    others = [name for name, part in context.pipe.components.items() if isinstance(part, nn.Module)]
    others.remove("unet" if getattr(context.pipe, "unet", None) is not None else "transformer")
    pipe = context.reload(**dict.fromkeys(others))
    denoiser = pipe.unet if getattr(pipe, "unet", None) is not None else pipe.transformer
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
            _replace(
                denoiser, name, made.to(context.device).train(layer.training)
            )  # moving it is what quantises it


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


def _no_int4(context: PipelineContext) -> Missing | None:
    return not_installed("torchao", instead="quanto-int8") or not_installed(
        "mslk", instead="torchao-int8, or bitsandbytes-nf4 for four bits"
    )


def _no_torch_ao(context: PipelineContext) -> Missing | None:
    if not hasattr(torch.ao.quantization, "quantize_dynamic"):
        return Missing(
            "dead", f"torch {torch.__version__} has no torch.ao.quantization any more", "torchao-int8-dynamic"
        )
    if context.device.type != "cpu" or context.denoiser.dtype != torch.float32:
        saw = f"{str(context.denoiser.dtype).removeprefix('torch.')} on {context.device.type}"
        return Missing("unavailable", f"its kernels want float32 on a CPU, not {saw}", "torchao-int8-dynamic")
    return None


ROWS: tuple[Technique, ...] = (
    row("torchao-int8", _quantised(_torchao("Int8WeightOnlyConfig"), _weight_is("Int8Tensor"))),
    row(
        "torchao-int8-dynamic",
        _quantised(_torchao("Int8DynamicActivationInt8WeightConfig"), _weight_is("Int8Tensor", dynamic=True)),
    ),
    row("torchao-fp8", _quantised(_torchao("Float8WeightOnlyConfig"), _weight_is("Float8Tensor"))),
    row("torchao-int4", _quantised(_torchao("Int4WeightOnlyConfig"), _weight_is("Int4Tensor")), _no_int4),
    row(
        "bitsandbytes-int8",
        _quantised(_bitsandbytes_int8, _class_is("bitsandbytes.Linear8bitLt")),
    ),
    row(
        "bitsandbytes-nf4",
        _quantised(_bitsandbytes_nf4, _class_is("bitsandbytes.Linear4bit")),
    ),
    row(
        "quanto-int8",
        _quantised(_quanto, _class_is("optimum.QLinear", "optimum.QConv2d")),
    ),
    row("sdnq-int8", _quantised(_sdnq, _class_is("sdnq.SDNQLinear"))),
    row("torch-ao-dynamic", _quantised(_torch_ao, _is_packed), _no_torch_ao),
)
