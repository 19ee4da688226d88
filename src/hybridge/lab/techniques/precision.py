"""Precision: half types, TF32, FP8 storage."""

from __future__ import annotations

import weakref

import torch

from ...errors import RequestError
from ..harness.memory import storage_bytes
from .evidence import CallLog, counted
from .pipeline_context import PipelineContext, modules
from .requirements import no_room
from .technique import UNDO_LATER, Proof, Undo, Watch
from .weights import WeightBackup, restore, weights


def half(context: PipelineContext, undo: Undo, dtype: str) -> Watch:
    """Every part in a half precision; see :func:`_back_up` for the way back."""
    wanted: torch.dtype = getattr(torch, dtype)
    before, before_bytes = context.denoiser.dtype, storage_bytes(context.denoiser)
    _back_up(context, wanted, undo)
    context.pipe.to(dtype=wanted)

    def judge(log: CallLog) -> Proof:
        share = storage_bytes(context.denoiser) / before_bytes
        kept = f"was {str(before).removeprefix('torch.')} before, {share:.0%} of the bytes"
        evidence = f"{log.dtypes.count(wanted)} of {len(log)} forwards of the denoiser in {dtype}; {kept}"
        return Proof(set(log.dtypes) == {wanted} and before != wanted, evidence)

    return counted(lambda: context.denoiser, judge)


def _back_up(context: PipelineContext, dtype: torch.dtype, undo: Undo) -> None:
    """Keeps what is about to be rounded to ``dtype``, where that is wanted and there is room for it."""
    rounded = [
        (module, {name: tensor for name, tensor in weights(module) if _is_rounded(tensor, dtype)})
        for module in modules(context.pipe).values()
    ]
    every = [tensor for _, tensors in rounded for tensor in tensors.values()]
    if not context.is_kept or no_room(context.folder, sum(tensor.nbytes for tensor in every)):
        return
    backup = WeightBackup(context.folder)
    undo.by(backup.clear)
    read = {id(tensor): backup.save(tensor) for tensor in every}
    # By module and not by the part's name: a part that was replaced since is somebody else's.
    kept = [
        (weakref.ref(module), {name: read[id(tensor)] for name, tensor in tensors.items()})
        for module, tensors in rounded
    ]

    def put_back() -> None:
        if context.denoiser.dtype != dtype:
            now = str(context.denoiser.dtype).removeprefix("torch.")
            raise RequestError("the weights have been converted again since", saw=now, hint=UNDO_LATER)
        for reference, tensors in kept:
            if (module := reference()) is not None:
                restore(module, tensors, context.device)

    undo.by(put_back)


def _is_rounded(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    return tensor.is_floating_point() and tensor.dtype != dtype and tensor.device.type != "meta"


def tf32(context: PipelineContext, undo: Undo) -> Watch:
    """TensorFloat-32 in matrix products and in cuDNN."""
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


def fp8_storage(context: PipelineContext, _: Undo) -> Watch:
    """Layerwise casting of diffusers, whose hook has no way back: it refuses to be removed."""
    module = context.denoiser
    before = storage_bytes(module)
    module.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=module.dtype)

    def judge(log: CallLog) -> Proof:
        stored = [parameter.dtype == torch.float8_e4m3fn for parameter in module.parameters()]
        share = storage_bytes(module) / before
        computed = ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in log.dtypes}))
        evidence = f"{sum(stored)} of {len(stored)} weights rest in float8, {share:.0%} of the bytes"
        return Proof(any(stored) and share < 1, f"{evidence}; computed in {computed}")

    return counted(lambda: module, judge)
