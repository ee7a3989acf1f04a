"""Two views made comparable: pyramids, and each view blurred until both are blurred alike.

A view blurred along z and one blurred along x look different wherever there is something to see,
and an alignment of them as they are is off by a voxel. So each view is blurred by what the other
has more of, carried through the transform between them. Gaussian covariances are enough for that;
they come from the PSFs, or, without PSFs, from the ratio of the two power spectra: the object
cancels in it.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool3d

from pellucid.core.fit_columns import Level
from pellucid.core.fourier import fast_shape, filtered, frequencies, rfftn
from pellucid.core.geometry import Affine, Grid, as_triple
from pellucid.core.view_noise import NO_NOISE, ViewNoise

Matrix = NDArray[np.float64]

BASE_SIGMA_VOXELS = 1.0
"""Smoothing of both views, in voxels of the level: hides the interpolation's own, varying blur, and
keeps the noise of dim views (20 photons) out of the curvatures that tell their blurs apart."""

FEWEST_PLANES = 8
"""Axes are not averaged to fewer: a gradient along them, off the border, needs that many."""

MOST_FREQUENCIES = 20_000
"""More of them say nothing new about a difference of blur: neighbours were averaged."""

LONGEST_MATRIX = 512
"""Voxels; blurring along longer axes is cheaper by Fourier transform than by matrix product."""

BORDER_SIGMAS = 2.0
"""A Gaussian has 95 % of its weight within two sigmas; what lies outside the view weighs less."""


@dataclass(frozen=True)
class BlurDifference:
    """What to blur each view by, covariances in um^2, each in its own view's frame."""

    of_fixed_um2: Matrix
    of_moving_um2: Matrix


def downsampled(image: Tensor, grid: Grid, voxel_um: float) -> tuple[Tensor, Grid]:
    """Return the image averaged over whole blocks, by powers of two, to voxels of about `voxel_um`.

    Fine axes are halved first, so that voxels become isotropic on the way.
    """
    factor = [
        2 ** max(0, round(np.log2(voxel_um / s))) if n > 1 else 1
        for s, n in zip(grid.spacing_um, grid.shape, strict=True)
    ]
    for axis, n in enumerate(grid.shape):
        while factor[axis] > 1 and n // factor[axis] < FEWEST_PLANES:
            factor[axis] //= 2
    if max(factor) == 1:
        return image, grid
    small = _block_means(image, factor)
    spacing = np.asarray(grid.spacing_um) * factor
    origin = grid.index_to_um.apply((np.asarray(factor) - 1) / 2)
    z, y, x = small.shape
    return small, Grid((z, y, x), tuple(spacing), tuple(origin), grid.frame)


