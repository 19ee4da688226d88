"""The 1×1 convolution of a residual."""

from __future__ import annotations

import torch

from ..kernels.compiled import compiled_for
from ..planning.conv_algorithms import K_BLOCK
from .tiles import positions


class Shortcut:
    """A 1×1 convolution on a residual.

    Args:
        weight: (O, I, 1, 1), in the dtype to compute in.
        in_bfloat16: Whether it is multiplied by rows in bfloat16.
        k_block: See :meth:`.CompiledKernels.bmm`.

    Attributes:
        dtype: The dtype of its input rows.
    """

    def __init__(self, weight: torch.Tensor, *, in_bfloat16: bool = False, k_block: int = K_BLOCK) -> None:
        self._k_block = k_block
        kernel = weight.flatten(1).T.contiguous()
        self.dtype = torch.bfloat16 if in_bfloat16 else weight.dtype
        compiled = compiled_for(kernel, *kernel.shape)
        self._compiled = compiled if compiled and compiled.multiplies(self.dtype, *kernel.shape) else None
        self._kernel = self._compiled.pack_filters(kernel[None], self.dtype) if self._compiled else kernel

    def multiply(self, rows: torch.Tensor, out: torch.Tensor) -> None:
        """Multiply rows (1, I, n, W) into ``out``, (1, O, n, W), both channels-last, without allocating memory."""
        if self._compiled:
            self._compiled.bmm(positions(rows)[None], self._kernel, positions(out)[None], k_block=self._k_block)
        else:
            torch.mm(positions(rows), self._kernel, out=positions(out))
