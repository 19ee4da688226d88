"""Self-attention, one strip of queries at a time: it stores keys and values, and computes the queries' results."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F

from ..kernels.compiled import CompiledKernels, compiled_for
from ..memory.arena import Scratch
from ..planning.conv_algorithms import DeviceProfile
from ..program.ops import Attend


def begin(op: Attend, arithmetic: DeviceProfile, scratch: Scratch, positions: int) -> Attention:
    """Allocate memory for the keys and values of this many positions."""
    channels = op.query.out_channels
    dtype = torch.bfloat16 if arithmetic.attended_bytes(op) < scratch.like.itemsize else scratch.like.dtype
    compiled = compiled_for(scratch.like, channels)
    if compiled and op.heads == 1 and compiled.multiplies(dtype, channels):
        return _CompiledAttention(compiled, channels, dtype, scratch, positions, arithmetic.k_block)
    return _TorchAttention(op, scratch, positions)


class Attention(ABC):
    """One run of softmax(queries · keysᵀ / √d) · values over the positions whose keys and values are known.

    Attributes:
        keys: Memory for the keys, (positions, C), of any dtype; the caller writes it.
    """

    keys: torch.Tensor

    @abstractmethod
    def keep_values(self, first: int, values: torch.Tensor) -> None:
        """Store the values of positions from ``first`` on, (n, C), contiguous; positions come in rising order."""

    @abstractmethod
    def attend(
        self, queries: torch.Tensor, out: torch.Tensor, seen: int, spare: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        """Compute the result of each query.

        Args:
            queries: (n, C), contiguous.
            out: (n, C), contiguous; the result is written here.
            seen: Number of positions that are attended to, from the first on.
            spare: Two pieces of memory, each as large as the queries with n rounded up by :func:`.queries_padded`;
                both are overwritten.
        """


class _TorchAttention(Attention):
    def __init__(self, op: Attend, scratch: Scratch, positions: int) -> None:
        self._heads = op.heads
        self.keys, self._values = (scratch.take(positions, layer.out_channels) for layer in (op.key, op.value))

    def keep_values(self, first: int, values: torch.Tensor) -> None:
        self._values[first : first + len(values)] = values

    def attend(
        self, queries: torch.Tensor, out: torch.Tensor, seen: int, spare: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        query, keys, values = (
            tokens.view(1, len(tokens), self._heads, -1).transpose(1, 2)
            for tokens in (queries, self.keys[:seen], self._values[:seen])
        )
        mixed = F.scaled_dot_product_attention(query, keys, values)
        out.view(mixed.transpose(1, 2).shape).copy_(mixed.transpose(1, 2))


class _CompiledAttention(Attention):
    """Attention with one head, in compiled loops."""

    def __init__(
        self,
        compiled: CompiledKernels,
        channels: int,
        dtype: torch.dtype,
        scratch: Scratch,
        positions: int,
        k_block: int,
    ) -> None:
        self._compiled, self._k_block = compiled, k_block
        block = compiled.key_block(dtype)
        blocks = -(-positions // block)
        narrower = scratch.like.itemsize // dtype.itemsize
        self.keys = scratch.take(positions, channels // narrower).view(dtype)
        self._values = scratch.take(blocks, channels, block // narrower).view(dtype)
        self._block = block

    def keep_values(self, first: int, values: torch.Tensor) -> None:
        last = (first + len(values) - 1) // self._block
        if first <= last * self._block:  # what follows the last position within its block is multiplied by zeros
            self._values[last].zero_()
        self._compiled.pack_values(values, first, self._values)

    def attend(
        self, queries: torch.Tensor, out: torch.Tensor, seen: int, spare: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        values = self._values[: -(-seen // self._block)]
        self._compiled.attend(queries, self.keys[:seen], values, out, spare, k_block=self._k_block)
