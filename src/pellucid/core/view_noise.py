"""Noise of a view, followed through averaging and blurring: what a fit must not take for structure.

Least squares between two noisy images is biased: noise in the image that explains makes its gain
too small, the light that is then left looks like a little more stretch or a little less blur, and
the noise of a gradient goes with the noise of its voxel wherever the light changes. All of it
follows from the variance of the noise and from how neighbours share it, so that it can be taken
out of the normal equations (corrected scores; Carroll et al., Measurement Error in Nonlinear
Models, 2006).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pellucid.core.geometry import Affine, Grid

Matrix = NDArray[np.float64]

BINS = 12
"""Of brightness, for the line of variance against mean."""

FEWEST_BLOCKS = 500
"""Of eight voxels; fewer do not tell noise from chance, and none is assumed."""

MOST_BLOCKS = 30_000

FEWEST_PAIRS = 16
"""Of planes, spread over the view, when not all are looked at."""


@dataclass(frozen=True)
class ViewNoise:
    """Noise of variance `slope * value + intercept`; neighbours share it as a Gaussian blur has it.

    `blur_um2` is the covariance of that blur, along the view's axes; zero for independent voxels.
    """

    slope: float
    intercept: float
    blur_um2: Matrix

    def blurred(self, grid: Grid, covariance_um2: Matrix) -> "ViewNoise":
        """Return the noise after a Gaussian blur on a grid, of independent voxels of that grid."""
        left = _energy(grid, covariance_um2)
        return ViewNoise(left * self.slope, left * self.intercept, covariance_um2)

    def averaged(self, count: int) -> "ViewNoise":
        """Return the noise of means of `count` voxels each."""
        return ViewNoise(self.slope / count, self.intercept / count, self.blur_um2)

    def interpolated(self, grid: Grid) -> "ViewNoise":
        """Return the noise of values between voxels, averaged over all places between them.

        A value at a part p of the way has (1 - p)^2 + p^2 + 2 p (1 - p) times the variance, as far
        as neighbours share it: on average 2 / 3 + 1 / 3 of what they share, along each axis.
        """
        left = 1.0
        inverse = np.linalg.pinv(self.blur_um2, hermitian=True)
        for axis, n in enumerate(grid.shape):
            if n > 1:
                left *= (2 + np.exp(-inverse[axis, axis] * grid.spacing_um[axis] ** 2 / 4)) / 3
        return ViewNoise(left * self.slope, left * self.intercept, self.blur_um2)

    def seen_through(self, there_from_here: Affine) -> "ViewNoise":
        """Return the noise as it lies in the frame that the map leads from."""
        back = np.linalg.inv(there_from_here.linear)
        return ViewNoise(self.slope, self.intercept, back @ self.blur_um2 @ back.T)

    def variance(self, values: Tensor) -> Tensor:
        """Return the variance of voxels of these values."""
        return (self.slope * values + self.intercept).clamp_min(0.0)


NO_NOISE = ViewNoise(0.0, 0.0, np.zeros((3, 3)))


def _energy(grid: Grid, covariance_um2: Matrix) -> float:
    """Return the sum of squares of a Gaussian's weights; along axes of one voxel there are none."""
    axes = [axis for axis, n in enumerate(grid.shape) if n > 1]
    spacing = np.asarray(grid.spacing_um)[axes]
    voxels2 = covariance_um2[np.ix_(axes, axes)] / np.outer(spacing, spacing)
    return float(1 / np.sqrt((4 * np.pi) ** len(axes) * max(np.linalg.det(voxels2), 1e-30)))


def shared_noise(blur_um2: Matrix, grid: Grid) -> Matrix:
    """Return (10, 10): covariance of the noise of a value, its gradient and its second derivatives.

    For a variance of one, of differences between neighbouring voxels, z y x and zz zy zx yy yx xx;
    those along axes of one voxel are zero.
    """
    inverse = np.linalg.pinv(blur_um2, hermitian=True)
    apart = (_STEPS[:, None] - _STEPS) * grid.spacing_um
    shared = np.exp(-((apart @ inverse) * apart).sum(2) / 4)
    there = np.asarray(grid.shape) > 1
    per_um = there / np.asarray(grid.spacing_um)
    scale = np.array([1.0, *per_um, *(per_um[i] * per_um[j] for i, j in _PAIRS)])
    covariance: Matrix = _STENCILS.T @ shared @ _STENCILS * np.outer(scale, scale)
    return covariance


def _stencils() -> tuple[Matrix, Matrix]:
    """Return the 27 voxels around one, (27, 3), and the weights of ten differences on them."""
    steps = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    middle, slope, curve = np.array([0, 1, 0]), np.array([-0.5, 0, 0.5]), np.array([1, -2, 1])

    def weights(*axes: int) -> Matrix:
        lines = [middle, middle, middle]
        for axis in axes:
            lines[axis] = curve if axes.count(axis) == 2 else slope
        product: Matrix = np.einsum("i,j,k->ijk", *lines).ravel()
        return product

    columns = [weights(), *(weights(a) for a in range(3)), *(weights(i, j) for i, j in _PAIRS)]
    return steps.astype(float), np.stack(columns, axis=1)


_PAIRS = tuple((i, j) for i in range(3) for j in range(i, 3))
_STEPS, _STENCILS = _stencils()


def measured_noise(image: Tensor) -> ViewNoise:
    """Return the noise of a view as recorded, from the finest differences in blocks of 2^3 voxels.

    A difference along all axes at once lies beyond what optics let through. Where noise was
    smoothed before (resampled or denoised views) little is found, and little is corrected.
    """
    for axis, n in enumerate(image.shape):
        if n > 1:
            image = image.narrow(axis, 0, n - n % 2)
    # every so many pairs of planes are enough
    depth = image.shape[0] // 2
    planes = max(1, min(depth // FEWEST_PAIRS, image.numel() // 8 // MOST_BLOCKS))
    if planes > 1:
        pairs = image[: 2 * depth].reshape(depth, 2, *image.shape[1:])
        image = pairs[::planes].reshape(-1, *image.shape[1:])
    whole = total = image
    for axis, n in enumerate(image.shape):
        if n > 1:
            even = whole.movedim(axis, 0)[0::2], whole.movedim(axis, 0)[1::2]
            sums = total.movedim(axis, 0)[0::2], total.movedim(axis, 0)[1::2]
            whole, total = (even[0] - even[1]).movedim(0, axis), (sums[0] + sums[1]).movedim(0, axis)
    count = 2 ** sum(n > 1 for n in image.shape)
    step = max(1, whole.numel() // MOST_BLOCKS)
    square = whole.reshape(-1)[::step].square() / count
    mean = total.reshape(-1)[::step] / count
    none = np.zeros((3, 3))
    if square.numel() < FEWEST_BLOCKS:
        return ViewNoise(0.0, 0.0, none)
    order = mean.argsort()
    bins = [
        (float(mean[i].double().mean()), float(square[i].double().mean()))
        for i in order.tensor_split(BINS)
    ]
    level, variance = np.array(bins).T
    # a mean of squares scatters in proportion to itself
    weight = 1 / np.maximum(variance, 0.05 * variance.max() + 1e-30)
    design = np.stack([level - level.mean(), np.ones(BINS)], axis=1)
    slope, middle = np.linalg.lstsq(design * weight[:, None], variance * weight, rcond=None)[0]
    if slope <= 0:
        return ViewNoise(0.0, float(variance.mean()), none)
    return ViewNoise(float(slope), float(middle - slope * level.mean()), none)
