"""One descent from coarse to fine: blur both views alike, align, measure what is left, refine."""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pellucid.core.blur_matching import (
    downsampled,
    estimated_difference,
    from_difference,
    matched_levels,
)
from pellucid.core.fit_columns import (
    PAIRS,
    Level,
    Points,
    columns_at,
    strongest_gradients,
    with_curvatures,
)
from pellucid.core.fit_uncertainty import Uncertainty, uncertainty
from pellucid.core.gauss_newton import Fit, Model, align, half_um, symmetric
from pellucid.core.geometry import Affine, Grid
from pellucid.core.verdict import Agreement, agreement, correlation, shared_volume
from pellucid.core.view_noise import ViewNoise, measured_noise

Matrix = NDArray[np.float64]

FINEST_VOXELS = 2_500_000
"""Larger views are aligned on averaged voxels: by then the error is far below one of them."""

JUDGED_VOXELS = 400_000
"""Size at which blur differences and the verdict are measured: enough voxels, little time."""

COARSEST_VOXELS = 16
"""Longest axis of the first level, in 3D; planes need more, to have voxels enough for a fit."""

COARSEST_PIXELS = 48
"""Longest axis of the first level, in 2D."""

MOST_POINTS = 40_000
"""More voxels of strong gradient than this add time but no exactness (their blur overlaps)."""

BLUR_POINTS = 16_000
"""Voxels that tell transform and difference of blur together."""

TOLERANCE, COARSE_TOLERANCE = 0.005, 0.03
"""Of a level's voxel: a corner's last step, on the finest level and on those that lead to it."""

BLUR_ROUNDS, BLUR_TOLERANCE_VOXELS = 4, 0.25
"""Corrections of the blur difference at most, and the sigma (voxels) below which one is no more."""

LEAST_NCC = 0.5
"""Of views that agree less, one cannot say that they differ by a blur."""

NOISY_CURVATURE, SMOOTHER, MOST_SMOOTHING = 0.3, 1.4, 1 / 16
"""Share of noise in what tells blurs apart, above which both views are smoothed more, by this
factor, up to this share of the view's length: what noise hides it also biases."""

SPECTRUM_TRUST, SPECTRUM_TRUST_VOXELS2 = 1.0, 2.0
"""One deviation of a first estimate of the difference of blur, as a share of it, and beside it."""

PSF_TRUST = 0.15
"""Of a PSF's widths, one standard deviation: how far the PSF that is given is that of the views."""

SAMPLING_BLUR_VOXELS2 = 0.15
"""What averaging over voxels and interpolation add to a difference of blur, one deviation."""

WIDEST_BLUR = 1 / 12
"""Of the view's length, one sigma: what is estimated to be wider is something else than blur."""


