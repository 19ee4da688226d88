"""The compiled loops of attention, and which numbers there are products for; :mod:`.compiled` adds the others."""

from __future__ import annotations

import torch

from ..planning.conv_algorithms import ADDED_AT_ONCE, CHANNELS_TOGETHER, queries_padded
from . import library, tensor_pointers
from .tensor_pointers import EITHER, FLOAT32, LANES

#: Values that attention keeps side by side, as bytes of a channel; see DEEP in softmax.h.
_BLOCK_BYTES = 512


class AttentionLoops:
    """The library's functions for attention.

    Args:
        found: The library.
    """

    def __init__(self, found: library.Library) -> None:
        self._library, self._parallel, self._sgemm = found.functions, found.parallel, found.sgemm
        # On this processor.
        self._multiplied = {dtype for dtype in EITHER if found.functions.multiplies(dtype == torch.bfloat16)}

    def multiplies(self, dtype: torch.dtype, *channels: int) -> bool:
        """Whether there are loops of products for this processor, such numbers and so many channels."""
        return dtype in self._multiplied and not any(count % CHANNELS_TOGETHER for count in channels)

    def values_in_a_block(self, dtype: torch.dtype) -> int:
        """Positions whose values :meth:`attend` reads side by side."""
        return _BLOCK_BYTES // dtype.itemsize

    def put_values(self, rows: torch.Tensor, first: int, values: torch.Tensor) -> None:
        """Rows (n, C), float32, of positions from ``first`` on, to their places in ``values``.

        Args:
            rows: Contiguous.
            first: Position of the first row.
            values: (blocks, C, :meth:`values_in_a_block`), float32 or bfloat16; is written.
        """
        count, channels = rows.shape
        blocks, _, block = values.shape
        if not 0 <= first <= first + count <= blocks * block or channels % LANES:
            raise ValueError(f"no places for {list(rows.shape)} from {first} on in {list(values.shape)}")
        if not count:
            return
        self._library.put_values(
            tensor_pointers.of_numbers("the rows", rows, FLOAT32, count, channels),
            tensor_pointers.of_numbers("the values", values, EITHER, blocks, channels, block),
            first, count, channels, block,
            values.dtype == torch.bfloat16, self._parallel, torch.get_num_threads(),
        )  # fmt: skip

    def attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        out: torch.Tensor,
        memory: tuple[torch.Tensor, torch.Tensor],
        *,
        added_at_once: int = ADDED_AT_ONCE,
    ) -> None:
        """``out = softmax(queries · keysᵀ / √C) · values``, of numbers that :meth:`multiplies` knows.

        Args:
            queries: (n, C), float32.
            keys: (positions, C), float32 or bfloat16.
            values: From :meth:`put_values`, of the same dtype; zeros where there is no position.
            out: (n, C), float32; is written.
            memory: Twice for as many float32 numbers, n rounded up by :func:`.queries_padded`; is written.
            added_at_once: As for :meth:`.Compiled.multiply`.
        """
        count, channels = queries.shape
        dtype, block = keys.dtype, self.values_in_a_block(keys.dtype)
        if not self.multiplies(dtype, channels):
            raise ValueError(f"no loops here for attention in {dtype} with {channels} channels")
        padded = queries_padded(count) * channels
        blocks = -(-len(keys) // block)
        panels, mixed = (part.view(-1)[:padded] for part in memory)
        tensor_pointers.check_sums(max(channels, block), added_at_once)
        self._library.attend(
            tensor_pointers.of_numbers("the queries", queries, FLOAT32, count, channels),
            tensor_pointers.of_numbers("the keys", keys, (dtype,), len(keys), channels, in_words=True),
            tensor_pointers.of_numbers("the values", values, (dtype,), blocks, channels, block, in_words=True),
            tensor_pointers.of_numbers("what is made", out, FLOAT32, count, channels),
            tensor_pointers.of_numbers("the memory", panels, FLOAT32, padded),
            tensor_pointers.of_numbers("the memory", mixed, FLOAT32, padded),
            count, len(keys), channels, added_at_once, channels**-0.5,
            keys.dtype == torch.bfloat16, self._parallel, torch.get_num_threads(),
        )  # fmt: skip
