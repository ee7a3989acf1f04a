"""How sure an alignment is: where the corners of the view may lie, and how blurred it may be."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pellucid.core.fit_columns import BLUR, GEOMETRY, SEEN, Level, Points, columns_at
from pellucid.core.gauss_newton import Model, design_of, half_um, noise_free
from pellucid.core.geometry import Affine, Grid

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Uncertainty:
    """Covariance of the unknowns of a fit: geometry (12), gain, offset, entries of the blur (6)."""

    covariance: Matrix
    grid: Grid

    @property
    def of_blur(self) -> Matrix:
        """Covariance of the entries zz, zy, zx, yy, yx, xx of the difference of blur, um^4."""
        return self.covariance[BLUR, BLUR]

    def knowing_blur(self, prior_um4: Matrix) -> "Uncertainty":
        """Return what is left when the difference of blur is known from elsewhere as well."""
        towards = self.covariance[:, BLUR]
        told = towards @ np.linalg.pinv(self.of_blur + prior_um4, hermitian=True) @ towards.T
        return Uncertainty(self.covariance - told, self.grid)

    def corner_sigma_um(self) -> Matrix:
        """Return one standard deviation of the eight corners' positions, um, (8,)."""
        arms = (self.grid.corners_um() - self.grid.centre_um) / half_um(self.grid)
        arms = np.pad(arms, ((0, 0), (0, 1)), constant_values=1)
        sigma = np.empty(8)
        for corner, arm in enumerate(arms):
            moves = np.kron(np.eye(3), arm)
            variance = np.trace(moves @ self.covariance[GEOMETRY, GEOMETRY] @ moves.T)
            sigma[corner] = np.sqrt(max(float(variance), 0.0))
        return sigma


def uncertainty(
    fixed: Level,
    moving: Level,
    fixed_to_moving: Affine,
    model: Model,
    *,
    points: Points,
    block_um: float,
) -> Uncertainty | None:
    """Return the covariance of what `align` finds; None where too few points are left.

    From the normal matrix of the fit less its noise, with what is left unexplained summed over
    blocks of `block_um` first (a cluster-robust, or sandwich, covariance): blur makes neighbouring
    residuals one and the same, and counting them as independent would make the answer many times
    too sure. Where the points have curvatures, the difference of blur counts as six more unknowns:
    in smooth specimens a little more blur looks like a little less stretch.
    """
    columns = columns_at(points, moving, fixed_to_moving, fixed.grid.centre_um, half_um(fixed.grid))
    if columns is None:
        return None
    design = design_of(model, fixed.grid, points.curvatures is not None)
    whole = columns.normal()
    gain = float(columns.matrix[SEEN] @ columns.values)
    gain /= max(whole[SEEN, SEEN] - columns.noise_normal[SEEN, SEEN], 1e-30)
    residual = columns.values - gain * columns.matrix[SEEN]
    z, y, x = ((points.places_um[:, columns.index] / block_um).floor() + 512).long()
    label = (z * 1024 + y) * 1024 + x
    names, member = torch.unique(label, return_inverse=True)
    scores = columns.matrix.new_zeros((len(columns.matrix), len(names)))
    scores.index_add_(1, member, columns.matrix * residual)
    normal, size = noise_free(design.T @ whole @ design, design.T @ columns.noise_normal @ design)
    projected = scores.T.double().cpu().numpy() @ design / size
    # as many unknowns as there are take their share out of the residuals
    blocks, unknowns = len(names), design.shape[1]
    short = blocks / max(blocks - unknowns, 1)
    inverse = np.linalg.pinv(normal, rcond=1e-9, hermitian=True)
    spread = short * inverse @ (projected.T @ projected) @ inverse
    back = design / size
    return Uncertainty(back @ spread @ back.T, fixed.grid)
