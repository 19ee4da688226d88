"""Matrix products of the compiled library, and what processors and channels there are products for."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..planning.conv_algorithms import K_BLOCK, PANEL_CHANNELS
from . import library, tensor_pointers
from .arguments import BatchedGemmArgs, BatchedGemmBlasArgs
from .tensor_pointers import EITHER, FLOAT32


class GemmKernels:
    """Matrix products.

    Args:
        found: The library.
    """

    def __init__(self, found: library.Library) -> None:
        self._library, self._parallel, self._sgemm = found.functions, found.parallel, found.sgemm
        # On this processor.
        self._multiplied = {dtype for dtype in EITHER if found.functions.has_gemm(dtype == torch.bfloat16)}

    def multiplies(self, dtype: torch.dtype, *channels: int) -> bool:
        """Whether there are matrix products for this processor, this dtype and so many channels."""
        return dtype in self._multiplied and not any(count % PANEL_CHANNELS for count in channels)

    def pack_filters(self, filters: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Filters (n, C, O) in the order in which :meth:`bmm` and :meth:`.ConvKernels.conv_winograd` read them.

        That is in panels of output channels, (n, panels, C, channels of a panel), and in bfloat16 with two input
        channels side by side.  Where torch or BLAS multiplies, the order stays.

        Args:
            filters: Of any dtype.
            dtype: Of the result, float32 or bfloat16.
        """
        _, in_channels, out_channels = filters.shape
        if not self.multiplies(dtype, in_channels, out_channels):
            return filters.to(dtype).contiguous()
        return to_panels(filters.to(dtype)).contiguous()

    def bmm(
        self, inputs: torch.Tensor, filters: torch.Tensor, out: torch.Tensor, *, k_block: int = K_BLOCK
    ) -> None:
        """``out = inputs · filters``: (n, positions, C) · (n, C, O) → (n, positions, O).

        All are contiguous.  Each thread takes some positions and channels, or a whole product with BLAS, and then
        the next.  torch's ``bmm`` divides products among threads beforehand, and waits for a thread that other work
        held up.

        Args:
            inputs: float32 or bfloat16.
            filters: Of the same dtype, from :meth:`pack_filters`.
            out: float32; is written.
            k_block: So many channels (in bfloat16: pairs of channels) are added one after another, and the sums of
                such blocks in pairs: smaller blocks take longer and round less.  BLAS ignores it.
        """
        batch, positions, in_channels = inputs.shape
        out_channels = out.shape[2]
        if filters.ndim == 3 and self._sgemm is None:
            torch.bmm(inputs, filters, out=out)
            return
        written = tensor_pointers.contiguous("the output", out, FLOAT32, batch, positions, out_channels)
        if filters.ndim == 3:
            tensor_pointers.check_ints(positions, in_channels, out_channels)
            self._library.batched_gemm_blas(
                BatchedGemmBlasArgs(
                    input=tensor_pointers.contiguous("the input", inputs, FLOAT32, batch, positions, in_channels),
                    filters=tensor_pointers.contiguous(
                        "the filters", filters, FLOAT32, batch, in_channels, out_channels
                    ),
                    output=written,
                    sgemm=self._sgemm,
                    parallel=self._parallel,
                    batch=batch,
                    positions=positions,
                    in_channels=in_channels,
                    out_channels=out_channels,
                    threads=torch.get_num_threads(),
                )
            )
            return
        tensor_pointers.check_k_block(in_channels, k_block)
        self._library.batched_gemm(
            BatchedGemmArgs(
                input=tensor_pointers.contiguous(
                    "the input", inputs, (filters.dtype,), batch, positions, in_channels, in_words=True
                ),
                filters=self._panels(filters, batch, in_channels, out_channels),
                output=written,
                parallel=self._parallel,
                batch=batch,
                positions=positions,
                in_channels=in_channels,
                out_channels=out_channels,
                k_block=k_block,
                input_is_bfloat16=filters.dtype == torch.bfloat16,
                threads=torch.get_num_threads(),
            )
        )

    def _panels(self, filters: torch.Tensor, count: int, depth: int, out_channels: int, *kernel: int) -> int:
        """Address of filters in panels.

        Args:
            filters: From :meth:`pack_filters`, or from :meth:`.ConvKernels.pack_direct_filters` with the rows of a
                kernel.
            count: How many matrices there are; with the rows of a kernel, how many panels.
            depth: Elements that one output is the sum of; with the rows of a kernel, those of a row.
            out_channels: Of a matrix; with the rows of a kernel, of a panel.
            kernel: Its rows.
        """
        dtype = filters.dtype
        if not self.multiplies(dtype, out_channels):
            raise TypeError(f"the filters: no kernel here for {dtype} and {out_channels} channels")
        panels = () if kernel else (out_channels // PANEL_CHANNELS,)
        pair = _word_elements(dtype)
        shape = count, *kernel, *panels, depth // pair, PANEL_CHANNELS, pair
        return tensor_pointers.contiguous("the filters", filters, (dtype,), *shape, in_words=True)


def to_panels(filters: torch.Tensor) -> torch.Tensor:
    """(n, C, O) → (n, panels, C, channels of a panel, 1); in bfloat16 the last axis has two of C."""
    count, in_channels, _ = filters.shape
    pair = _word_elements(filters.dtype)
    panels = filters.reshape(count, in_channels // pair, pair, -1, PANEL_CHANNELS)
    return panels.permute(0, 3, 1, 4, 2)


def pad_to_panels(filters: torch.Tensor, out_channels: int) -> torch.Tensor:
    """(…, out_channels), with zeros up to a whole panel."""
    return F.pad(filters, (0, -out_channels % PANEL_CHANNELS))


def _word_elements(dtype: torch.dtype) -> int:
    return 2 if dtype == torch.bfloat16 else 1
