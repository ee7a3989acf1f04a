"""How much a cubic B-spline bends, as a quadratic form of its coefficients."""

import numpy as np
from numpy.typing import NDArray

from pellucid.core.geometry import Grid
from pellucid.core.transform_field import cubic_spline

Array = NDArray[np.float64]

SLOPE_SHARE = 1.0
"""Weight of the slope in the bending energy: 3 % of it for one wave over the volume; where no chunk
holds the field it becomes constant, instead of going on as it bends at the last chunk."""


def penalties(knots: Grid) -> tuple[Array, Array]:
    """Return the matrices of the bending energy and of the mean square, per volume V.

    The first is (L^4 / V) int |d2u/dp2|^2 dV + (L^2 / V) int |du/dp|^2 dV with L the longest side
    covered. The integrals of products of splines are products of integrals along the axes; Gauss
    points make them exact.
    """
    grams = [[_gram(knots, axis, order) for order in range(3)] for axis in range(3)]
    sides = [(n - 3) * s for n, s in zip(knots.shape, knots.spacing_um, strict=True) if n > 1]
    length, unknowns = max(sides, default=1.0), int(np.prod(knots.shape))
    bending, slope = np.zeros((unknowns, unknowns)), np.zeros((unknowns, unknowns))

    def term(orders: tuple[int, int, int]) -> Array:
        z, y, x = (grams[axis][order] for axis, order in enumerate(orders))
        product: Array = np.kron(np.kron(z, y), x)
        return product

    for i in range(3):
        once = [int(a == i) for a in range(3)]
        slope += term((once[0], once[1], once[2]))
        for j in range(3):
            twice = [int(a == i) + int(a == j) for a in range(3)]
            bending += term((twice[0], twice[1], twice[2]))
    volume = float(np.prod(sides))
    return (length**4 * bending + SLOPE_SHARE * length**2 * slope) / volume, term((0, 0, 0)) / volume


def _gram(knots: Grid, axis: int, order: int) -> Array:
    """Return (n, n): integrals of products of the basis' derivatives of an order over what it covers."""
    n, step = knots.shape[axis], knots.spacing_um[axis]
    if n == 1:
        return np.full((1, 1), float(order == 0))
    nodes, weights = np.polynomial.legendre.leggauss(4)
    places = (np.arange(1, n - 2)[:, None] + (nodes + 1) / 2).ravel()
    size = np.tile(weights / 2, n - 3) * step
    basis = cubic_spline(places[:, None] - np.arange(n), order) / step**order
    gram: Array = (basis * size[:, None]).T @ basis
    return gram
