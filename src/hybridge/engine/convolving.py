"""The convolutions themselves, each in the way that was planned for it.

A convolution is made once for its weights and then :meth:`begun <Convolution.begin>` for a run, which gives it a
:class:`Room`: the window that source rows are put into, and memory for what the way needs beside it, taken once and
used by every strip.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F

from .memory import allocate, allocate_picture
from .ops import Convolve
from .ways import Way, nine_products, tiles_of
from .winograd import Matrix, transform


class Room(ABC):
    """One run of a convolution.

    Attributes:
        window: (1, C, rows, columns), channels-last: padded source rows, its side columns zero.
    """

    def __init__(self, op: Convolve, way: Way, like: torch.Tensor, rows: int, width: int) -> None:
        high, wide = way.window(op, rows, width)
        left, _ = way.side_columns(op.padding)
        self.window = allocate_picture(like, op.weights.in_channels, high, wide)
        self.window[..., :left].zero_()
        self.window[..., left + width :].zero_()
        #: The part of the window that is the source's.
        self.inside = self.window[..., left : left + width]
        self._like = like
        self._made: torch.Tensor | None = None

    def _result(self, out: torch.Tensor | None, channels: int, rows: int, width: int) -> torch.Tensor:
        """``out`` if it can be written to, else memory of the room's own, taken when it is first needed."""
        shape = (1, channels, rows, width)
        alike = out is not None and (out.dtype, out.device) == (self._like.dtype, self._like.device)
        if out is not None and alike and out.shape == shape:
            return out
        if self._made is None:  # the first strip is the largest
            self._made = allocate_picture(self._like, channels, rows, width)
        return self._made[:, :, :rows]

    @abstractmethod
    def convolve(self, rows: int, out: torch.Tensor | None) -> torch.Tensor:
        """(1, O, rows, W) from the rows in the window: in ``out``, or in memory that the next strip writes over."""