@dataclass(frozen=True)
class View:
    """A view to be registered; `psf_um2` is the covariance of its PSF where that is known."""

    image: Tensor
    grid: Grid
    mask: Tensor | None = None
    psf_um2: Matrix | None = None
    pyramid: dict[float, tuple[Tensor, Grid]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    noise: list[ViewNoise] = field(default_factory=list, init=False, repr=False, compare=False)

    def at(self, voxel_um: float) -> tuple[Tensor, Grid]:
        """Return the view averaged down to voxels of about `voxel_um`; averaged once, then kept."""
        if voxel_um not in self.pyramid:
            finer = [h for h in self.pyramid if h < voxel_um]
            source = self.pyramid[max(finer)] if finer else (self.image, self.grid)
            self.pyramid[voxel_um] = downsampled(*source, voxel_um)
        return self.pyramid[voxel_um]

    def noise_at(self, voxel_um: float) -> ViewNoise:
        """Return the noise of `at(voxel_um)`; measured once, then kept."""
        if not self.noise:
            self.noise.append(measured_noise(self.image))
        grid = self.at(voxel_um)[1]
        return self.noise[0].averaged(self.image.numel() // int(np.prod(grid.shape)))

    def mask_at(self, voxel_um: float) -> Tensor | None:
        """Return 1 where all voxels averaged count."""
        if self.mask is None:
            return None
        return (downsampled(self.mask, self.grid, voxel_um)[0] > 0.999).to(self.mask)


@dataclass(frozen=True)
class BlurPrior:
    """What given PSFs say about the difference of blur, and how far that is to be trusted.

    `covariance_um4` is that of the entries zz, zy, zx, yy, yx, xx.
    """

    difference_um2: Matrix
    covariance_um4: Matrix

    @classmethod
    def of(cls, fixed_um2: Matrix, moving_um2: Matrix, voxel_um: float) -> "BlurPrior":
        """Return the prior from the covariances of both PSFs, in the fixed frame."""
        variances = []
        for i, j in PAIRS:
            product = sum(c[i, i] * c[j, j] + c[i, j] ** 2 for c in (fixed_um2, moving_um2))
            variances.append(2 * PSF_TRUST**2 * product + (SAMPLING_BLUR_VOXELS2 * voxel_um**2) ** 2)
        return cls(fixed_um2 - moving_um2, np.diag(variances))

    @classmethod
    def estimated(cls, difference_um2: Matrix, voxel_um: float) -> "BlurPrior":
        """Return the prior from a first estimate out of the views' spectra."""
        size = np.sqrt(np.abs(np.diag(difference_um2)))
        own = SPECTRUM_TRUST * np.outer(size, size) + SPECTRUM_TRUST_VOXELS2 * voxel_um**2
        return cls(difference_um2, np.diag([own[i, j] ** 2 for i, j in PAIRS]))

    def blended(self, measured_um2: Matrix, covariance_um4: Matrix) -> Matrix:
        """Return the mean of prior and measurement, each by its precision."""
        apart = measured_um2 - self.difference_um2
        entries = np.array([apart[i, j] for i, j in PAIRS])
        share = self.covariance_um4 @ np.linalg.pinv(
            covariance_um4 + self.covariance_um4, hermitian=True
        )
        return self.difference_um2 + symmetric(share @ entries)


@dataclass(frozen=True)
class Attempt:
    """Where one descent ended, and what it is worth."""

    start: str
    nominal: Affine
    fit: Fit
    agreement: Agreement
    ncc_before: float
    difference_um2: Matrix
    corner_sigma_um: Matrix
    length_um: float
    iterations: int


def descend(
    fixed: View, moving: View, candidates: list[Affine], nominal: Affine, model: Model, start: str
) -> Attempt:
    """Return where the best of the candidates ends; they compete on the coarse levels."""
    sizes = voxel_sizes(fixed.grid)
    # several starts compete on the first level and, where it is still small, on the second
    small = 2 * _coarsest(fixed.grid)
    coarse = [h for h in sizes if h == sizes[0] or longest_axis(fixed.grid, h) <= small]
    trials = [_Descent(fixed, moving, candidate) for candidate in candidates]
    for trial in trials:
        for voxel_um in coarse:
            if model in ("similarity", "affine"):
                trial.align(voxel_um, "rigid", share=0.5)
            trial.align(voxel_um, model, share=0.5)
    best = max(trials, key=_Descent.promise)
    for voxel_um in sizes[len(coarse) :]:
        # smooth specimens trade a little blur for a little stretch: settle both together
        if voxel_um == best.judging_um:
            best.prepare(voxel_um)
            best.settle(voxel_um, model)
            if voxel_um != sizes[-1]:
                continue
        best.align(voxel_um, model)
    return best.judged(nominal, model, start)


def voxel_sizes(grid: Grid) -> list[float]:
    """Return the isotropic voxels of the levels, coarsest first, each half of the one before."""
    finest = min(s for s, n in zip(grid.spacing_um, grid.shape, strict=True) if n > 1)
    while voxels(grid, finest) > FINEST_VOXELS:
        finest *= 2
    sizes = [finest]
    while longest_axis(grid, 2 * sizes[0]) >= _coarsest(grid):
        sizes.insert(0, 2 * sizes[0])
    return sizes


def peak_bytes(fixed: Grid, moving: Grid) -> int:
    """Return the memory that registering two views takes beyond them as they are given.

    Each view as float32 and a check of it; 60 bytes per voxel of the finest level that is fitted:
    its blur, spectra and gradients. Measured at 128^3 and 256^3 with `benchmarks/registration.py
    --memory`: 0.5 and 0.9 of this.
    """
    given = float(np.prod(fixed.shape) + np.prod(moving.shape))
    finest_um = voxel_sizes(fixed)[-1]
    return int(5 * given + 60 * max(voxels(view, finest_um) for view in (fixed, moving)))


def _coarsest(grid: Grid) -> int:
    return COARSEST_PIXELS if 1 in grid.shape else COARSEST_VOXELS


def longest_axis(grid: Grid, voxel_um: float) -> float:
    """Return how many voxels of `voxel_um` the longest axis takes."""
    return max(e for e, n in zip(grid.extent_um, grid.shape, strict=True) if n > 1) / voxel_um


def voxels(grid: Grid, voxel_um: float) -> float:
    """Return how many voxels are left when fine axes are averaged down to `voxel_um`."""
    return float(
        np.prod(
            [
                max(1.0, n * min(1.0, s / voxel_um))
                for n, s in zip(grid.shape, grid.spacing_um, strict=True)
            ]
        )
    )


class _Descent:
    """The state of one descent: the transform, and the difference of blur known so far."""

    def __init__(self, fixed: View, moving: View, start: Affine) -> None:
        self.fixed, self.moving, self.start = fixed, moving, start
        self.psfs_given = fixed.psf_um2 is not None and moving.psf_um2 is not None
        self.fit = Fit(start, -1.0, -1.0, 0, 0, False)
        self.iterations = 0
        self.smoothing_um = 0.0
        sizes = voxel_sizes(fixed.grid)
        self.finest_um = sizes[-1]
        self.judging_um = next(
            (h for h in reversed(sizes) if voxels(fixed.grid, h) <= JUDGED_VOXELS), sizes[0]
        )
        if self.psfs_given:
            self.prior = self._prior_now()
            self.difference = self.prior.difference_um2
        else:
            pair = fixed.at(self.judging_um), moving.at(self.judging_um)
            self.difference = self._bounded(estimated_difference(*pair, start))
            self.prior = BlurPrior.estimated(self.difference, self.judging_um)

    def _prior_now(self) -> "BlurPrior":
        """Return what the PSFs, as they lie now, say about the difference of blur."""
        assert self.fixed.psf_um2 is not None
        assert self.moving.psf_um2 is not None
        back = np.linalg.inv(self.fit.fixed_to_moving.linear)
        voxel_um = max(self.fixed.grid.spacing_um)
        return BlurPrior.of(self.fixed.psf_um2, back @ self.moving.psf_um2 @ back.T, voxel_um)

    def _bounded(self, difference: Matrix) -> Matrix:
        most = (WIDEST_BLUR * max(self.fixed.grid.extent_um)) ** 2
        values, axes = np.linalg.eigh(difference)
        bounded: Matrix = (axes * np.clip(values, -most, most)) @ axes.T
        return bounded

    def _levels(self, voxel_um: float) -> tuple[Level, Level]:
        at = self.fit.fixed_to_moving
        blur = from_difference(self.difference, at)
        pair = self.fixed.at(voxel_um), self.moving.at(voxel_um)
        noise = self.fixed.noise_at(voxel_um), self.moving.noise_at(voxel_um)
        first, second = matched_levels(*pair, at, blur, noise, self.smoothing_um)
        return (
            replace(first, mask=self.fixed.mask_at(voxel_um)),
            replace(second, mask=self.moving.mask_at(voxel_um)),
        )

    def prepare(self, voxel_um: float, share: float = 0.3) -> None:
        """Blur both views alike at one level, and choose the points to align on."""
        if self.psfs_given:
            # the PSFs lie in their views, and so turn with the transform
            prior = self._prior_now()
            self.difference = self.difference + prior.difference_um2 - self.prior.difference_um2
            self.prior = prior
        self.levels = self._levels(voxel_um)
        self.points: Points = strongest_gradients(self.levels[0], MOST_POINTS, share)

    def align(self, voxel_um: float, model: Model, share: float = 0.3) -> None:
        """Align at one level."""
        self.prepare(voxel_um, share)
        start, close = self.fit.fixed_to_moving, self._tolerance(voxel_um)
        self.fit = align(*self.levels, start, model, points=self.points, tolerance=close)
        self.iterations += self.fit.iterations

    def _tolerance(self, voxel_um: float) -> float:
        return TOLERANCE if voxel_um == self.finest_um else COARSE_TOLERANCE

    def promise(self) -> float:
        """Return the correlation, less where little is shared: little agrees with anything."""
        shared = shared_volume(self.fixed.grid, self.moving.grid, self.fit.fixed_to_moving)
        return float(max(self.fit.ncc, 0.0) * np.sqrt(min(1.0, 2 * shared)))

    def settle(self, voxel_um: float, model: Model) -> None:
        """Settle transform and difference of blur together."""
        self.points = self.points.every(max(1, len(self.points.values) // BLUR_POINTS))
        for _ in range(BLUR_ROUNDS):
            if not self.measure_blur(voxel_um, model):
                break

    def measure_blur(self, voxel_um: float, model: Model) -> bool:
        """Settle transform and difference of blur together; return whether the latter changed much."""
        if self.fit.ncc < LEAST_NCC:
            return False
        points = self._quiet_points(voxel_um)
        start, close = self.fit.fixed_to_moving, self._tolerance(voxel_um)
        fit = align(*self.levels, start, model, points=points, tolerance=close)
        self.iterations += fit.iterations
        sure = self._uncertainty(model, points)
        if fit.blur_um2 is None or sure is None:
            return False
        before = self.difference
        after = self.prior.blended(before + fit.blur_um2, sure.of_blur)
        self.fit, self.difference = fit, self._bounded(after)
        changed = np.abs(self.difference - before).max()
        if changed > (BLUR_TOLERANCE_VOXELS * voxel_um) ** 2:
            self.levels = self._levels(voxel_um)
            self.points = strongest_gradients(self.levels[0], BLUR_POINTS)
            return True
        return False

    def _quiet_points(self, voxel_um: float) -> Points:
        """Return the points with curvatures, smoothed until noise is the least part of these."""
        at = self.fit.fixed_to_moving
        while True:
            points = with_curvatures(self.points, *self.levels, at)
            share = self._noise_of_curvature(points)
            wider = SMOOTHER * max(self.smoothing_um, *self.levels[0].grid.spacing_um)
            if share < NOISY_CURVATURE or wider > MOST_SMOOTHING * max(self.fixed.grid.extent_um):
                return points
            self.smoothing_um = wider
            self.levels = self._levels(voxel_um)
            self.points = strongest_gradients(self.levels[0], BLUR_POINTS)

    def _noise_of_curvature(self, points: Points) -> float:
        grid, at = self.levels[0].grid, self.fit.fixed_to_moving
        few = points.every(8)
        columns = columns_at(few, self.levels[1], at, grid.centre_um, half_um(grid))
        return 0.0 if columns is None else columns.noise_of_curvature()

    def _uncertainty(self, model: Model, points: Points) -> Uncertainty | None:
        # residuals are alike within about two of the blur's widths
        widest = float(np.abs(np.linalg.eigvalsh(self.difference)).max()) ** 0.5
        block_um = 4 * max(widest, *self.levels[0].grid.spacing_um)
        at = self.fit.fixed_to_moving
        return uncertainty(*self.levels, at, model, points=points, block_um=block_um)

    def judged(self, nominal: Affine, model: Model, start: str) -> Attempt:
        """Return where the descent ended, with the verdict's measurements."""
        at = self.fit.fixed_to_moving
        points = self.points.every(max(1, len(self.points.values) // BLUR_POINTS))
        sure = self._uncertainty(model, with_curvatures(points, *self.levels, at))
        if sure is not None:
            sure = sure.knowing_blur(self.prior.covariance_um4)
        sigma = np.full(8, np.inf) if sure is None else sure.corner_sigma_um()
        levels = self._levels(self.judging_um)
        return Attempt(
            start=start,
            nominal=nominal,
            fit=self.fit,
            agreement=agreement(*levels, at),
            ncc_before=correlation(*levels, self.start),
            difference_um2=self.difference,
            corner_sigma_um=sigma,
            length_um=max(self.fixed.grid.extent_um),
            iterations=self.iterations,
        )
