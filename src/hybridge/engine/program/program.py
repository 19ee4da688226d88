"""A VAE's encoder or decoder as a flat list of ops over numbered values, each written once.

:mod:`.lowering` makes programs, :mod:`..planning.plan` says how one fits in memory, and
:mod:`..execution.executor` runs it.  A program is pure data: it can be compared, printed, and made from a module on
the ``meta`` device, which has no weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .ops import Attend, Convolve, Norm, Op

Task = Literal["decode", "encode"]


@dataclass(frozen=True, slots=True)
class Program:
    """What to compute, in order.

    Attributes:
        task: ``decode`` or ``encode``.
        module: The class of the module that it was lowered from.
        channels: Of every value: value 0 is the input, value ``i`` is made by op ``i - 1``.
        ops: In order; op ``i`` writes value ``i + 1`` and reads only earlier ones.
        held: For every op the inputs of the blocks it lies in.  The plain forward keeps them alive until the block
            returns, because its callers still name them; a strip run does not.
    """

    task: Task
    module: str
    channels: tuple[int, ...]
    ops: tuple[Op, ...]
    held: tuple[frozenset[int], ...]

    def sizes(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """(height, width) of every value for an input of this size."""
        sizes = [(height, width)]
        for op in self.ops:
            sizes.append(op.output_size(*sizes[op.source]))
        return tuple(sizes)

    def last_reads(self) -> tuple[int, ...]:
        """For every value the index of the op that reads it last; the output's is one past the end."""
        last = [len(self.ops)] * len(self.channels)
        for index, op in enumerate(self.ops):
            for value in {op.source, op.residual} - {None}:
                last[value] = index  # type: ignore[index] # None is taken out above
        return tuple(last)

    def readers(self, value: int) -> tuple[int, ...]:
        """The ops that read a value, once for every time that they do."""
        return tuple(
            index for index, op in enumerate(self.ops) for read in (op.source, op.residual) if read == value
        )

    def layers(self) -> tuple[str, ...]:
        """Names of the submodules whose parameters it reads, each once."""
        names: dict[str, None] = {}
        for op in self.ops:
            own = (op.query, op.key, op.value, op.out) if isinstance(op, Attend) else (op.weights, op.shortcut)
            names.update({layer.name: None for layer in (*own, op.norm) if layer is not None})
        return tuple(names)

    def norm_of(self, value: int) -> Norm | None:
        """The norm that will be asked for this value's statistics, so that its maker gathers them."""
        return next((op.norm for op in self.ops if op.source == value and op.norm is not None), None)

    def flops(self, height: int, width: int) -> tuple[int, ...]:
        """Floating-point operations of every op for one item, a multiplication and its addition counting as two.

        Counts convolutions, linear layers and both products of attention.  A doubled 3×3 convolution counts as the
        four 2×2 ones that it is run as.
        """
        sizes = self.sizes(height, width)
        counts = []
        for op in self.ops:
            rows, columns = sizes[op.target]
            positions = rows * columns
            if isinstance(op, Attend):
                linear = sum(w.in_channels * w.out_channels for w in (op.query, op.key, op.value, op.out))
                products = 2 * positions * op.query.out_channels
                counts.append(2 * positions * (linear + products))
            else:
                counts.append(2 * positions * _products_per_position(op))
        return tuple(counts)


def _products_per_position(op: Convolve) -> int:
    taps = 4 if op.doubled else op.weights.kernel**2
    own = taps * op.weights.in_channels * op.weights.out_channels
    return own + (op.shortcut.in_channels * op.shortcut.out_channels if op.shortcut else 0)
