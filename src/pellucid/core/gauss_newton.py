"""Second-order alignment of two images of one object on their strongest gradients.

Each step linearises both images about the current transform and takes the mean of the two gradients
(efficient second-order minimisation, Malis 2004; Benhimane and Malis 2004): the step is then right
to second order without second derivatives. Gain and offset between the images are unknowns of the
same linear system, so the fit does not see contrast or background.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pellucid.core.fit_columns import (
    BLUR,
    GEOMETRY,
    ONE,
    PAIRS,
    SEEN,
    Columns,
    Level,
    Points,
    columns_at,
)
from pellucid.core.geometry import Affine, Grid

Model = Literal["translation", "rigid", "similarity", "affine"]
Matrix = NDArray[np.float64]

LONGEST_STEP = 4.0
"""Voxels: the images' linear range is about one blur width, so that longer steps are guesses."""


MOST_NOISE = 0.9
"""Share of the normal matrix, along one direction, that may be taken for noise."""


@dataclass(frozen=True)
class Fit:
    """Where an alignment ended: the transform, how well it explains the data, and how it got there.

    `settled` says whether the last step was below the tolerance; `blur_um2` is by how much more the
    fixed image is blurred, where the points have curvatures.
    """

    fixed_to_moving: Affine
    ncc: float
    ncc_start: float
    points: int
    iterations: int
    settled: bool
    blur_um2: Matrix | None = None


def align(
    fixed: Level,
    moving: Level,
    start: Affine,
    model: Model,
    *,
    points: Points,
    iterations: int = 20,
    tolerance: float = 0.005,
) -> Fit:
    """Return the transform near `start` that best explains the fixed points by the moving image.

    Parameters
    ----------
    start : fixed to moving, micrometres
    points : of `fixed`, from `strongest_gradients`; with curvatures, the difference of blur is fitted
    tolerance : stop when no corner moves by more than this share of the fixed level's finest voxel
    """
    centre, scale_um = fixed.grid.centre_um, half_um(fixed.grid)
    corners = fixed.grid.corners_um() - centre
    voxel_um = min(s for s, n in zip(fixed.grid.spacing_um, fixed.grid.shape, strict=True) if n > 1)
    flat = np.array(fixed.grid.shape) == 1
    design = design_of(model, fixed.grid, points.curvatures is not None)
    current, best, ncc_start = start, Fit(start, -1.0, -1.0, 0, 0, False), -1.0
    for iteration in range(1, iterations + 1):
        columns = columns_at(points, moving, current, centre, scale_um)
        if columns is None:
            break
        system = _System.of(columns)
        ncc_start = system.ncc if iteration == 1 else ncc_start
        if system.ncc > best.ncc:
            best = Fit(current, system.ncc, ncc_start, system.count, iteration, False)
        solution = system.solved(design)
        parameters = solution[GEOMETRY].reshape(3, 4)
        linear, shift = parameters[:, :3] / scale_um, parameters[:, 3]
        step = float(np.abs(corners @ linear.T + shift).max()) / voxel_um
        shorten = min(1.0, LONGEST_STEP / max(step, 1e-12))
        update = Affine.from_linear(
            _on_model(np.eye(3) + shorten * linear, model, flat),
            centre_um=centre,
            translation_um=shorten * shift,
            source=start.source,
            target=start.source,
        )
        blur = symmetric(solution[BLUR]) if points.curvatures is not None else None
        if step < tolerance:
            count = system.count
            return Fit(current @ update, best.ncc, ncc_start, count, iteration, True, blur)
        best = replace(best, blur_um2=blur)
        current = current @ update
    return best


@dataclass(frozen=True)
class _System:
    """Normal equations of one step."""

    normal: Matrix
    right: Matrix
    noise: Matrix
    ncc: float

    @classmethod
    def of(cls, columns: Columns) -> "_System":
        normal, right = columns.normal(), columns.right()
        # both are centred, so that sums of squares are variances
        energy_seen = max(float(normal[SEEN, SEEN]), 1e-30)
        energy_value = max(float(columns.values.double().square().sum()), 1e-30)
        ncc = float((columns.matrix[SEEN] @ columns.values).double())
        return cls(normal, right, columns.noise_normal, ncc / (energy_seen * energy_value) ** 0.5)

    @property
    def count(self) -> int:
        """Number of points."""
        return int(self.normal[ONE, ONE])

    def solved(self, design: Matrix) -> Matrix:
        """Return all unknowns, those that the design leaves free."""
        right = design.T @ self.right
        normal, size = noise_free(design.T @ self.normal @ design, design.T @ self.noise @ design)
        normal[np.diag_indices(len(normal))] += 1e-4
        solution: Matrix = design @ (np.linalg.solve(normal, right / size) / size)
        return solution


