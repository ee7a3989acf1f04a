"""A smooth field of transforms: where points of one view lie in another that it is warped against.

    T(p) = A (p + u(p)),    u(p) = sum_k c_k b(z - z_k) b(y - y_k) b(x - x_k)

A is one affine map for all, and u, in micrometres of the frame that A leaves, a uniform cubic
B-spline: on a regular lattice of control points k, b is the cubic B-spline as wide as four of its
intervals (Rueckert et al. 1999, IEEE TMI 18:712). Beyond the lattice u stays what it is at the edge.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import make_interp_spline
from scipy.ndimage import map_coordinates

from pellucid.core.geometry import Affine, Grid, as_triple
from pellucid.errors import FrameError, ParameterError

Array = NDArray[np.float64]
Shape = tuple[int, int, int]

INVERSE_ROUNDS = 60
"""Of the fixed-point iteration: a field half as steep as one that folds gains a digit in 3.3."""

INVERSE_ENDS = 2
"""Intervals of an inverse beyond what it is to cover: what its spline does at the ends stays there."""

INVERSE_REFINEMENT = 3
"""Control points of an inverse to each of the field's own along an axis: it varies a little faster."""



@dataclass(frozen=True, eq=False)
class TransformField:
    """T(p) = affine(p + u(p)) in micrometres, ZYX; u a cubic B-spline.

    Parameters
    ----------
    affine : the map without the deformation
    knots : control points, in the frame that `affine` leaves; 4 or more along an axis, the outermost
        one interval beyond what the field covers; or 1 along an axis on which nothing varies
    coefficients_um : (z, y, x, 3) c_k, components z, y, x

    Raises
    ------
    ParameterError : coefficients that do not fit the lattice, or are not finite
    FrameError : control points in another frame than the one that `affine` leaves
    """

    affine: Affine
    knots: Grid
    coefficients_um: Array

    def __post_init__(self) -> None:
        coefficients = np.array(self.coefficients_um, dtype=np.float64)
        if coefficients.shape != (*self.knots.shape, 3) or not np.isfinite(coefficients).all():
            raise ParameterError(
                f"TransformField: expected finite coefficients {(*self.knots.shape, 3)}, got shape "
                f"{coefficients.shape}. Give one (z, y, x) displacement for every control point."
            )
        if any(1 < n < 4 for n in self.knots.shape):
            raise ParameterError(
                f"TransformField: expected 1 or at least 4 control points along each axis, got "
                f"{self.knots.shape}. Use `control_points`."
            )
        if self.knots.frame != self.affine.source:
            raise FrameError(
                f"TransformField: expected control points in the frame {self.affine.source!r} that "
                f"the affine map leaves, got {self.knots.frame!r}."
            )
        coefficients.setflags(write=False)
        object.__setattr__(self, "coefficients_um", coefficients)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Return the field that `to_dict` wrote; missing or unknown keys raise ParameterError."""
        if set(record) != {"affine", "knots", "coefficients_um"}:
            raise ParameterError(
                "TransformField.from_dict: expected the keys affine, coefficients_um, knots, got "
                f"{sorted(record)}."
            )
        return cls(
            Affine.from_dict(record["affine"]),
            Grid.from_dict(record["knots"]),
            np.asarray(record["coefficients_um"], dtype=np.float64),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the field as JSON-ready numbers and strings."""
        return {
            "affine": self.affine.to_dict(),
            "knots": self.knots.to_dict(),
            "coefficients_um": self.coefficients_um.tolist(),
        }

    @property
    def source(self) -> str:
        """Name of the frame that the field leaves."""
        return self.affine.source

    @property
    def target(self) -> str:
        """Name of the frame that the field reaches."""
        return self.affine.target

    @property
    def largest_um(self) -> float:
        """The longest displacement u, looked at at three places of every interval along each axis."""
        return float(np.linalg.norm(self.displacement(_positions(self._lattice())), axis=-1).max())

    @property
    def steepest(self) -> float:
        """How fast u changes at most, um per um; below 1 the field cannot fold.

        The norm of du/dp, at the same places.
        """
        return float(np.linalg.norm(self._gradient(self._lattice()), axis=(-2, -1)).max())

    def displacement(self, points: ArrayLike) -> Array:
        """Return u (..., 3) at points (..., 3) of the frame that the field leaves."""
        points = np.asarray(points, dtype=np.float64)
        places = self._within(self.knots.um_to_index.apply(points)).reshape(-1, 3).T
        components = [
            map_coordinates(self.coefficients_um[..., d], places, order=3, prefilter=False, mode="nearest")
            for d in range(3)
        ]
        return np.stack(components, axis=-1).reshape(points.shape)

    def apply(self, points: ArrayLike) -> Array:
        """Return points (..., 3), ZYX, moved into the frame that the field reaches."""
        points = np.asarray(points, dtype=np.float64)
        return self.affine.apply(points + self.displacement(points))

    def weights(self, grid: Grid, *, slope: int | None = None) -> tuple[Array, Array, Array]:
        """Return the matrices (voxels, control points) that give u on the voxels of a grid.

        u[z, y, x] = sum W_z[z, i] W_y[y, j] W_x[x, k] c[i, j, k]; with `slope`, its derivative along
        that axis, per um.
        """
        z, y, x = (
            axis_weights(self.knots, axis, _centres(grid, axis), slope=axis == slope)
            for axis in range(3)
        )
        return z, y, x

    def stretch(self, grid: Grid) -> Array:
        """Return det(1 + du/dp) at the voxels of a grid: local volume relative to A's, 1 at rest."""
        stretched: Array = np.linalg.det(np.eye(3) + self._gradient(grid))
        return stretched

    def inverse_points(self, points: ArrayLike) -> Array:
        """Return where the points (..., 3) of the target come from: p = A^-1 q - u(p), iterated."""
        straight = self.affine.inverse().apply(points)
        found, tolerance = straight, 1e-9 * max(self.largest_um, 1e-300)
        for _ in range(INVERSE_ROUNDS):
            before, found = found, straight - self.displacement(found)
            if np.abs(found - before).max() <= tolerance:
                break
        return found

    def inverse(self, over: Grid) -> "TransformField":
        """Return the field from the target back, right within `over`, a grid of the target frame.

        A field itself, q -> A^-1 (q + w(q)): the spline through the exact inverse at control points,
        `INVERSE_REFINEMENT` times denser than the field's own. They lie at multiples of their distance,
        so that overlapping grids are given the same field but for what its ends change.
        """
        # as far apart in the target as a part of what they are in the source, whatever way A turns
        apart = np.abs(self.affine.linear) @ np.asarray(self.knots.spacing_um)
        apart = apart / np.abs(self.affine.linear).sum(1) / INVERSE_REFINEMENT
        first, last = over.corners_um().min(0), over.corners_um().max(0)
        before = np.floor(first / apart) - INVERSE_ENDS
        count = np.ceil(last / apart) + INVERSE_ENDS - before
        flat = np.asarray(over.shape) == 1
        z, y, x = np.where(flat, 1, count + 1).astype(int).tolist()
        start = as_triple(np.where(flat, first, before * apart), "origin")
        covered = Grid((z, y, x), as_triple(apart, "spacing"), start, over.frame)
        knots = control_points(covered, (z - 1, y - 1, x - 1))
        places = _positions(knots)
        moved = self.affine.apply(self.inverse_points(places)) - places
        back = self.affine.inverse()
        return TransformField(back, knots, _interpolating(moved))

    def followed_by(self, last: Affine) -> "TransformField":
        """Return the field that goes on with an affine map."""
        return TransformField(last @ self.affine, self.knots, self.coefficients_um)

    def with_frames(self, *, source: str, target: str) -> "TransformField":
        """Return the same numbers between other frames: a claim that they coincide."""
        knots = Grid(self.knots.shape, self.knots.spacing_um, self.knots.origin_um, source)
        affine = self.affine.with_frames(source=source, target=target)
        return TransformField(affine, knots, self.coefficients_um)

    def straightened(self) -> "TransformField":
        """Return the same field with all that is affine of it in `affine`, least squares.

        With G p + g the affine part of u, what is left is (1 + G)^-1 (u - G p - g) on top of
        A (1 + G | g). The B-spline with coefficients G z_k + g is G p + g.
        """
        vary = [axis for axis in range(3) if self.knots.shape[axis] > 1]

        def design(places: Array) -> Array:
            places = places.reshape(-1, 3)
            return np.column_stack([places[:, vary], np.ones(len(places))])

        places = _positions(self._lattice())
        values = self.displacement(places).reshape(-1, 3)
        found = np.linalg.lstsq(design(places), values, rcond=None)[0]
        linear = np.eye(3)
        linear[:, vary] += found[:-1].T
        left = self.coefficients_um.reshape(-1, 3) - design(_positions(self.knots)) @ found
        rest = np.asarray(np.linalg.solve(linear, left.T).T, dtype=np.float64)
        own = Affine.from_linear(
            linear, translation_um=found[-1], source=self.source, target=self.source
        )
        return TransformField(self.affine @ own, self.knots, rest.reshape(self.coefficients_um.shape))

    def __repr__(self) -> str:
        return (
            f"TransformField({self.knots.shape} control points, {self.source!r} -> {self.target!r}, "
            f"at most {self.largest_um:.3g} um)"
        )

    def _gradient(self, grid: Grid) -> Array:
        """Return du_i / dp_j (z, y, x, i, j) at the voxels of a grid."""
        gradient = np.empty((*grid.shape, 3, 3))
        for axis in range(3):
            z, y, x = self.weights(grid, slope=axis)
            gradient[..., axis] = np.einsum(
                "ai,bj,ck,ijkd->abcd", z, y, x, self.coefficients_um, optimize=True
            )
        return gradient

    def _lattice(self) -> Grid:
        """Return the places at which the field's slope is looked at."""
        z, y, x = (1 if n == 1 else 3 * (n - 3) + 1 for n in self.knots.shape)
        first = self.knots.index_to_um.apply([min(n - 1, 1) for n in self.knots.shape])
        step = np.asarray(self.knots.spacing_um) / 3
        return Grid((z, y, x), as_triple(step, "step"), as_triple(first, "first"), self.source)

    def _within(self, places: Array) -> Array:
        """Return places in units of the lattice, none beyond what it covers."""
        last = np.asarray(self.knots.shape) - 1
        return np.where(last > 0, np.clip(places, 1, np.maximum(last - 1, 1)), 0)