class Convolution(ABC):
    """A convolution's weights, prepared: ``weight`` is of the form that the way works with."""

    def __init__(self, op: Convolve, way: Way, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.op, self.way, self.weight, self.bias = op, way, weight, bias

    @abstractmethod
    def begin(self, like: torch.Tensor, rows: int, width: int) -> Room:
        """Room, of ``like``'s dtype and device, for up to ``rows`` target rows; ``width`` is the source's."""


def prepare(op: Convolve, way: Way, weight: torch.Tensor, bias: torch.Tensor | None) -> Convolution:
    """The convolution of an op whose weight (O, I, k, k) and bias (O,) are of the dtype to compute in."""
    kinds: dict[str, type[Convolution]] = {
        "direct": Direct,
        "four-phases": FourPhases,
        "winograd": Winograd,
        "nine-products": NineProducts,
    }
    return kinds[way.kind](op, way, weight, bias)


class Direct(Convolution):
    """torch's own."""

    def begin(self, like: torch.Tensor, rows: int, width: int) -> Room:
        return _DirectRoom(self, like, rows, width)


class _DirectRoom(Room):
    def __init__(self, conv: Direct, like: torch.Tensor, rows: int, width: int) -> None:
        super().__init__(conv.op, conv.way, like, rows, width)
        self._conv = conv
        # torch pads both sides alike; what differs is in the window.
        self._padding = (0, conv.op.padding.left if conv.op.padding.left == conv.op.padding.right else 0)

    def convolve(self, rows: int, out: torch.Tensor | None) -> torch.Tensor:
        conv = self._conv
        first, end = conv.op.rows_read(0, rows)
        return F.conv2d(self.window[:, :, : end - first], conv.weight, conv.bias, conv.op.stride, self._padding)


class FourPhases(Convolution):
    """Nearest ×2, then 3×3, as four 2×2 convolutions."""

    def __init__(self, op: Convolve, way: Way, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(op, way, _phase_kernels(weight), None if bias is None else bias.repeat(4))

    def begin(self, like: torch.Tensor, rows: int, width: int) -> Room:
        return _FourPhasesRoom(self, like, rows, width)


class _FourPhasesRoom(Room):
    def __init__(self, conv: FourPhases, like: torch.Tensor, rows: int, width: int) -> None:
        super().__init__(conv.op, conv.way, like, rows, width)
        self._conv, self._width = conv, width

    def convolve(self, rows: int, out: torch.Tensor | None) -> torch.Tensor:
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


class Winograd(Convolution):
    """3×3 with padding 1, in tiles."""

    def __init__(self, op: Convolve, way: Way, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(op, way, weight, bias)
        self.along_rows, self.along_columns = transform(way.rows), transform(way.columns)
        wide = torch.promote_types(weight.dtype, torch.float64)
        rows, columns = (
            torch.tensor(part.of_filter, dtype=wide, device=weight.device)
            for part in (self.along_rows, self.along_columns)
        )
        spectrum = torch.einsum("ik,ockl,jl->ijco", rows, weight.to(wide), columns)
        self.weight = spectrum.flatten(0, 1).to(weight.dtype).contiguous()  # ((m+2)·(n+2), C, O)

    def begin(self, like: torch.Tensor, rows: int, width: int) -> Room:
        return _WinogradRoom(self, like, rows, width)


class _WinogradRoom(Room):
    """Two halves of memory: every step reads one and writes the other.

    window → input transformed along rows (first half) → and along columns (second) → products (first) → their
    transform along rows (second) → and along columns: the result.
    """

    def __init__(self, conv: Winograd, like: torch.Tensor, rows: int, width: int) -> None:
        super().__init__(conv.op, conv.way, like, rows, width)
        self._conv, self._width, self._wide = conv, width, tiles_of(width, conv.way.columns)
        self._first, self._second = (allocate(like, count) for count in conv.way.halves(conv.op, rows, width))
        self._views: dict[int, _WinogradViews] = {}

    def convolve(self, rows: int, out: torch.Tensor | None) -> torch.Tensor:
        conv, (tall, broad) = self._conv, (self._conv.way.rows, self._conv.way.columns)
        high, wide = tiles_of(rows, tall), self._wide
        if high not in self._views:
            self._views[high] = self._look(high)
        views = self._views[high]
        self.window[:, :, rows + 2 : high * tall + 2].zero_()
        _combine(conv.along_rows.of_input, views.source_lines, views.rowwise)
        _combine(conv.along_columns.of_input, views.rowwise_lines, views.spectrum)
        torch.bmm(views.operands, conv.weight, out=views.products)
        if conv.bias is not None:
            views.biased.add_(conv.bias)
        _combine(conv.along_rows.of_products, views.product_lines, views.columnwise)
        made = self._result(out, conv.op.weights.out_channels, high * tall, wide * broad)
        tiles = made[0].permute(1, 2, 0).view(high, tall, wide, broad, -1)
        targets = [tiles[:, :, :, q].transpose(0, 1) for q in range(broad)]  # outputs of a tile's rows, tiles, …
        _combine(conv.along_columns.of_products, views.columnwise_lines, targets)
        return made if made is out else made[:, :, :rows, : self._width]

    def _look(self, high: int) -> _WinogradViews:
        """At so many rows of tiles: every strip but the last has the same, and slicing takes as long as adding."""
        (tall, broad), wide = (self._conv.way.rows, self._conv.way.columns), self._wide
        into, out = self._conv.op.weights.in_channels, self._conv.op.weights.out_channels
        source = self.window[0].permute(1, 2, 0)  # rows, columns, channels
        rowwise = _view(self._first, tall + 2, high, wide * broad + 2, into)
        spectrum = _view(self._second, tall + 2, broad + 2, high, wide, into)
        products = _view(self._first, tall + 2, broad + 2, high, wide, out)
        columnwise = _view(self._second, tall, broad + 2, high, wide, out)
        return _WinogradViews(
            source_lines=[source[i : i + tall * (high - 1) + 1 : tall] for i in range(tall + 2)],
            rowwise=rowwise.unbind(),
            rowwise_lines=[rowwise[:, :, j : j + broad * (wide - 1) + 1 : broad] for j in range(broad + 2)],
            spectrum=spectrum.unbind(1),
            operands=spectrum.flatten(0, 1).flatten(1, 2),
            products=products.flatten(0, 1).flatten(1, 2),
            biased=products[1, 1],  # of the point 1, whose products every output has once
            product_lines=products.unbind(),
            columnwise=columnwise.unbind(),
            columnwise_lines=columnwise.unbind(1),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _WinogradViews:
    """Views of a room's memory, in the order of their use."""

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


class NineProducts(Convolution):
    """Nearest ×2, then 3×3, with nine products for every four outputs.

    Along a side with taps a, b, c: ``s = a + b + c`` goes with the source, ``a`` and ``c`` with its differences.
    """

    def __init__(self, op: Convolve, way: Way, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(op, way, weight, bias)
        wide = weight.to(torch.promote_types(weight.dtype, torch.float64))
        parts = {"a": wide[:, :, 0], "s": wide.sum(2), "c": wide[:, :, 2]}  # by row; (O, I, 3) each
        taps = {
            row + column: part.sum(2) if column == "s" else part[:, :, "a_c".index(column)]
            for row, part in parts.items()
            for column in "asc"
        }
        #: (I, O·n) each: of the source, its differences along columns, along rows, along both.
        self.kernels = [
            torch.cat([taps[name] for name in names]).T.to(weight.dtype).contiguous()
            for names in (("ss",), ("sa", "sc"), ("as", "cs"), ("aa", "ac", "ca", "cc"))
        ]
        self.weight = self.kernels[0]  # not a widened copy of the layer's own, which nothing reads

    def begin(self, like: torch.Tensor, rows: int, width: int) -> Room:
        return _NineProductsRoom(self, like, rows, width)


class _NineProductsRoom(Room):
    def __init__(self, conv: NineProducts, like: torch.Tensor, rows: int, width: int) -> None:
        super().__init__(conv.op, conv.way, like, rows, width)
        self._conv, self._width = conv, width
        weights = conv.op.weights
        sizes = nine_products(rows // 2, width, weights.in_channels, weights.out_channels)
        self._parts = [allocate(like, size) for size in sizes]

    def convolve(self, rows: int, out: torch.Tensor | None) -> torch.Tensor:
        conv, high, width = self._conv, rows // 2, self._width
        into, channels = conv.op.weights.in_channels, conv.op.weights.out_channels
        source = self.window[0].permute(1, 2, 0)[: high + 2]  # one row and column more on every side
        # A difference is of a number and the one after it.
        columns, lines, both = (
            _view(part, *shape, into)
            for part, shape in zip(
                self._parts, [(high, width + 1), (high + 1, width + 2), (high + 1, width + 1)], strict=False
            )
        )
        torch.sub(source[1:-1, :-1], source[1:-1, 1:], out=columns)
        torch.sub(source[:-1], source[1:], out=lines)
        torch.sub(lines[:, :-1], lines[:, 1:], out=both)
        products = []
        operands = (source[1:-1], columns, lines, both)
        for operand, kernel, part in zip(operands, conv.kernels, self._parts[3:], strict=True):
            product = _view(part, *operand.shape[:2], kernel.shape[1])
            torch.mm(operand.flatten(0, 1), kernel, out=product.flatten(0, 1))
            products.append(product.view(*operand.shape[:2], -1, channels).unbind(2))
        (ss,), (sa, sc), (as_, cs), (aa, ac, ca, cc) = products
        if conv.bias is not None:
            ss += conv.bias

        made = self._result(out, channels, rows, 2 * width)
        tiles = made[0].permute(1, 2, 0)
        # The upper row has the difference of the row above and its own, the lower that of its own and the next.
        own, side = _view(self._parts[0], high, width, channels), _view(self._parts[2], high, width + 1, channels)
        for below, (differences, add) in enumerate((((as_, aa, ac), torch.add), ((cs, ca, cc), torch.sub))):
            middle, left, right = (d[below : below + high] for d in differences)
            add(ss[:, 1:-1], middle[:, 1:-1], out=own)
            add(sa, left, out=side)
            torch.add(own, side[:, :-1], out=tiles[below::2, 0::2])
            add(sc, right, out=side)
            torch.sub(own, side[:, 1:], out=tiles[below::2, 1::2])
        return made


def _combine(matrix: Matrix, sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> None:
    """``targets[i] = Σ matrix[i][k] · sources[k]``."""
    for (first, second, factor, rest), target in zip(_recipe(matrix), targets, strict=True):
        torch.add(sources[first], sources[second], alpha=factor, out=target)
        for k, other in rest:
            target.add_(sources[k], alpha=other)


@cache
def _recipe(matrix: Matrix) -> list[tuple[int, int, float, list[tuple[int, float]]]]:
    """For every row of a matrix that has a one in each: where that is, and the other entries."""
    recipe = []
    for row in matrix:
        first = row.index(1)
        second, *rest = [k for k, factor in enumerate(row) if factor and k != first]
        recipe.append((first, second, row[second], [(k, row[k]) for k in rest]))
    return recipe


def _view(memory: torch.Tensor, *shape: int) -> torch.Tensor:
    count = 1
    for side in shape:
        count *= side
    return memory[:count].view(shape)


def _phase_kernels(weight: torch.Tensor) -> torch.Tensor:
    """(O, I, 3, 3), to be used after nearest ×2 → (4·O, I, 2, 2), to be used before it, one phase after another.

    Of a doubled picture's rows y-1, y and y+1, two come from the same source row: for an even y the last two, for
    an odd one the first two.  Their taps are summed; the same holds for columns.
    """
    taps = torch.tensor(
        [[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]],  # phase, tap of two, tap of three
        dtype=torch.promote_types(weight.dtype, torch.float32),
        device=weight.device,
    )
    kernels = torch.einsum("pua,qvb,oiab->pqoiuv", taps, taps, weight.to(taps.dtype))
    return kernels.flatten(0, 2).to(weight.dtype).contiguous(memory_format=torch.channels_last)
