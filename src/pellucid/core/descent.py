"""One descent from coarse to fine: blur both views alike, align, measure what is left, refine."""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pellucid.core.blur_matching import (
    difference_left,
    downsampled,
    estimated_difference,
    from_difference,
    matched_levels,
)
from pellucid.core.gauss_newton import (
    Fit,
    Level,
    Model,
    Points,
    align,
    corner_sigma_um,
    strongest_gradients,
)
from pellucid.core.geometry import Affine, Grid
from pellucid.core.view_noise import ViewNoise, measured_noise
from pellucid.core.verdict import Agreement, agreement, correlation, shared_volume

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

BLUR_ROUNDS, BLUR_TOLERANCE_VOXELS = 4, 0.25
"""Corrections of the blur difference at most, and the sigma (voxels) below which one is no more."""

LEAST_NCC = 0.5
"""Of views that agree less, one cannot say that they differ by a blur."""

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
        best.align(voxel_um, model)
        # smooth specimens trade a little blur for a little stretch: settle both together
        rounds = BLUR_ROUNDS if voxels(fixed.grid, voxel_um) <= JUDGED_VOXELS else 0
        while rounds and best.measure_blur():
            best.align(voxel_um, model)
            rounds -= 1
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
        self.blur_known = fixed.psf_um2 is not None and moving.psf_um2 is not None
        self.fit = Fit(start, -1.0, -1.0, 0, 0, False)
        self.iterations = 0
        sizes = voxel_sizes(fixed.grid)
        self.judging_um = next(
            (h for h in reversed(sizes) if voxels(fixed.grid, h) <= JUDGED_VOXELS), sizes[0]
        )
        self.difference = self._difference()

    def _difference(self) -> Matrix:
        """Return the difference of blur: of the PSFs as they lie now, or else estimated."""
        fixed, moving = self.fixed, self.moving
        if fixed.psf_um2 is not None and moving.psf_um2 is not None:
            back = np.linalg.inv(self.fit.fixed_to_moving.linear)
            return fixed.psf_um2 - back @ moving.psf_um2 @ back.T
        pair = fixed.at(self.judging_um), moving.at(self.judging_um)
        return self._bounded(estimated_difference(*pair, self.start))

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
        first, second = matched_levels(*pair, at, blur, noise)
        return (
            replace(first, mask=self.fixed.mask_at(voxel_um)),
            replace(second, mask=self.moving.mask_at(voxel_um)),
        )

    def align(self, voxel_um: float, model: Model, share: float = 0.3) -> None:
        """Align at one level."""
        if self.blur_known:
            self.difference = self._difference()
        self.levels = self._levels(voxel_um)
        self.points: Points = strongest_gradients(self.levels[0], MOST_POINTS, share)
        start = self.fit.fixed_to_moving
        self.fit = align(*self.levels, start, model, points=self.points)
        self.iterations += self.fit.iterations

    def promise(self) -> float:
        """Return the correlation, less where little is shared: little agrees with anything."""
        shared = shared_volume(self.fixed.grid, self.moving.grid, self.fit.fixed_to_moving)
        return float(max(self.fit.ncc, 0.0) * np.sqrt(min(1.0, 2 * shared)))

    def measure_blur(self) -> bool:
        """Correct the difference of blur by what is left of it; return whether that was much."""
        if self.blur_known or self.fit.ncc < LEAST_NCC:
            return False
        left = difference_left(*self.levels, self.fit.fixed_to_moving)
        before, self.difference = self.difference, self._bounded(self.difference + left)
        voxel_um = min(self.levels[0].grid.spacing_um)
        return bool(
            np.abs(self.difference - before).max() > (BLUR_TOLERANCE_VOXELS * voxel_um) ** 2
        )

    def judged(self, nominal: Affine, model: Model, start: str) -> Attempt:
        """Return where the descent ended, with the verdict's measurements."""
        at = self.fit.fixed_to_moving
        # residuals are alike within about two of the blur's widths
        widest = float(np.abs(np.linalg.eigvalsh(self.difference)).max()) ** 0.5
        block_um = 4 * max(widest, *self.levels[0].grid.spacing_um)
        sigma = corner_sigma_um(
            *self.levels,
            at,
            model,
            points=self.points,
            block_um=block_um,
            blur_unknown=not self.blur_known,
        )
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