def control_points(over: Grid, intervals: Shape) -> Grid:
    """Return control points that cover a grid's voxels by that many intervals; 1 where it is flat."""
    size = [(n - 1) * s for n, s in zip(over.shape, over.spacing_um, strict=True)]
    step = [
        s if n == 1 else length / max(count, 1)
        for n, s, length, count in zip(over.shape, over.spacing_um, size, intervals, strict=True)
    ]
    z, y, x = (1 if n == 1 else max(c, 1) + 3 for n, c in zip(over.shape, intervals, strict=True))
    flat = np.asarray(over.shape) == 1
    origin = np.asarray(over.origin_um) - np.where(flat, 0, step)
    return Grid((z, y, x), as_triple(step, "step"), as_triple(origin, "origin"), over.frame)


def axis_weights(knots: Grid, axis: int, places_um: Array, *, slope: bool = False) -> Array:
    """Return (places, control points): b((place - z_k) / h) along one axis, or its derivative."""
    n, step = knots.shape[axis], knots.spacing_um[axis]
    if n == 1:
        return np.full((len(places_um), 1), 0.0 if slope else 1.0)
    index = (places_um - knots.origin_um[axis]) / step
    inside = np.clip(index, 1, n - 2)
    distance = inside[:, None] - np.arange(n)
    if not slope:
        return cubic_spline(distance)
    # beyond the lattice u is constant
    weights: Array = cubic_spline(distance, 1) / step * (index == inside)[:, None]
    return weights


