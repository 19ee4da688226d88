"""Copies of weights in files, bit for bit, for the way back of a technique that rounds them.

What was there need not be what the pipeline was loaded from: a VAE was replaced, a LoRA merged.  Memory would hold
both precisions at once, which halving the precision is meant to save.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from .facts import Missing
from .requirements import no_room

#: Kernels may take another path, and round otherwise, where memory is aligned otherwise.
_ALIGNED_BYTES = 64


class WeightBackup:
    """Tensors in files of a folder of their own, which goes with the context's."""

    def __init__(self, folder: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="backup-", dir=folder))
        self._count = 0

    def save(self, tensor: torch.Tensor) -> Callable[[torch.device], torch.Tensor]:
        """Writes a tensor; what is returned reads it back, with its dtype, strides and alignment, onto a device.

        Raises:
            OSError: when the disk is full.
        """
        path = self._folder / str(self._count)
        self._count += 1
        # Channels-last and the like: written as they lie in memory.
        order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
        dense = tensor.detach().cpu().permute(order).contiguous()
        dtype, shape, offset = tensor.dtype, dense.shape, tensor.data_ptr() % _ALIGNED_BYTES
        with path.open("wb") as file:
            file.write(_buffer(dense.reshape(-1).view(torch.uint8)))

        def read(device: torch.device) -> torch.Tensor:
            count = shape.numel() * dtype.itemsize
            memory = torch.empty(count + _ALIGNED_BYTES, dtype=torch.uint8)
            begin = (offset - memory.data_ptr()) % _ALIGNED_BYTES
            with path.open("rb") as file:
                file.readinto(_buffer(memory[begin : begin + count]))
            there = memory[begin : begin + count].view(dtype).view(shape)
            inverse = [order.index(axis) for axis in range(len(order))]
            return there.permute(inverse).to(device)

        return read

    def clear(self) -> None:
        """Removes the files."""
        for path in self._folder.iterdir():
            path.unlink()
        self._folder.rmdir()


def no_room_for(folder: Path, tensors: Iterable[torch.Tensor]) -> Missing | None:
    """What to say where the disk cannot take these tensors; None where it can."""
    return no_room(folder, sum(tensor.numel() * tensor.itemsize for tensor in tensors))


def _buffer(memory: torch.Tensor) -> Any:
    return memory.numpy()
