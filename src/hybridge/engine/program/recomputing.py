"""Let the largest values of a film never exist whole: rewrite a program so that each reader computes them again.

The outputs of ×2 are the largest values.  Each reader gets a copy of the op that makes one, right before itself,
and the two run together, a few rows of all frames at a time.  Where a norm needs the value's statistics, another
copy comes first, of which only these are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .ops import Attend, Convolve, Op
from .program import Program


@dataclass(frozen=True, slots=True)
class Recomputed:
    """A program whose readers compute some values again.

    Attributes:
        program: The program.
        together: Ranges of ops that run together, a few rows at a time; every other op runs alone.
        origins: For every op the index of the op in the program that was rewritten.
    """

    program: Program
    together: tuple[range, ...]
    origins: tuple[int, ...]


def may_be_recomputed(program: Program) -> tuple[int, ...]:
    """Return the values that readers can compute again: outputs of ×2 that only convolutions read."""
    found = []
    for op in program.ops:
        readers = [program.ops[index] for index in program.readers(op.target)]
        is_doubled = isinstance(op, Convolve) and op.doubled and op.residual is None
        if is_doubled and readers and all(isinstance(reader, Convolve) for reader in readers):
            found.append(op.target)
    return tuple(found)


def recomputing(program: Program, values: tuple[int, ...]) -> Recomputed:
    """Return the program whose readers compute ``values``, of :func:`may_be_recomputed`, again."""
    if not values:
        return Recomputed(program, (), tuple(range(len(program.ops))))
    channels, ops, together = [program.channels[0]], list[Op](), list[range]()
    now: dict[int, int] = {0: 0}
    measured: dict[int, int] = {}
    origins: list[int] = []

    def add(op: Op) -> int:
        own = replace(op, source=now[op.source], target=len(channels))
        if isinstance(own, Convolve):
            own = replace(own, measured=measured.get(op.source))
        if not isinstance(own, Attend) and op.residual is not None:
            own = replace(own, residual=now[op.residual])
        ops.append(own)
        origins.append(op.target - 1)
        channels.append(program.channels[op.target])
        return own.target

    for op in program.ops:
        if op.target in values:
            if program.norm_of(op.target) is not None:
                measured[op.target] = add(op)
                together.append(range(len(ops) - 1, len(ops)))
            continue
        first = len(ops)
        for value in dict.fromkeys((op.source, op.residual)):
            if value in values:
                now[value] = add(program.ops[value - 1])
        now[op.target] = add(op)
        if len(ops) > first + 1:
            together.append(range(first, len(ops)))
    nothing_held = (frozenset[int](),) * len(ops)
    made = replace(program, channels=tuple(channels), ops=tuple(ops), held=nothing_held, segment=0)
    return Recomputed(made, tuple(together), tuple(origins))