def _block_means(image: Tensor, factor: list[int]) -> Tensor:
    """Return means over blocks of powers of two, whole ones only.

    Strided sums, axis by axis: five times as fast as pooling on a CPU.
    """
    for axis in range(3):
        for _ in range(factor[axis].bit_length() - 1):
            lines = image.movedim(axis, 0)
            image = (lines[: len(lines) // 2 * 2 : 2] + lines[1::2]).movedim(0, axis)
    return image / math.prod(factor)


def gaussian_blurred(image: Tensor, grid: Grid, covariance_um2: Matrix) -> Tensor:
    """Return the image under an oriented Gaussian; near the border it fades to the mean."""
    mean = image.mean()
    along_axes = not (covariance_um2 - np.diag(np.diag(covariance_um2))).any()
    if along_axes and max(image.shape) <= LONGEST_MATRIX:
        variances = np.diag(covariance_um2) / np.square(grid.spacing_um)
        return _blurred_along_axes(image - mean, variances).add_(mean)
    shape = fast_shape(grid.shape)
    z, y, x = (f.to(image) / s for f, s in zip(frequencies(shape), grid.spacing_um, strict=True))
    c = (-2 * np.pi**2 * covariance_um2).tolist()
    # sums over planes first: one pass over the volume instead of six
    planes = c[0][0] * z * z + 2 * c[0][1] * z * y + c[1][1] * y * y
    transfer = planes + (2 * c[0][2] * z * x + c[2][2] * x * x)
    transfer = transfer.add_(2 * c[1][2] * y * x).exp_()
    return filtered(image - mean, transfer, shape, grid.shape).add_(mean)


def _blurred_along_axes(image: Tensor, variances_px2: Matrix) -> Tensor:
    """Return the image, zero beyond its border, blurred by a matrix product along each axis."""
    nz, ny, nx = image.shape
    z, y, x = (
        _gaussian_matrix(n, v).to(image) if n > 1 and v > 0 else None
        for n, v in zip(image.shape, variances_px2, strict=True)
    )
    if x is not None:
        image = image @ x
    if y is not None:
        image = y @ image
    if z is not None:
        image = (z @ image.reshape(nz, ny * nx)).reshape(nz, ny, nx)
    return image


def _gaussian_matrix(n: int, variance_px2: float) -> Tensor:
    """Return (n, n): the weights of a Gaussian between voxels, defined by its transfer function."""
    f = torch.fft.rfftfreq(2 * n, dtype=torch.float64)
    kernel = torch.fft.irfft(torch.exp(-2 * np.pi**2 * variance_px2 * f**2), n=2 * n)
    place = torch.arange(n)
    weights: Tensor = kernel[(place[:, None] - place).abs()]
    return weights


def matched_levels(
    fixed: tuple[Tensor, Grid],
    moving: tuple[Tensor, Grid],
    fixed_to_moving: Affine,
    difference: BlurDifference,
    noise: tuple[ViewNoise, ViewNoise] = (NO_NOISE, NO_NOISE),
    smoothing_um: float = 0.0,
) -> tuple[Level, Level]:
    """Return both views of one resolution, blurred alike as far as `fixed_to_moving` is right.

    `smoothing_um` is the sigma of a blur of both where that is wider than what hides interpolation.
    """
    (fixed_image, fixed_grid), (moving_image, moving_grid) = fixed, moving
    linear = fixed_to_moving.linear
    base = np.maximum(_base_covariance(fixed_grid), smoothing_um**2 * _along_axes(fixed_grid))
    of_fixed = difference.of_fixed_um2 + base
    of_moving = difference.of_moving_um2 + linear @ base @ linear.T
    return (
        _blurred_level(fixed_image, fixed_grid, of_fixed, noise[0]),
        _blurred_level(moving_image, moving_grid, of_moving, noise[1]),
    )


def from_difference(difference_um2: Matrix, fixed_to_moving: Affine) -> BlurDifference:
    """Return the least blur of both views that makes up for a difference of covariances.

    `difference_um2` is the fixed view's covariance less the moving view's, in the fixed frame.
    """
    values, axes = np.linalg.eigh(difference_um2)
    linear = fixed_to_moving.linear
    surplus: Matrix = (axes * np.maximum(values, 0)) @ axes.T
    deficit: Matrix = (axes * np.maximum(-values, 0)) @ axes.T
    return BlurDifference(deficit, linear @ surplus @ linear.T)


def estimated_difference(
    fixed: tuple[Tensor, Grid], moving: tuple[Tensor, Grid], fixed_to_moving: Affine
) -> Matrix:
    """Return the fixed view's blur covariance less the moving view's (um^2, fixed frame).

    Both views show one object, so the ratio of their power spectra is that of their transfer
    functions: log ratio = constant - 4 pi^2 k^T D k, a linear fit for the six entries of D over the
    frequencies where both views stand above their noise.
    """
    (fixed_image, fixed_grid), (moving_image, moving_grid) = fixed, moving
    power_fixed, floor_fixed = _power(fixed_image)
    power_moving, floor_moving = _power(moving_image)
    place = np.argwhere(power_fixed > 5 * floor_fixed)
    place = place[:: 1 + len(place) // MOST_FREQUENCIES]
    first = power_fixed[tuple(place.T)]
    cycles = (place - [fixed_grid.shape[0] // 2, fixed_grid.shape[1] // 2, 0]) / fixed_grid.shape
    k = cycles / fixed_grid.spacing_um
    at_moving = k @ np.linalg.inv(fixed_to_moving.linear) * moving_grid.spacing_um
    use = (np.abs(at_moving) < 0.45).all(1)
    use &= np.linalg.norm(cycles, axis=1) > 3 / max(fixed_grid.shape)
    # the other half of the moving spectrum is the mirror image of the half that is there
    shape = np.asarray(moving_grid.shape)
    place = np.rint(np.where(at_moving[:, 2:] < 0, -at_moving, at_moving) * shape).astype(int)
    place[:, :2] += shape[:2] // 2
    place = np.clip(place, 0, np.asarray(power_moving.shape) - 1)
    second = power_moving[tuple(place.T)]
    use &= second > 5 * floor_moving
    if use.sum() < 200:
        return np.zeros((3, 3))
    return _fit_quadratic(
        k[use], np.log(first[use] - floor_fixed) - np.log(second[use] - floor_moving)
    )


def _fit_quadratic(k: Matrix, log_ratio: Matrix) -> Matrix:
    """Return D of `log_ratio = c - 4 pi^2 k^T D k`; axes without frequencies get none."""
    pairs = [(i, j) for i in range(3) for j in range(i, 3)]
    columns = [k[:, i] * k[:, j] * (1 if i == j else 2) for i, j in pairs]
    design = np.stack([np.ones(len(k)), *columns], axis=1)
    size = np.sqrt((design**2).mean(0))
    size[size == 0] = 1
    solution = np.linalg.lstsq(design / size, log_ratio, rcond=1e-6)[0] / size
    difference = np.zeros((3, 3))
    for (i, j), value in zip(pairs, solution[1:], strict=True):
        difference[i, j] = difference[j, i] = -value / (4 * np.pi**2)
    return difference


def _power(image: Tensor) -> tuple[Matrix, float]:
    """Return the windowed, smoothed power on the half spectrum, and its floor.

    Zero frequency lies in the middle along z and y, and first along x.
    """
    window = torch.ones((), dtype=image.dtype, device=image.device)
    for axis, n in enumerate(image.shape):
        if n > 1:
            hann = torch.hann_window(n, periodic=False, dtype=image.dtype, device=image.device)
            window = window * hann.reshape([-1 if a == axis else 1 for a in range(3)])
    z, y, x = image.shape
    power = rfftn((image - image.mean()) * window, (z, y, x)).abs().square()
    power = torch.fft.fftshift(power, dim=(0, 1))
    width = [3 if n > 1 else 1 for n in image.shape]
    padding = [w // 2 for w in width]
    power = avg_pool3d(power[None, None], width, 1, padding, count_include_pad=False)[0, 0]
    smooth: Matrix = power.cpu().numpy()
    # the weakest tenth of all frequencies is noise wherever the optics are sampled at all
    floor = float(np.quantile(smooth.ravel()[::7], 0.1)) / 0.8
    return smooth, floor


def gaussian_of_psf(psf: Tensor, grid: Grid) -> Matrix:
    """Return the covariance (um^2) of the Gaussian nearest to a PSF, by its transfer function.

    A fit in frequency is what matters for matching, and unlike second moments it does not hang on
    the far tails of the PSF.
    """
    transfer = torch.fft.fftn(psf.double()).abs()
    transfer = (transfer / transfer.ravel()[0]).cpu().numpy().ravel()
    k = torch.cartesian_prod(
        *[
            torch.fft.fftfreq(n, s, dtype=torch.float64)
            for n, s in zip(psf.shape, grid.spacing_um, strict=True)
        ]
    ).numpy()
    strong = transfer > 0.2
    return _fit_quadratic(k[strong], 2 * np.log(transfer[strong]))


def _along_axes(grid: Grid) -> Matrix:
    """Return ones on the diagonal where there is more than one voxel."""
    return np.diag((np.asarray(grid.shape) > 1) * 1.0)


def _base_covariance(grid: Grid) -> Matrix:
    spacing = np.asarray(grid.spacing_um) * (np.asarray(grid.shape) > 1)
    return np.diag((BASE_SIGMA_VOXELS * spacing) ** 2)


def _blurred_level(image: Tensor, grid: Grid, covariance_um2: Matrix, noise: ViewNoise) -> Level:
    """Return the blurred image, with a border of the blur's reach, at most a quarter of an axis."""
    reach = BORDER_SIGMAS * np.sqrt(np.diag(covariance_um2))
    quarter = (np.asarray(grid.shape) - 1) * grid.spacing_um / 4
    border = as_triple(np.minimum(reach, quarter), "border_um")
    blurred = gaussian_blurred(image, grid, covariance_um2)
    return Level(blurred, grid, border, noise=noise.blurred(grid, covariance_um2))
