"""Precision: half types, TF32, FP8 storage."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..harness.memory import storage_bytes
from .evidence import CallLog, counted
from .pipeline_context import PipelineContext, modules
from .technique import Change, Proof, Technique, Undo, Witness, row
from .weight_backup import WeightBackup, no_room_for
from .weights import restore, weights


def _half(dtype: torch.dtype) -> Change:
    name = str(dtype).removeprefix("torch.")

    def apply(context: PipelineContext, undo: Undo) -> Callable[[], Witness]:
        before, before_bytes = context.denoiser.dtype, storage_bytes(context.denoiser)
        _back_up(context, dtype, undo)
        context.pipe.to(dtype=dtype)

        def judge(log: CallLog) -> Proof:
            computed = set(log.dtypes) == {dtype}
            share = storage_bytes(context.denoiser) / before_bytes
            kept = f"was {str(before).removeprefix('torch.')} before, {share:.0%} of the bytes"
            calls = sum(seen == dtype for seen in log.dtypes)
            evidence = f"{calls} of {len(log)} forwards of the denoiser in {name}; {kept}"
            return Proof(computed and before != dtype, evidence)

        return counted(lambda: context.denoiser, judge)

    return apply


def _back_up(context: PipelineContext, dtype: torch.dtype, undo: Undo) -> None:
    """Keeps what is about to be rounded to ``dtype``, where that is wanted and there is room for it."""
    rounded = {
        part: {name: tensor for name, tensor in weights(module) if _is_rounded(tensor, dtype)}
        for part, module in modules(context.pipe).items()
    }
    every = [tensor for tensors in rounded.values() for tensor in tensors.values()]
    if not context.is_kept or no_room_for(context.folder, every):
        return
    backup = WeightBackup(context.folder)
    undo.by(backup.clear)
    read = {id(tensor): backup.save(tensor) for tensor in every}
    kept = {part: {name: read[id(tensor)] for name, tensor in tensors.items()} for part, tensors in rounded.items()}

    def put_back() -> None:
        for part, module in modules(context.pipe).items():
            restore(module, kept.get(part, {}), context.device)

    undo.by(put_back)


def _is_rounded(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    return tensor.is_floating_point() and tensor.dtype != dtype and tensor.device.type != "meta"


def _tf32(context: PipelineContext, undo: Undo) -> Callable[[], Witness]:
    # The older of two sets of names: torch 2.4 has no other, and reading one after setting the other raises.
    for flags in (torch.backends.cuda.matmul, torch.backends.cudnn):
        undo.set(flags, "allow_tf32", True)
    return counted(lambda: context.denoiser, lambda log: _judge_tf32(context.device, log))


def _judge_tf32(device: torch.device, log: CallLog) -> Proof:
    flags = f"the flags say {torch.backends.cuda.matmul.allow_tf32}"
    if torch.float32 not in log.dtypes:
        return Proof(False, f"{flags}, and nothing is computed in float32")
    if device.type != "cuda":
        return Proof(False, f"{flags}, and a {device.type} has no TF32")
    # 2⁻¹² is below TF32's ten bits of mantissa and within float32's 23.
    fine = torch.full((64, 64), 1 + 2**-12, device=device)
    lost = int((fine @ torch.eye(64, device=device) == 1).sum())
    return Proof(lost > 0, f"{flags}; {lost} of {fine.numel()} products lost the bits that TF32 does not have")


def _fp8_storage(context: PipelineContext, _: Undo) -> Callable[[], Witness]:
    module = context.denoiser
    before = storage_bytes(module)
    module.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=module.dtype)

    def judge(log: CallLog) -> Proof:
        stored = [parameter.dtype == torch.float8_e4m3fn for parameter in module.parameters()]
        share = storage_bytes(module) / before
        computed = ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in log.dtypes}))
        evidence = f"{sum(stored)} of {len(stored)} weights rest in float8, {share:.0%} of the bytes"
        return Proof(any(stored) and share < 1, f"{evidence}; computed in {computed}")

    # diffusers' hook has no way back: what was rounded is gone, and it refuses to be removed.
    return counted(lambda: module, judge)


ROWS: tuple[Technique, ...] = (
    row("fp16", _half(torch.float16)),
    row("bf16", _half(torch.bfloat16)),
    row("tf32", _tf32),
    row("fp8-storage", _fp8_storage),
)
