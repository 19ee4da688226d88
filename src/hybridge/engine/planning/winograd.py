"""The matrices of fast convolutions: Winograd's, by the Toom-Cook construction; for nearest ×2; for stride 2.

A filter of three taps computes m outputs from m + 2 inputs: as polynomials, inputs and filter are evaluated at
m + 1 points and at infinity, multiplied point by point, and interpolated.  For correlation, which networks use,
this is ``output = A (G filter ⊙ B input)``.  In two dimensions it is applied along rows, then along columns.

The choice of points decides the rounding error.  ½ and -2 in place of ±2 are from Barabasz et al. ("Error analysis
and improving the accuracy of Winograd convolution for deep neural networks", 2020); the error measured here is a
third smaller with them.
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
        of_input: Matrix of products × inputs.
        of_filter: Matrix of products × 3.
        of_products: Matrix of outputs × products.
        step: Number of inputs from one tile to the next.
        common: Index of the product that every output contains once; a bias can be added to it.
    """

    of_input: Matrix
    of_filter: Matrix
    of_products: Matrix
    step: int
    common: int

    @property
    def reads(self) -> int:
        """Number of inputs of a tile, which equals the number of products."""
        return len(self.of_input)

    @property
    def outputs(self) -> int:
        """Number of outputs of a tile."""
        return len(self.of_products)

    def tiles(self, outputs: int) -> int:
        """Return the number of tiles that cover this many outputs."""
        return -(-outputs // self.outputs)

    def inputs(self, tiles: int) -> int:
        """Return the number of inputs that this many tiles read together."""
        return (tiles - 1) * self.step + self.reads


#: Three inputs x₀, x₁, x₂ and a filter a, b, c give the two outputs a·x₀ + (b + c)·x₁ and (a + b)·x₁ + c·x₂: these
#: are the outputs of nearest ×2 and the filter at x₁.  The product (a + b + c)·x₁ is common to both; the rest is
#: a·(x₀ - x₁) and c·(x₂ - x₁).
DOUBLED = Transform(
    of_input=((0, 1, 0), (1, -1, 0), (0, -1, 1)),
    of_filter=((1, 1, 1), (1, 0, 0), (0, 0, 1)),
    of_products=((1, 1, 0), (1, 0, 1)),
    step=1,
    common=0,
)

#: Five inputs x₀ … x₄ and a filter a, b, c give the two outputs a·x₀ + b·x₁ + c·x₂ and a·x₂ + b·x₃ + c·x₄ of the
#: filter with stride 2.  The product (a + c)·x₂ is common to both; the rest is a·(x₀ - x₂), c·(x₄ - x₂), and the
#: products of b with x₁ and x₃.
HALVED = Transform(
    of_input=((1, 0, -1, 0, 0), (0, 0, 1, 0, 0), (0, 0, -1, 0, 1), (0, 1, 0, 0, 0), (0, 0, 0, 1, 0)),
    of_filter=((1, 0, 0), (1, 0, 1), (0, 0, 1), (0, 1, 0), (0, 1, 0)),
    of_products=((1, 1, 0, 1, 0), (0, 1, 1, 0, 1)),
    step=4,
    common=1,
)


@cache
def transform(outputs: int) -> Transform:
    """Return the transform for ``outputs`` outputs at a time, 2 or 4: exact fractions, rounded once to float."""
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
    """Return the powers below ``count`` of every point; for infinity, only the highest is 1."""
    finite = [[point**power for power in range(count)] for point in points]
    return [*finite, [Fraction(0)] * (count - 1) + [Fraction(1)]]


def _with_roots(roots: tuple[Fraction, ...]) -> list[Fraction]:
    """Return the coefficients, lowest first, of the monic polynomial with these roots."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [s - root * c for s, c in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return coefficients


def _floats(rows: list[list[Fraction]]) -> Matrix:
    return tuple(tuple(float(entry) for entry in row) for row in rows)