def noise_free(normal: Matrix, noise: Matrix) -> tuple[Matrix, Matrix]:
    """Return the normal matrix without its noise, scaled to a diagonal of one, and the scales.

    Along no direction is more than MOST_NOISE of it taken out: what is left must be trusted.
    """
    own = np.diag(normal)
    # what the images cannot tell (the blur along an axis of one voxel) is left alone
    size = np.sqrt(np.where(own > 1e-20 * own.max(), own, 1.0))
    scaled, noise = normal / np.outer(size, size), noise / np.outer(size, size)
    if not noise.any():
        return scaled, size
    values, axes = np.linalg.eigh(scaled)
    root = np.sqrt(np.maximum(values, 1e-9))
    share, turn = np.linalg.eigh((axes.T @ noise @ axes) / np.outer(root, root))
    half = (axes * root) @ turn
    free: Matrix = (half * (1 - np.clip(share, 0.0, MOST_NOISE))) @ half.T
    return free, size


def symmetric(entries: Matrix) -> Matrix:
    """Return the symmetric matrix of entries zz, zy, zx, yy, yx, xx."""
    matrix = np.zeros((3, 3))
    for (i, j), entry in zip(PAIRS, entries, strict=True):
        matrix[i, j] = matrix[j, i] = entry
    return matrix


def design_of(model: Model, grid: Grid, blur: bool) -> Matrix:
    """Return the (14 or 20, k) map from what is free to all unknowns: geometry, gain, offset, blur."""
    basis = _basis(model, half_um(grid), np.array(grid.shape) == 1)
    free, rest = basis.shape[1], 2 + (len(PAIRS) if blur else 0)
    design = np.zeros((12 + rest, free + rest))
    design[GEOMETRY, :free] = basis
    design[12:, free:] = np.eye(rest)
    return design


def half_um(grid: Grid) -> float:
    """Return half the longest axis: the lever that makes turns and shifts alike."""
    return max(n * s for n, s in zip(grid.shape, grid.spacing_um, strict=True) if n > 1) / 2


def _basis(model: Model, scale_um: float, flat: NDArray[np.bool_]) -> Matrix:
    """Return (12, k): the columns of (linear part | shift), row by row, that the model may move.

    An axis of one voxel (2D) neither moves nor mixes with the others.
    """
    columns: list[Matrix] = []

    def add(*entries: tuple[int, int, float]) -> None:
        if any(flat[row] or (column < 3 and flat[column]) for row, column, _ in entries):
            return
        block = np.zeros((3, 4))
        for row, column, value in entries:
            block[row, column] = value
        columns.append(block.ravel())

    for row in range(3):
        add((row, 3, 1.0))
    if model in ("rigid", "similarity"):
        for i, j in ((0, 1), (0, 2), (1, 2)):
            add((i, j, 1.0), (j, i, -1.0))
    if model == "similarity":
        add(*((i, i, 1.0) for i in range(3) if not flat[i]))
    if model == "affine":
        for row in range(3):
            for column in range(3):
                add((row, column, 1.0))
    return np.stack(columns, axis=1)


def _on_model(linear: Matrix, model: Model, flat: NDArray[np.bool_]) -> Matrix:
    """Return the nearest matrix that the model allows: a rotation, a scaled rotation, any."""
    if model == "translation":
        return np.eye(3)
    if model == "affine":
        return linear
    left, stretch, right = np.linalg.svd(linear)
    turn: Matrix = left @ right
    if model == "rigid":
        return turn
    # along a flat axis the matrix is 1 and stays so
    scale = (stretch.sum() - flat.sum()) / (3 - flat.sum())
    return turn * np.where(flat, 1.0, scale)