def cubic_spline(t: Array, order: int = 0) -> Array:
    """Return the cubic B-spline b(t) on knots -2, -1, 0, 1, 2, or its first or second derivative."""
    away = np.abs(t)
    near, far = (
        (2 / 3 - away**2 + away**3 / 2, (2 - away) ** 3 / 6),
        (np.sign(t) * (1.5 * away**2 - 2 * away), -np.sign(t) * (2 - away) ** 2 / 2),
        (3 * away - 2, 2 - away),
    )[order]
    return np.where(away < 1, near, np.where(away < 2, far, 0.0))


def _centres(grid: Grid, axis: int) -> Array:
    steps = np.arange(grid.shape[axis], dtype=np.float64) * grid.spacing_um[axis]
    centres: Array = grid.origin_um[axis] + steps
    return centres


def _positions(grid: Grid) -> Array:
    """Return the voxel centres (z, y, x, 3)."""
    axes = [_centres(grid, axis) for axis in range(3)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def _interpolating(values: Array) -> Array:
    """Return B-spline coefficients whose spline goes through `values` at every control point.

    At the outermost points, which lie beyond what the field covers, a not-a-knot spline is continued.
    """
    for axis in range(3):
        n = values.shape[axis]
        if n == 1:
            continue
        lines: Array = np.moveaxis(values, axis, 0)
        at = np.arange(n, dtype=np.float64)
        spline = make_interp_spline(at, lines, k=3)
        # the same cubics in the uniform basis on the covered part: as many conditions as unknowns
        checks = np.linspace(1, n - 2, n)
        unit = Grid((n, 1, 1))
        basis = axis_weights(unit, 0, checks)
        fitted = np.linalg.lstsq(basis, spline(checks).reshape(n, -1), rcond=None)[0]
        values = np.asarray(np.moveaxis(fitted.reshape(lines.shape), 0, axis), dtype=np.float64)
    return values
