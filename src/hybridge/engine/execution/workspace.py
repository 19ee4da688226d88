"""A convolution with prepared weights, and the memory of one run of it: what every algorithm has."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from ..kernels.tensor_pointers import OutputMoments
from ..memory.arena import Scratch
from ..planning.conv_algorithms import K_BLOCK, ConvAlgorithm
from ..program.ops import Convolve

_BFLOAT16 = torch.bfloat16


class Workspace(ABC):
    """The memory of one run of a convolution.

    Attributes:
        window: (1, C, rows, columns), channels-last: padded source rows.
        inside: The part of it that holds the source's columns.
        adds: Whether it can write half-precision rows, add other rows to its result, and measure what it writes.
    """

    adds = False

    def __init__(self, op: Convolve, way: ConvAlgorithm, scratch: Scratch, rows: int, width: int) -> None:
        high, wide = way.window(op, rows, width)
        left, right = way.side_columns(op.padding)
        channels = op.weights.in_channels // way.narrower
        memory = scratch.take(1, high, wide, channels).view(_BFLOAT16 if way.narrower > 1 else scratch.like.dtype)
        self.window = memory.permute(0, 3, 1, 2)
        self.window[..., :left].zero_()
        self.window[..., left + width :].zero_()
        self.inside = self.window[..., left : left + width]
        self._outside = op.padding.outside
        self._sides = self.window[..., :left], self.window[..., left + width : left + width + right]
        self._scratch = scratch
        self._made: torch.Tensor | None = None

    def _result(self, out: torch.Tensor | None, channels: int, rows: int, width: int) -> torch.Tensor:
        """Return ``out`` if it can be written to, else the workspace's own memory, allocated on first use."""
        shape = (1, channels, rows, width)
        alike = out is not None and (out.dtype, out.device) == (self._scratch.like.dtype, self.window.device)
        if out is not None and alike and out.shape == shape:
            return out
        if self._made is None:  # the first strip is the largest
            self._made = self._scratch.picture(channels, rows, width)
        return self._made[:, :, :rows]

    def pad(self, start: int, fresh: int, stop: int, height: int) -> None:
        """Pad rows [fresh, stop) of a source of this height; the window begins with row ``start``."""
        inside, outside = max(fresh, 0), max(min(stop, height), fresh, 0)
        above, below = slice(fresh - start, inside - start), slice(outside - start, stop - start)
        if self._outside == "zeros":  # and so are the columns, always
            self.window[:, :, above].zero_()
            self.window[:, :, below].zero_()
            return
        further = 1 if self._outside == "reflected" else 0
        if fresh < inside:
            self.inside[:, :, above] = self.inside[:, :, further - start, None]
        if outside < stop:
            self.inside[:, :, below] = self.inside[:, :, height - 1 - further - start, None]
        rows = slice(fresh - start, stop - start)
        for side, column in zip(self._sides, (further, -1 - further), strict=True):
            side[:, :, rows] = self.inside[:, :, rows, column, None]

    @abstractmethod
    def convolve(
        self,
        rows: int,
        out: torch.Tensor | None,
        added: torch.Tensor | None = None,
        moments: OutputMoments | None = None,
    ) -> torch.Tensor:
        """Compute (1, O, rows, W) from the window, in ``out`` or in memory that the next strip overwrites.

        Args:
            rows: Number of target rows.
            out: Memory where they may be written.
            added: Rows that are added to the result; may be ``out`` itself.  Only where :attr:`adds`.
            moments: Where the result's moments are written.  Only where :attr:`adds`, and with ``out`` in a layout
                that kernels support.
        """


class Convolution(ABC):
    """A convolution with prepared weights: ``weight`` has the layout that the algorithm needs."""

    #: See :meth:`.CompiledKernels.bmm`.
    k_block = K_BLOCK

    def __init__(self, op: Convolve, way: ConvAlgorithm, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.op, self.way, self.weight, self.bias = op, way, weight, bias

    @abstractmethod
    def begin(self, scratch: Scratch, rows: int, width: int) -> Workspace:
        """Allocate a workspace for up to ``rows`` target rows; ``width`` is the source's."""
