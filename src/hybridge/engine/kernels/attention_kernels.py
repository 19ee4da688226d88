"""Attention, compiled."""

from __future__ import annotations

import torch

from ..planning.conv_algorithms import K_BLOCK, queries_padded
from . import tensor_pointers
from .arguments import AttentionArgs, PackValuesArgs
from .gemm_kernels import GemmKernels
from .tensor_pointers import EITHER, FLOAT32, LANES

#: Bytes of one channel's values in a block of keys; four times KEY_BLOCK_WORDS in softmax.h.
_KEY_BLOCK_BYTES = 512


class AttentionKernels(GemmKernels):
    """Attention of one head."""

    def key_block(self, dtype: torch.dtype) -> int:
        """Keys of a block: their values are packed side by side for :meth:`attend`."""
        return _KEY_BLOCK_BYTES // dtype.itemsize

    def pack_values(self, rows: torch.Tensor, first: int, values: torch.Tensor) -> None:
        """Pack rows (n, C), float32, the values of positions from ``first`` on, into their places in ``values``.

        Args:
            rows: Contiguous.
            first: Position of the first row.
            values: (blocks, C, :meth:`key_block`), float32 or bfloat16; is written.
        """
        count, channels = rows.shape
        blocks, _, block = values.shape
        if not 0 <= first <= first + count <= blocks * block or channels % LANES:
            raise ValueError(f"no places for {list(rows.shape)} from {first} on in {list(values.shape)}")
        if not count:
            return
        self._library.pack_values(
            PackValuesArgs(
                rows=tensor_pointers.contiguous("the rows", rows, FLOAT32, count, channels),
                values=tensor_pointers.contiguous("the values", values, EITHER, blocks, channels, block),
                parallel=self._parallel,
                first=first,
                positions=count,
                channels=channels,
                key_block=block,
                values_are_bfloat16=values.dtype == torch.bfloat16,
                threads=torch.get_num_threads(),
            )
        )

    def attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        out: torch.Tensor,
        workspace: tuple[torch.Tensor, torch.Tensor],
        *,
        k_block: int = K_BLOCK,
    ) -> None:
        """``out = softmax(queries · keysᵀ / √C) · values``, for a dtype and channels that :meth:`multiplies` has.

        Args:
            queries: (n, C), float32.
            keys: (positions, C), float32 or bfloat16.
            values: From :meth:`pack_values`, of the same dtype; zeros beyond the last position.
            out: (n, C), float32; is written.
            workspace: Two float32 tensors, each as large as the queries with n rounded up by
                :func:`.queries_padded`; are written.
            k_block: As for :meth:`.GemmKernels.bmm`.
        """
        count, channels = queries.shape
        dtype, block = keys.dtype, self.key_block(keys.dtype)
        if not self.multiplies(dtype, channels):
            raise ValueError(f"no kernel here for attention in {dtype} with {channels} channels")
        padded = queries_padded(count) * channels
        blocks = -(-len(keys) // block)
        query_panels, accumulators = (part.view(-1)[:padded] for part in workspace)
        tensor_pointers.check_k_block(max(channels, block), k_block)
        contiguous = tensor_pointers.contiguous
        self._library.attention(
            AttentionArgs(
                queries=contiguous("the queries", queries, FLOAT32, count, channels),
                keys=contiguous("the keys", keys, (dtype,), len(keys), channels, in_words=True),
                values=contiguous("the values", values, (dtype,), blocks, channels, block, in_words=True),
                output=contiguous("the output", out, FLOAT32, count, channels),
                query_panels=contiguous("the workspace", query_panels, FLOAT32, padded),
                accumulators=contiguous("the workspace", accumulators, FLOAT32, padded),
                parallel=self._parallel,
                query_count=count,
                key_count=len(keys),
                channels=channels,
                k_block=k_block,
                scale=channels**-0.5,
                keys_are_bfloat16=dtype == torch.bfloat16,
                threads=torch.get_num_threads(),
            )
        )
