"""WireTensor ↔ torch.Tensor.  The only file of this room that knows torch."""

from __future__ import annotations

import torch

from ..errors import RequestError
from .tensor import ITEM_BYTES, WireTensor


def to_torch(tensor: WireTensor) -> torch.Tensor:
    """The same elements as a CPU tensor that owns its memory."""
    # torch wants writable memory, and the bytes of a request belong to the server: one copy.
    return torch.frombuffer(bytearray(tensor.data), dtype=getattr(torch, tensor.dtype)).reshape(tensor.shape)


def from_torch(tensor: torch.Tensor) -> WireTensor:
    """The elements of ``tensor``, from whatever device and in whatever memory layout, in C order.

    Raises:
        RequestError: for a dtype that the wire does not have.
    """
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in ITEM_BYTES:
        raise RequestError(
            "this dtype cannot be sent",
            saw=name,
            expected="one of " + ", ".join(ITEM_BYTES),
            hint="tensor.to(torch.float32)",
        )
    # Held in a local until the bytes are copied.  diffusers' client since 0.39 lets the host copy of a GPU
    # tensor go first and reads freed memory.
    host = tensor.detach().cpu().contiguous()
    return WireTensor(name, tuple(host.shape), host.reshape(-1).view(torch.uint8).numpy().tobytes())
