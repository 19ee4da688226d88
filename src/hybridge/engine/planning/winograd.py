"""The matrices of fast convolutions: Winograd's, by Toom's and Cook's construction; for nearest ×2; for stride 2.

A filter of three taps makes m outputs from m + 2 inputs: as polynomials, inputs and filter are evaluated at m + 1
points and at infinity, multiplied point by point, and interpolated.  Written for correlation, as networks have it,
that is ``output = A (G filter ⊙ B input)``.  In two dimensions it is done along rows, then along columns.

The points decide the rounding.  ½ and -2 in place of ±2 are Barabasz et al.'s ("Error analysis and improving the
accuracy of Winograd convolution for deep neural networks", 2020), and measure a third better here.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache

_TAPS = 3

_POINTS: dict[int, tuple[Fraction, ...]] = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(1), Fraction(-1), Fraction(1, 2), Fraction(-2)),
}

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Transform:
    """``output = of_products (of_filter filter ⊙ of_input input)``, along one side of a tile.

    Attributes:
        of_input: products × inputs.
        of_filter: products × 3.
        of_products: outputs × products.
        step: Inputs from one tile to the next.
        common: The product that every output has once, which is where a bias can be added.
    """

    of_input: Matrix
    of_filter: Matrix
    of_products: Matrix
    step: int
    common: int

    @property
    def reads(self) -> int:
        """Inputs, which are as many as products."""
        return len(self.of_input)

    @property
    def outputs(self) -> int:
        """Outputs."""
        return len(self.of_products)

    def tiles(self, outputs: int) -> int:
        """That give so many outputs, or a few more."""
        return -(-outputs // self.outputs)

    def inputs(self, tiles: int) -> int:
        """That so many tiles read together."""
        return (tiles - 1) * self.step + self.reads


#: Of three inputs x₀, x₁, x₂ and a filter a, b, c the two outputs a·x₀ + (b + c)·x₁ and (a + b)·x₁ + c·x₂, which is
#: what nearest ×2 and the filter make of x₁.  The product (a + b + c)·x₁ is common to both; the rest is a·(x₀ - x₁)
#: and c·(x₂ - x₁).
DOUBLED = Transform(
    of_input=((0, 1, 0), (1, -1, 0), (0, -1, 1)),
    of_filter=((1, 1, 1), (1, 0, 0), (0, 0, 1)),
    of_products=((1, 1, 0), (1, 0, 1)),
    step=1,
    common=0,
)

#: Of five inputs x₀ … x₄ and a filter a, b, c the two outputs a·x₀ + b·x₁ + c·x₂ and a·x₂ + b·x₃ + c·x₄, which is
#: what the filter makes with stride 2.  The product (a + c)·x₂ is common to both; the rest is a·(x₀ - x₂),
#: c·(x₄ - x₂), and b with what lies between.
HALVED = Transform(
    of_input=((1, 0, -1, 0, 0), (0, 0, 1, 0, 0), (0, 0, -1, 0, 1), (0, 1, 0, 0, 0), (0, 0, 0, 1, 0)),
    of_filter=((1, 0, 0), (1, 0, 1), (0, 0, 1), (0, 1, 0), (0, 1, 0)),
    of_products=((1, 1, 0, 1, 0), (0, 1, 1, 0, 1)),
    step=4,
    common=1,
)


@cache
def transform(outputs: int) -> Transform:
    """For ``outputs`` outputs at a time, 2 or 4; exact fractions, rounded once to float."""
    points = _POINTS[outputs]
    of_products = _powers(points, outputs)
    of_filter = _powers(points, _TAPS)
    of_input = []
    for index, point in enumerate(points):
        others = points[:index] + points[index + 1 :]
        scale = Fraction(1)
        for other in others:
            scale *= point - other
        of_filter[index] = [entry / scale for entry in of_filter[index]]
        of_input.append([*_with_roots(others), Fraction(0)])
    of_input.append(_with_roots(points))
    return Transform(
        _floats(of_input),
        _floats(of_filter),
        _floats([list(row) for row in zip(*of_products, strict=True)]),
        step=outputs,
        common=points.index(Fraction(1)),
    )


def _powers(points: tuple[Fraction, ...], count: int) -> list[list[Fraction]]:
    """Of every point those below ``count``; of infinity the highest alone."""
    finite = [[point**power for power in range(count)] for point in points]
    return [*finite, [Fraction(0)] * (count - 1) + [Fraction(1)]]


def _with_roots(roots: tuple[Fraction, ...]) -> list[Fraction]:
    """Coefficients, lowest first, of the monic polynomial with these roots."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [s - root * c for s, c in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return coefficients


def _floats(rows: list[list[Fraction]]) -> Matrix:
    return tuple(tuple(float(entry) for entry in row) for row in rows)
