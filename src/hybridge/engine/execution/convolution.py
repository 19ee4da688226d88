"""Convolutions, each with its planned algorithm.

A convolution is prepared once for its weights.  For each run, :meth:`Convolution.begin` gives it a
:class:`Workspace`: the window that source rows are written to, and what the algorithm needs beside it.  Both are
allocated once and used by every strip.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..kernels.compiled import CompiledKernels, compiled_for, supports_layout
from ..kernels.tensor_pointers import OutputMoments
from ..memory.arena import Scratch
from ..planning.conv_algorithms import K_BLOCK, ConvAlgorithm
from ..program.ops import Convolve
from .tiles import TileViews, combine, phase_kernels, positions, strided, view
from .workspace import Convolution, Workspace

_BFLOAT16 = torch.bfloat16


def prepare(
    op: Convolve,
    way: ConvAlgorithm,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    k_block: int = K_BLOCK,
) -> Convolution:
    """Return an op's convolution with its weights prepared.

    Args:
        op: The op.
        way: How it is computed.
        weight: (O, I, k, k), in the dtype to compute in.
        bias: (O,), in the dtype to compute in, or None.
        k_block: See :meth:`.CompiledKernels.bmm`.
    """
    kinds: dict[str, type[Convolution]] = {
        "direct": Direct,
        "four-phases": FourPhases,
        "winograd": Transformed,
        "nine-products": Transformed,
        "halved": Transformed,
        "gathered": Gathered,
        "dots": Dots,
        "taps": Taps,
    }
    made = kinds[way.kind](op, way, weight, bias)
    made.k_block = k_block
    return made


class Direct(Convolution):
    """torch's own convolution; of some channels after others, where the plan wants shorter sums."""

    def __init__(self, op: Convolve, way: ConvAlgorithm, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(op, way, weight, bias)
        self.parts = [(slice(None), weight)]
        if way.inputs:
            firsts = range(0, weight.shape[1], way.inputs)
            some = (slice(first, first + way.inputs) for first in firsts)
            self.parts = [(channels, weight[:, channels].contiguous()) for channels in some]

    def begin(self, scratch: Scratch, rows: int, width: int) -> Workspace:
        return _DirectWorkspace(self, scratch, rows, width)


class _DirectWorkspace(Workspace):
    def __init__(self, conv: Direct, scratch: Scratch, rows: int, width: int) -> None:
        super().__init__(conv.op, conv.way, scratch, rows, width)
        self._conv = conv
        in_window = conv.way.side_columns(conv.op.padding) == (conv.op.padding.left, conv.op.padding.right)
        self._padding = (0, 0 if in_window else conv.op.padding.left)

    def convolve(
        self,
        rows: int,
        out: torch.Tensor | None,
        added: torch.Tensor | None = None,
        moments: OutputMoments | None = None,
    ) -> torch.Tensor:
        conv = self._conv
        first, end = conv.op.rows_read(0, rows)
        window, op = self.window[:, :, : end - first], conv.op
        made, bias = None, conv.bias
        for channels, weight in conv.parts:
            part = F.conv2d(window[:, channels], weight, bias, op.stride, self._padding, groups=op.weights.groups)
            made, bias = part if made is None else made.add_(part), None
        if made is None:
            raise TypeError("a convolution of no channels")
        return made


class Taps(Convolution):
    """A direct convolution in our own loops, in float32 or bfloat16, added in float32."""

    def __init__(self, op: Convolve, way: ConvAlgorithm, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        compiled = compiled_for(weight, op.weights.in_channels, op.weights.out_channels)
        if compiled is None:
            raise TypeError(f"{way} is for compiled loops")
        self.compiled = compiled
        super().__init__(
            op,
            way,
            compiled.pack_direct_filters(weight, _BFLOAT16 if way.in_bfloat16 else weight.dtype),
            bias,
        )

    def begin(self, scratch: Scratch, rows: int, width: int) -> Workspace:
        return _TapsWorkspace(self, scratch, rows, width)


class _TapsWorkspace(Workspace):
    adds = True

    def __init__(self, conv: Taps, scratch: Scratch, rows: int, width: int) -> None:
        super().__init__(conv.op, conv.way, scratch, rows, width)
        self._conv, self._columns = conv, conv.op.output_size(rows, width)[1]

    def convolve(
        self,
        rows: int,
        out: torch.Tensor | None,
        added: torch.Tensor | None = None,
        moments: OutputMoments | None = None,
    ) -> torch.Tensor:
        conv = self._conv
        if out is None or not supports_layout(out):  # a program's final output has another memory layout
            out = self._result(None, conv.op.weights.out_channels, rows, self._columns)
        ends = conv.bias, added, out
        conv.compiled.conv_direct(
            self.window, conv.weight, *ends, conv.op.stride, k_block=conv.k_block, moments=moments
        )
        return out


class Dots(Convolution):
    """A convolution with few output channels: one dot product for each output."""

    def __init__(self, op: Convolve, way: ConvAlgorithm, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.compiled = compiled_for(weight, op.weights.in_channels)
        if self.compiled:
            weight = weight.permute(2, 0, 3, 1).flatten(2).contiguous()  # (k, O, k·I)
        super().__init__(op, way, weight, bias)

    def begin(self, scratch: Scratch, rows: int, width: int) -> Workspace:
        return _DotsWorkspace(self, scratch, rows, width)


class _DotsWorkspace(Workspace):
    def __init__(self, conv: Dots, scratch: Scratch, rows: int, width: int) -> None:
        super().__init__(conv.op, conv.way, scratch, rows, width)
        self._conv, self._columns = conv, conv.op.output_size(rows, width)[1]

    def convolve(
        self,
        rows: int,
        out: torch.Tensor | None,
        added: torch.Tensor | None = None,
        moments: OutputMoments | None = None,
    ) -> torch.Tensor:
        conv, op = self._conv, self._conv.op
        if conv.compiled is None:
            first, end = op.rows_read(0, rows)
            return F.conv2d(self.window[:, :, : end - first], conv.weight, conv.bias, op.stride)
        made = self._result(out, op.weights.out_channels, rows, self._columns)
        conv.compiled.conv_dot(self.window, conv.weight, conv.bias, made, op.stride)
        return made


class Gathered(Convolution):
    """A convolution by im2col: the inputs of every output are copied side by side, then multiplied."""

    def __init__(self, op: Convolve, way: ConvAlgorithm, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(op, way, weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous(), bias)  # (k·k·I, O)

    def begin(self, scratch: Scratch, rows: int, width: int) -> Workspace:
        return _GatheredWorkspace(self, scratch, rows, width)


class _GatheredWorkspace(Workspace):
    def __init__(self, conv: Gathered, scratch: Scratch, rows: int, width: int) -> None:
        super().__init__(conv.op, conv.way, scratch, rows, width)
        self._conv, weights = conv, conv.op.weights
        self._columns = conv.op.output_size(rows, width)[1]
        of_a_tap_row = weights.kernel * weights.in_channels  # these are contiguous in the window, too
        self._gathered = scratch.take(rows, self._columns, weights.kernel, of_a_tap_row)

    def convolve(
        self,
        rows: int,
        out: torch.Tensor | None,
        added: torch.Tensor | None = None,
        moments: OutputMoments | None = None,
    ) -> torch.Tensor:
        conv, gathered = self._conv, self._gathered[:rows]
        row, column, stride = self.window.stride(2), self.window.stride(3), conv.op.stride
        gathered.copy_(self.window.as_strided(gathered.shape, (stride * row, stride * column, row, 1)))
        place = out if out is not None and out.stride(1) == 1 else None  # a program's output is not channels-last
        made = self._result(place, conv.op.weights.out_channels, rows, self._columns)
        operands = gathered.view(rows * self._columns, -1)
        if conv.bias is None:
            torch.mm(operands, conv.weight, out=positions(made))
        else:
            torch.addmm(conv.bias, operands, conv.weight, out=positions(made))
        return made


class FourPhases(Convolution):
    """Nearest ×2 and then a 3×3 convolution, as four 2×2 convolutions."""

    def __init__(self, op: Convolve, way: ConvAlgorithm, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(op, way, phase_kernels(weight), None if bias is None else bias.repeat(4))

    def begin(self, scratch: Scratch, rows: int, width: int) -> Workspace:
        return _FourPhasesWorkspace(self, scratch, rows, width)


class _FourPhasesWorkspace(Workspace):
    def __init__(self, conv: FourPhases, scratch: Scratch, rows: int, width: int) -> None:
        super().__init__(conv.op, conv.way, scratch, rows, width)
        self._conv, self._width = conv, width
        self._padding = (0, 0 if any(conv.way.side_columns(conv.op.padding)) else 1)

    def convolve(
        self,
        rows: int,
        out: torch.Tensor | None,
        added: torch.Tensor | None = None,
        moments: OutputMoments | None = None,
    ) -> torch.Tensor:
        conv, channels = self._conv, self._conv.op.weights.out_channels
        made = self._result(out, channels, rows, 2 * self._width)
        high = rows // 2
        phases = F.conv2d(self.window[:, :, : high + 2], conv.weight, conv.bias, padding=self._padding)
        for below in (0, 1):
            for right in (0, 1):
                phase = channels * (2 * below + right)
                made[:, :, below::2, right::2] = phases[
                    :, phase : phase + channels, below : below + high, right : right + self._width
                ]
        return made


class Transformed(Convolution):
    """A 3×3 convolution, also after nearest ×2 or with stride 2, that multiplies transformed tiles."""

    def __init__(self, op: Convolve, way: ConvAlgorithm, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(op, way, weight, bias)
        if way.transforms is None:
            raise TypeError(f"{way} has no tiles")
        self.along_rows, self.along_columns = way.transforms
        wide = torch.promote_types(weight.dtype, torch.float64)
        rows, columns = (
            torch.tensor(part.of_filter, dtype=wide, device=weight.device)
            for part in (self.along_rows, self.along_columns)
        )
        spectrum = torch.einsum("ik,ockl,jl->ijco", rows, weight.to(wide), columns).flatten(0, 1)
        self.dtype = torch.bfloat16 if way.in_bfloat16 else weight.dtype
        self.compiled = compiled_for(weight, op.weights.in_channels, op.weights.out_channels)
        # (products, C, O), or the layout of the compiled loops
        self.weight = (
            self.compiled.pack_filters(spectrum, self.dtype)
            if self.compiled
            else spectrum.to(self.dtype).contiguous()
        )

    def begin(self, scratch: Scratch, rows: int, width: int) -> Workspace:
        return _TransformedWorkspace(self, scratch, rows, width)


class _TransformedWorkspace(Workspace):
    """Two halves of memory: every step reads one half and writes the other.

    window → input transformed along rows (first half) → then along columns (second half) → products (first half) →
    transformed back along rows (second half) → then along columns: the result.  Compiled loops do each transform,
    forward and back, in one step.
    """

    def __init__(self, conv: Transformed, scratch: Scratch, rows: int, width: int) -> None:
        super().__init__(conv.op, conv.way, scratch, rows, width)
        self._conv, self._width = conv, width
        self.adds = conv.compiled is not None
        high, self._wide = conv.way.tiles(conv.op, rows, width)
        halves = conv.way.halves(conv.op, high, self._wide)
        self._memory = scratch.take(sum(halves))
        self._first, self._second = self._memory[: halves[0]], self._memory[halves[0] :]
        self._views: dict[int, TileViews] = {}

    def convolve(
        self,
        rows: int,
        out: torch.Tensor | None,
        added: torch.Tensor | None = None,
        moments: OutputMoments | None = None,
    ) -> torch.Tensor:
        conv = self._conv
        high = conv.along_rows.tiles(rows)
        first, end = conv.op.rows_read(0, rows)
        self.window[:, :, end - first : conv.along_rows.inputs(high)].zero_()
        if conv.compiled:
            return self._convolve_compiled(conv.compiled, high, rows, out, added, moments)
        if high not in self._views:
            self._views[high] = self._look(high)
        views = self._views[high]
        combine(conv.along_rows.of_input, views.source_lines, views.rowwise)
        combine(conv.along_columns.of_input, views.rowwise_lines, views.spectrum)
        torch.bmm(views.operands, conv.weight, out=views.products)
        if conv.bias is not None:
            views.biased.add_(conv.bias)
        combine(conv.along_rows.of_products, views.product_lines, views.columnwise)
        tall, broad = conv.along_rows.outputs, conv.along_columns.outputs
        made = self._result(out, conv.op.weights.out_channels, high * tall, self._wide * broad)
        tiles = made[0].permute(1, 2, 0).view(high, tall, self._wide, broad, -1)
        targets = [tiles[:, :, :, q].transpose(0, 1) for q in range(broad)]  # outputs of a tile's rows, tiles, …
        combine(conv.along_columns.of_products, views.columnwise_lines, targets)
        return made if made is out else made[:, :, :rows, : conv.op.output_size(rows, self._width)[1]]

    def _convolve_compiled(
        self,
        compiled: CompiledKernels,
        high: int,
        rows: int,
        out: torch.Tensor | None,
        added: torch.Tensor | None,
        moments: OutputMoments | None,
    ) -> torch.Tensor:
        conv, wide = self._conv, self._wide
        weights = conv.op.weights
        tile = conv.along_rows.reads, conv.along_columns.reads
        columns = conv.op.output_size(rows, self._width)[1]
        if out is None or not supports_layout(out):  # a program's final output has another memory layout
            out = self._result(None, weights.out_channels, rows, columns)
        ends = conv.bias, added, out
        if compiled.conv_winograd(
            self.window, conv.weight, *ends, self._memory, high, wide, tile, k_block=conv.k_block, moments=moments
        ):
            return out
        shape = (len(conv.weight), high * wide)
        operands = view(self._second.view(conv.dtype), *shape, weights.in_channels)
        products = view(self._first, *shape, weights.out_channels)
        compiled.input_transform(self.window, operands, high, wide, tile)
        compiled.bmm(operands, conv.weight, products, k_block=conv.k_block)
        compiled.output_transform(products, *ends, high, wide, tile, moments)
        return out

    def _look(self, high: int) -> TileViews:
        """Return the views for this many rows of tiles; slicing is as slow as adding, so the caller keeps them."""
        along_rows, along_columns, wide = self._conv.along_rows, self._conv.along_columns, self._wide
        into, out = self._conv.op.weights.in_channels, self._conv.op.weights.out_channels
        source = self.window[0, :, :, : along_columns.inputs(wide)].permute(1, 2, 0)  # rows, columns, channels
        tall, broad = along_rows.reads, along_columns.reads
        rowwise = view(self._first, tall, high, along_columns.inputs(wide), into)
        spectrum = view(self._second, tall, broad, high, wide, into)
        products = view(self._first, tall, broad, high, wide, out)
        columnwise = view(self._second, along_rows.outputs, broad, high, wide, out)
        return TileViews(
            source_lines=[source[strided(i, along_rows.step, high)] for i in range(tall)],
            rowwise=rowwise.unbind(),
            rowwise_lines=[rowwise[:, :, strided(j, along_columns.step, wide)] for j in range(broad)],
            spectrum=spectrum.unbind(1),
            operands=spectrum.flatten(0, 1).flatten(1, 2),
            products=products.flatten(0, 1).flatten(1, 2),
            biased=products[along_rows.common, along_columns.common],
            product_lines=products.unbind(),
            columnwise=columnwise.unbind(),
            columnwise_lines=columnwise.unbind(1),
        )
