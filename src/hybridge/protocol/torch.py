"""Convert WireTensor to and from torch.Tensor.  No other module of this package imports torch."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from ..errors import RequestError
from .tensor import ITEM_BYTES, WireTensor


def to_torch(tensor: WireTensor) -> torch.Tensor:
    """Return a CPU tensor with the same elements in its own memory, in the sender's memory layout."""
    # One copy, because torch needs writable memory, and the bytes of a request belong to the server.
    elements = torch.frombuffer(bytearray(tensor.data), dtype=getattr(torch, tensor.dtype)).reshape(tensor.shape)
    return elements.contiguous(memory_format=torch.channels_last) if tensor.channels_last else elements


def from_torch(tensor: torch.Tensor, dtypes: Collection[str] = ITEM_BYTES) -> WireTensor:
    """Copy ``tensor``, from any device and in any memory layout, to a wire tensor in C order.

    The flag ``channels_last`` records that layout.  float64 is rounded to float32.

    Args:
        tensor: The tensor.
        dtypes: The dtypes that may be sent: :data:`ITEM_BYTES` for latents and pixels,
            :data:`PROMPT_ITEM_BYTES` for text embeddings.

    Raises:
        RequestError: for any other dtype.
    """
    if tensor.dtype is torch.float64:
        tensor = tensor.float()
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in dtypes:
        raise RequestError(
            "this dtype cannot be sent",
            saw=name,
            expected="one of " + ", ".join(dtypes),
            hint="tensor.to(torch.float32)",
        )
    # Kept in a local variable until the bytes are copied.  diffusers' client since 0.39 frees the host copy of a
    # GPU tensor too early and reads freed memory.
    host = tensor.detach().cpu().contiguous()
    data = host.reshape(-1).view(torch.uint8).numpy().tobytes()
    return WireTensor(name, tuple(host.shape), data, channels_last=_is_channels_last(tensor))


def cast_floats(tensor: WireTensor, dtype: str) -> WireTensor:
    """The elements rounded to another floating dtype; whatever is no float stays as it is."""
    held = to_torch(tensor)
    return from_torch(held.to(getattr(torch, dtype))) if held.is_floating_point() else tensor


def saved(tensor: WireTensor) -> bytes:
    """What ``torch.save`` writes for one tensor on the CPU."""
    file = io.BytesIO()
    torch.save(to_torch(tensor), file)
    return file.getvalue()


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file that ``torch.save`` wrote, by name; a single tensor has the name "".

    No code is executed (``weights_only``).  Nested dictionaries are read, with dots between the names; an outer
    ``state_dict`` is omitted from the names.  Values that are neither tensors nor dictionaries are skipped.

    Raises:
        RequestError: when the file is damaged, or contains more than tensors and plain values.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise many types
        raise RequestError(
            f"{path} cannot be read as tensors",
            saw=f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}",
            expected="a file of tensors; pickled objects of other kinds are never loaded",
        ) from None
    found: dict[str, torch.Tensor] = {}
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    _collect("", loaded, found)
    return found


#: Most levels of nested dictionaries that are read.
_MOST_LEVELS = 4


def _collect(name: str, value: object, found: dict[str, torch.Tensor], level: int = 0) -> None:
    if isinstance(value, torch.Tensor):
        if value.layout is torch.strided and value.device.type == "cpu":
            found[name] = value.detach()
    elif isinstance(value, Mapping) and level < _MOST_LEVELS:
        for key, inner in value.items():
            _collect(f"{name}.{key}" if name else str(key), inner, found, level + 1)


def _is_channels_last(tensor: torch.Tensor) -> bool:
    """Return whether torch's convolutions treat this (B, C, H, W) as channels-last; it may be a view of a part."""
    if tensor.ndim != 4 or tensor.is_contiguous():
        return False
    # ``empty_like`` keeps the order of the strides without gaps; on the meta device it takes no memory.
    like = torch.empty_like(tensor, device="meta")
    return like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
