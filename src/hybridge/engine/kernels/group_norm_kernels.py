"""The two halves of a group norm, compiled."""

from __future__ import annotations

import torch

from . import tensor_pointers
from .arguments import ChannelMomentsArgs, ScaleShiftSiluArgs
from .gemm_kernels import GemmKernels
from .tensor_pointers import EITHER, FLOAT32, OutputMoments

#: The results must not depend on torch's default device, which other code may set at any time.
_CPU = torch.device("cpu")


class GroupNormKernels(GemmKernels):
    """Statistics of channels, and scale, shift and SiLU."""

    def scale_shift_silu(
        self, rows: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, output: torch.Tensor
    ) -> None:
        """``output = silu(scale · rows + shift)``, silu(x) = x / (1 + exp(-x)); both (1, C, n, W), channels-last.

        Args:
            rows: float32 or bfloat16.
            scale: (C,), float32.
            shift: (C,), float32.
            output: float32 or bfloat16; is written.
        """
        _, channels, count, width = rows.shape
        size = channels, count, width
        if output.shape != rows.shape:
            raise ValueError(f"the output is {list(output.shape)}, and the rows are {list(rows.shape)}")
        self._library.scale_shift_silu(
            ScaleShiftSiluArgs(
                input=tensor_pointers.image("the rows", rows, EITHER, *size),
                scale=tensor_pointers.contiguous("the scale", scale, FLOAT32, channels),
                shift=tensor_pointers.contiguous("the shift", shift, FLOAT32, channels),
                output=tensor_pointers.image("the output", output, EITHER, *size, is_written=True),
                parallel=self._parallel,
                input_row_stride=rows.stride(2),
                output_row_stride=output.stride(2),
                rows=count,
                columns=width,
                channels=channels,
                input_is_bfloat16=rows.dtype == torch.bfloat16,
                output_is_bfloat16=output.dtype == torch.bfloat16,
                threads=torch.get_num_threads(),
            )
        )

    def channel_moments(self, rows: torch.Tensor, row_block: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and biased variance of every channel in each block of rows: (blocks, C), float32.

        Args:
            rows: (1, C, n, W), channels-last, float32 or bfloat16.
            row_block: Rows of a block; the last block may have fewer.
        """
        _, channels, count, width = rows.shape
        tensor_pointers.check_positive(row_block=row_block)
        shape = -(-count // row_block), channels
        means, variances = (torch.empty(shape, dtype=torch.float32, device=_CPU) for _ in range(2))
        self._library.channel_moments(
            ChannelMomentsArgs(
                input=tensor_pointers.image("the rows", rows, EITHER, channels, count, width),
                means=tensor_pointers.contiguous("the means", means, FLOAT32, *shape),
                variances=tensor_pointers.contiguous("the variances", variances, FLOAT32, *shape),
                parallel=self._parallel,
                input_row_stride=rows.stride(2),
                rows=count,
                columns=width,
                channels=channels,
                row_block=row_block,
                input_is_bfloat16=rows.dtype == torch.bfloat16,
                threads=torch.get_num_threads(),
            )
        )
        return means, variances

    def places_of_moments(self, output: torch.Tensor, row_block: int) -> OutputMoments:
        """Return memory for the moments of an output (1, O, n, W), which a convolution then writes."""
        shape = -(-output.shape[2] // row_block), output.shape[1]
        means, variances = (torch.empty(shape, dtype=torch.float32, device=_CPU) for _ in range(2))
        written = torch.zeros(shape[:1], dtype=torch.int64, device=_CPU)
        return OutputMoments(means, variances, written, row_block)
