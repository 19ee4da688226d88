"""The engine's options, and the automatic choices for options that are not set.

Every automatic choice is a :class:`Choice`: a value and its reason, which the log and ``/v1/models`` show.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar, get_args

import torch

from ..errors import EngineFailure
from ..models import ModelSpec
from .machine.cgroups import available_bytes, granted_bytes

Value = TypeVar("Value")

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]

#: How close to the plain forward: the same bits, or equal within rounding.
Exactness = Literal["bitwise", "rounding"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Options that the user may set.

    Attributes:
        device: ``auto`` or the name of any torch device.
        dtype: ``auto`` or the name of a floating dtype.
        exactness: ``rounding`` allows the engine to run in strips, which is faster and takes less memory;
            ``bitwise`` runs diffusers' own forward, unchanged.
        spill: Folder to which a CPU may spill activations that do not fit in memory; None to never use the disk.
    """

    device: str = "auto"
    dtype: DtypeName = "auto"
    exactness: Exactness = "rounding"
    spill: Path | None = None


@dataclass(frozen=True, slots=True)
class Choice(Generic[Value]):
    """A chosen value and the reason for it."""

    value: Value
    reason: str


def choose_device(asked: str) -> Choice[torch.device]:
    """Return the device to run on.

    Raises:
        EngineFailure: when the requested device does not exist.
    """
    if asked == "auto":
        if torch.cuda.is_available():
            return Choice(torch.device("cuda"), f"found {torch.cuda.get_device_name()}")
        if torch.backends.mps.is_available():
            return Choice(torch.device("mps"), "found Apple's GPU")
        return Choice(torch.device("cpu"), "no GPU found")
    try:
        device = torch.device(asked)
        torch.empty(1, dtype=torch.float32, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EngineFailure(
            f"device {asked!r} cannot be used", saw=str(error).splitlines()[0], hint="--device auto, or cpu"
        ) from None
    return Choice(device, "asked for")


#: Part of the memory granted to the process; the rest is for request bodies, responses and libraries.
_GRANTED_PART = 3 / 4


def granted_memory(device: str) -> int | None:
    """Return the memory for weights and runs on a CPU if a container, a service or ``ulimit`` bounds the process.

    Args:
        device: The requested device; a GPU has its own memory.

    Returns:
        Bytes, at least 1; None for another device, and when nothing bounds the process.
    """
    if choose_device(device).value.type != "cpu":
        return None
    granted = granted_bytes()
    return None if granted is None else max(1, int(granted * _GRANTED_PART))


#: Part of the host's available memory in which weights may wait that left an accelerator.
_OFFLOAD_PART = 1 / 2


def offload_memory(device: str) -> int:
    """Return the host memory for weights that leave an accelerator to make room.

    Args:
        device: The requested device.

    Returns:
        Bytes; 0 for a CPU and for Apple's GPUs, whose memory is the host's.
    """
    if choose_device(device).value.type in ("cpu", "mps"):
        return 0
    return int((available_bytes() or 0) * _OFFLOAD_PART)


def choose_dtype(asked: DtypeName, spec: ModelSpec, device: torch.device) -> Choice[torch.dtype]:
    """Return the precision to run in.

    On a GPU it is the half precision that the model's weights support: half the memory, and more than twice the
    speed.  On a CPU it is float32: float16 convolutions are an order of magnitude slower there, and bfloat16 is
    faster only with AVX-512-BF16 or AMX and causes visible rounding (2e-2 relative), so the user must request it.

    Raises:
        EngineFailure: for an unknown dtype, and for float16 with weights that overflow it.
    """
    if asked not in get_args(DtypeName):
        raise EngineFailure(f"unknown dtype {asked!r}", expected="one of " + ", ".join(get_args(DtypeName)))
    if asked == "float16" and spec.half is None:
        raise EngineFailure(
            f"{spec.name} does not survive float16", saw=spec.half_reason, hint="--dtype bfloat16 or float32"
        )
    if asked != "auto":
        return Choice(getattr(torch, asked), "asked for")
    if device.type == "cpu":
        return Choice(torch.float32, "exact; bfloat16 is faster on CPUs that have it, and must be asked for")
    if spec.half is None:
        return Choice(torch.float32, spec.half_reason)
    if spec.half == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return Choice(torch.float32, "this GPU has no bfloat16")
    return Choice(getattr(torch, spec.half), spec.half_reason)
