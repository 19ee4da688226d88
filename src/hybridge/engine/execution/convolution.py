"""Convolutions, each with its planned algorithm.

A convolution is prepared once for its weights.  For each run, :meth:`Convolution.begin` gives it a :class:`Room`:
the window that source rows are written to, and the workspace of the algorithm.  Both are allocated once and used by
every strip.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F

from ..kernels.compiled import CompiledKernels, compiled_for, supports_layout
from ..memory.arena import Scratch
from ..planning.conv_algorithms import K_BLOCK, Way
from ..planning.winograd import Matrix
from ..program.ops import Convolve

_BFLOAT16 = torch.bfloat16


class Room(ABC):
    """The memory of one run of a convolution.

    Attributes:
        window: (1, C, rows, columns), channels-last: padded source rows, its side columns zero.
        adds: Whether it can write half-precision rows, and add other rows to its result.
    """

    adds = False

    def __init__(self, op: Convolve, way: Way, scratch: Scratch, rows: int, width: int) -> None:
        high, wide = way.window(op, rows, width)
        left, _ = way.side_columns(op.padding)
        channels = op.weights.in_channels // way.narrower
        memory = scratch.take(1, high, wide, channels).view(_BFLOAT16 if way.narrower > 1 else scratch.like.dtype)
        self.window = memory.permute(0, 3, 1, 2)
        self.window[..., :left].zero_()
        self.window[..., left + width :].zero_()
        #: The part of the window that holds the source's columns.
        self.inside = self.window[..., left : left + width]
        self._scratch = scratch
        self._made: torch.Tensor | None = None

    def _result(self, out: torch.Tensor | None, channels: int, rows: int, width: int) -> torch.Tensor:
        """Return ``out`` if it can be written to, else the room's own memory, allocated on first use."""
        shape = (1, channels, rows, width)
        alike = out is not None and (out.dtype, out.device) == (self._scratch.like.dtype, self.window.device)
        if out is not None and alike and out.shape == shape:
            return out
        if self._made is None:  # the first strip is the largest
            self._made = self._scratch.picture(channels, rows, width)
        return self._made[:, :, :rows]

    @abstractmethod
    def convolve(self, rows: int, out: torch.Tensor | None, added: torch.Tensor | None = None) -> torch.Tensor:
        """Compute (1, O, rows, W) from the window, in ``out`` or in memory that the next strip overwrites.

        Args:
            rows: Number of target rows.
            out: Memory where they may be written.
            added: Rows that are added to the result; may be ``out`` itself.  Only for a room with :attr:`adds`.
        """


