"""WireTensor ↔ torch.Tensor.  The only file of this room that knows torch."""

from __future__ import annotations

import torch

from ..errors import RequestError
from .tensor import ITEM_BYTES, WireTensor


def to_torch(tensor: WireTensor) -> torch.Tensor:
    """The same elements as a CPU tensor that owns its memory, in the sender's memory layout."""
    # torch wants writable memory, and the bytes of a request belong to the server: one copy.
    elements = torch.frombuffer(bytearray(tensor.data), dtype=getattr(torch, tensor.dtype)).reshape(tensor.shape)
    return elements.contiguous(memory_format=torch.channels_last) if tensor.channels_last else elements


def from_torch(tensor: torch.Tensor) -> WireTensor:
    """The elements of ``tensor``, from whatever device and in whatever memory layout, in C order.

    Of the layout, ``channels_last`` is kept.

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
    data = host.reshape(-1).view(torch.uint8).numpy().tobytes()
    return WireTensor(name, tuple(host.shape), data, channels_last=_is_channels_last(tensor))


def _is_channels_last(tensor: torch.Tensor) -> bool:
    """Whether torch's convolutions take this (B, C, H, W) for channels-last, be it a part of a larger tensor."""
    if tensor.ndim != 4 or tensor.is_contiguous():
        return False
    # "Like" keeps the order of the strides and closes their gaps; the meta device takes no memory for it.
    like = torch.empty_like(tensor, device="meta")
    return like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