class Convolution(ABC):
    """A convolution with prepared weights: ``weight`` has the layout that the algorithm needs."""

    #: See :meth:`.CompiledKernels.bmm`.
    k_block = K_BLOCK

    def __init__(self, op: Convolve, way: Way, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.op, self.way, self.weight, self.bias = op, way, weight, bias

    @abstractmethod
    def begin(self, scratch: Scratch, rows: int, width: int) -> Room:
        """Allocate a room for up to ``rows`` target rows; ``width`` is the source's."""


def prepare(
    op: Convolve,
    way: Way,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    k_block: int = K_BLOCK,
) -> Convolution:
    """Return an op's convolution with its weights prepared.

    Args:
        op: The op.
        way: The algorithm.
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
    """torch's own convolution."""

    def begin(self, scratch: Scratch, rows: int, width: int) -> Room:
        return _DirectRoom(self, scratch, rows, width)


class _DirectRoom(Room):
    def __init__(self, conv: Direct, scratch: Scratch, rows: int, width: int) -> None:
        super().__init__(conv.op, conv.way, scratch, rows, width)
        self._conv = conv
        # torch pads both sides equally; unequal padding is in the window.
        self._padding = (0, conv.op.padding.left if conv.op.padding.left == conv.op.padding.right else 0)

    def convolve(self, rows: int, out: torch.Tensor | None, added: torch.Tensor | None = None) -> torch.Tensor:
        conv = self._conv
        first, end = conv.op.rows_read(0, rows)
        return F.conv2d(self.window[:, :, : end - first], conv.weight, conv.bias, conv.op.stride, self._padding)


class Taps(Convolution):
    """A direct convolution in our own loops, in float32 or bfloat16, added in float32."""

    def __init__(self, op: Convolve, way: Way, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        compiled = compiled_for(weight, op.weights.in_channels, op.weights.out_channels)
        if compiled is None:
            raise TypeError(f"{way} is for compiled loops")
        self.compiled = compiled
        super().__init__(
            op, way, compiled.pack_direct_filters(weight, _BFLOAT16 if way.in_bfloat16 else weight.dtype), bias
        )

    def begin(self, scratch: Scratch, rows: int, width: int) -> Room:
        return _TapsRoom(self, scratch, rows, width)


class _TapsRoom(Room):
    adds = True

    def __init__(self, conv: Taps, scratch: Scratch, rows: int, width: int) -> None:
        super().__init__(conv.op, conv.way, scratch, rows, width)
        self._conv, self._columns = conv, conv.op.output_size(rows, width)[1]

    def convolve(self, rows: int, out: torch.Tensor | None, added: torch.Tensor | None = None) -> torch.Tensor:
        conv = self._conv
        if out is None or not supports_layout(out):  # a program's final output has another memory layout
            out = self._result(None, conv.op.weights.out_channels, rows, self._columns)
        ends = conv.bias, added, out
        conv.compiled.conv_direct(self.window, conv.weight, *ends, conv.op.stride, k_block=conv.k_block)
        return out


class Dots(Convolution):
    """A convolution with few output channels: one dot product for each output."""

    def __init__(self, op: Convolve, way: Way, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.compiled = compiled_for(weight, op.weights.in_channels)
        if self.compiled:
            weight = weight.permute(2, 0, 3, 1).flatten(2).contiguous()  # (k, O, k·I)
        super().__init__(op, way, weight, bias)

    def begin(self, scratch: Scratch, rows: int, width: int) -> Room:
        return _DotsRoom(self, scratch, rows, width)


class _DotsRoom(Room):
    def __init__(self, conv: Dots, scratch: Scratch, rows: int, width: int) -> None:
        super().__init__(conv.op, conv.way, scratch, rows, width)
        self._conv, self._columns = conv, conv.op.output_size(rows, width)[1]

    def convolve(self, rows: int, out: torch.Tensor | None, added: torch.Tensor | None = None) -> torch.Tensor:
        conv, op = self._conv, self._conv.op
        if conv.compiled is None:
            first, end = op.rows_read(0, rows)
            return F.conv2d(self.window[:, :, : end - first], conv.weight, conv.bias, op.stride)
        made = self._result(out, op.weights.out_channels, rows, self._columns)
        conv.compiled.conv_dot(self.window, conv.weight, conv.bias, made, op.stride)
        return made


class Gathered(Convolution):
    """A convolution by im2col: the inputs of every output are copied side by side, then multiplied."""

    def __init__(self, op: Convolve, way: Way, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(op, way, weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous(), bias)  # (k·k·I, O)

    def begin(self, scratch: Scratch, rows: int, width: int) -> Room:
        return _GatheredRoom(self, scratch, rows, width)


class _GatheredRoom(Room):
    def __init__(self, conv: Gathered, scratch: Scratch, rows: int, width: int) -> None:
        super().__init__(conv.op, conv.way, scratch, rows, width)
        self._conv, weights = conv, conv.op.weights
        self._columns = conv.op.output_size(rows, width)[1]
        of_a_tap_row = weights.kernel * weights.in_channels  # these are contiguous in the window, too
        self._gathered = scratch.take(rows, self._columns, weights.kernel, of_a_tap_row)

    def convolve(self, rows: int, out: torch.Tensor | None, added: torch.Tensor | None = None) -> torch.Tensor:
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


def positions(rows: torch.Tensor) -> torch.Tensor:
    """View rows (1, C, n, W), channels-last, as positions (n·W, C)."""
    return rows[0].permute(1, 2, 0).flatten(0, 1)


class FourPhases(Convolution):
    """Nearest ×2 and then a 3×3 convolution, as four 2×2 convolutions."""

    def __init__(self, op: Convolve, way: Way, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(op, way, _phase_kernels(weight), None if bias is None else bias.repeat(4))

    def begin(self, scratch: Scratch, rows: int, width: int) -> Room:
        return _FourPhasesRoom(self, scratch, rows, width)


class _FourPhasesRoom(Room):
    def __init__(self, conv: FourPhases, scratch: Scratch, rows: int, width: int) -> None:
        super().__init__(conv.op, conv.way, scratch, rows, width)
        self._conv, self._width = conv, width

    def convolve(self, rows: int, out: torch.Tensor | None, added: torch.Tensor | None = None) -> torch.Tensor:
        conv, channels = self._conv, self._conv.op.weights.out_channels
        made = self._result(out, channels, rows, 2 * self._width)
        high = rows // 2
        phases = F.conv2d(self.window[:, :, : high + 2], conv.weight, conv.bias, padding=(0, 1))
        for below in (0, 1):
            for right in (0, 1):
                phase = channels * (2 * below + right)
                made[:, :, below::2, right::2] = phases[
                    :, phase : phase + channels, below : below + high, right : right + self._width
                ]
        return made


class Transformed(Convolution):
    """A 3×3 convolution, also after nearest ×2 or with stride 2, that multiplies transformed tiles."""

    def __init__(self, op: Convolve, way: Way, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
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

    def begin(self, scratch: Scratch, rows: int, width: int) -> Room:
        return _TransformedRoom(self, scratch, rows, width)


class _TransformedRoom(Room):
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
        self._views: dict[int, _TileViews] = {}

    def convolve(self, rows: int, out: torch.Tensor | None, added: torch.Tensor | None = None) -> torch.Tensor:
        conv = self._conv
        high = conv.along_rows.tiles(rows)
        first, end = conv.op.rows_read(0, rows)
        self.window[:, :, end - first : conv.along_rows.inputs(high)].zero_()
        if conv.compiled:
            return self._convolve_compiled(conv.compiled, high, rows, out, added)
        if high not in self._views:
            self._views[high] = self._look(high)
        views = self._views[high]
        _combine(conv.along_rows.of_input, views.source_lines, views.rowwise)
        _combine(conv.along_columns.of_input, views.rowwise_lines, views.spectrum)
        torch.bmm(views.operands, conv.weight, out=views.products)
        if conv.bias is not None:
            views.biased.add_(conv.bias)
        _combine(conv.along_rows.of_products, views.product_lines, views.columnwise)
        tall, broad = conv.along_rows.outputs, conv.along_columns.outputs
        made = self._result(out, conv.op.weights.out_channels, high * tall, self._wide * broad)
        tiles = made[0].permute(1, 2, 0).view(high, tall, self._wide, broad, -1)
        targets = [tiles[:, :, :, q].transpose(0, 1) for q in range(broad)]  # outputs of a tile's rows, tiles, …
        _combine(conv.along_columns.of_products, views.columnwise_lines, targets)
        return made if made is out else made[:, :, :rows, : conv.op.output_size(rows, self._width)[1]]

    def _convolve_compiled(
        self, compiled: CompiledKernels, high: int, rows: int, out: torch.Tensor | None, added: torch.Tensor | None
    ) -> torch.Tensor:
        conv, wide = self._conv, self._wide
        weights = conv.op.weights
        tile = conv.along_rows.reads, conv.along_columns.reads
        columns = conv.op.output_size(rows, self._width)[1]
        if out is None or not supports_layout(out):  # a program's final output has another memory layout
            out = self._result(None, weights.out_channels, rows, columns)
        ends = conv.bias, added, out
        if compiled.conv_winograd(
            self.window, conv.weight, *ends, self._memory, high, wide, tile, k_block=conv.k_block
        ):
            return out
        shape = (len(conv.weight), high * wide)
        operands = _view(self._second.view(conv.dtype), *shape, weights.in_channels)
        products = _view(self._first, *shape, weights.out_channels)
        compiled.input_transform(self.window, operands, high, wide, tile)
        compiled.bmm(operands, conv.weight, products, k_block=conv.k_block)
        compiled.output_transform(products, *ends, high, wide, tile)
        return out

    def _look(self, high: int) -> _TileViews:
        """Return the views for this many rows of tiles; slicing is as slow as adding, so the caller keeps them."""
        along_rows, along_columns, wide = self._conv.along_rows, self._conv.along_columns, self._wide
        into, out = self._conv.op.weights.in_channels, self._conv.op.weights.out_channels
        source = self.window[0, :, :, : along_columns.inputs(wide)].permute(1, 2, 0)  # rows, columns, channels
        tall, broad = along_rows.reads, along_columns.reads
        rowwise = _view(self._first, tall, high, along_columns.inputs(wide), into)
        spectrum = _view(self._second, tall, broad, high, wide, into)
        products = _view(self._first, tall, broad, high, wide, out)
        columnwise = _view(self._second, along_rows.outputs, broad, high, wide, out)
        return _TileViews(
            source_lines=[source[_every(i, along_rows.step, high)] for i in range(tall)],
            rowwise=rowwise.unbind(),
            rowwise_lines=[rowwise[:, :, _every(j, along_columns.step, wide)] for j in range(broad)],
            spectrum=spectrum.unbind(1),
            operands=spectrum.flatten(0, 1).flatten(1, 2),
            products=products.flatten(0, 1).flatten(1, 2),
            biased=products[along_rows.common, along_columns.common],
            product_lines=products.unbind(),
            columnwise=columnwise.unbind(),
            columnwise_lines=columnwise.unbind(1),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _TileViews:
    """Views of a room's memory, in order of use."""

    source_lines: Sequence[torch.Tensor]
    rowwise: Sequence[torch.Tensor]
    rowwise_lines: Sequence[torch.Tensor]
    spectrum: Sequence[torch.Tensor]
    operands: torch.Tensor
    products: torch.Tensor
    biased: torch.Tensor
    product_lines: Sequence[torch.Tensor]
    columnwise: Sequence[torch.Tensor]
    columnwise_lines: Sequence[torch.Tensor]


def _every(first: int, step: int, count: int) -> slice:
    return slice(first, first + step * (count - 1) + 1, step)


def _combine(matrix: Matrix, sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> None:
    """Compute ``targets[i] = Σ matrix[i][k] · sources[k]``."""
    for (first, others), target in zip(_recipe(matrix), targets, strict=True):
        if not others:
            target.copy_(sources[first])
            continue
        (second, factor), *rest = others
        torch.add(sources[first], sources[second], alpha=factor, out=target)
        for k, other in rest:
            target.add_(sources[k], alpha=other)


@cache
def _recipe(matrix: Matrix) -> list[tuple[int, list[tuple[int, float]]]]:
    """Return, for every row of a matrix, the index of an entry that is 1, and the other entries."""
    recipe = []
    for row in matrix:
        first = row.index(1)
        recipe.append((first, [(k, factor) for k, factor in enumerate(row) if factor and k != first]))
    return recipe


def _view(memory: torch.Tensor, *shape: int) -> torch.Tensor:
    count = 1
    for side in shape:
        count *= side
    return memory[:count].view(shape)


def _phase_kernels(weight: torch.Tensor) -> torch.Tensor:
    """Convert a filter (O, I, 3, 3) for use after nearest ×2 to filters (4·O, I, 2, 2) for use before it, by phase.

    Two of a doubled picture's rows y-1, y and y+1 come from the same source row: the last two for an even y, the
    first two for an odd y.  Their taps are summed; the same holds for columns.
    """
    taps = torch.tensor(
        [[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]],  # phase, tap of two, tap of three
        dtype=torch.promote_types(weight.dtype, torch.float32),
        device=weight.device,
    )
    kernels = torch.einsum("pua,qvb,oiab->pqoiuv", taps, taps, weight.to(taps.dtype))
    return kernels.flatten(0, 2).to(weight.dtype).contiguous(memory_format=torch.channels_last)
