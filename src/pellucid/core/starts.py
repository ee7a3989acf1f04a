"""Where to begin: the translation, and if need be the rotation, found by correlating whole views.

For each rotation to be tried, the normalised correlation of both views at every translation comes
from four Fourier transforms (after Padfield 2012): each view counts only where the other one is, so
a view that sticks out, or is mostly empty, is not pulled towards full overlap.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.core.blur_matching import downsampled, gaussian_blurred
from pellucid.core.fourier import Shape, fast_shape, irfftn, rfftn
from pellucid.core.geometry import Affine, Grid, as_triple
from pellucid.core.resampling import resample

Matrix = NDArray[np.float64]

HIGH_PASS_VOXELS = 4.0
"""Slower variation than this (shading, the envelope of the specimen) does not tell places apart."""

LEAST_ENERGY = 0.25
"""Share of a view's structure that must overlap before a correlation is believed at face value."""


@dataclass(frozen=True)
class Start:
    """A transform to begin from, and the correlation that speaks for it."""

    fixed_to_moving: Affine
    score: float


def view_turn(fixed: Grid, moving: Grid, axis: str | tuple[float, ...], angle_rad: float) -> Affine:
    """Return the nominal transform between two views: a turn that maps middle to middle.

    Parameters
    ----------
    axis, angle_rad : as in `Affine.rotation`: how directions in the fixed view appear in the
        moving view, for example ("y", pi / 2)
    """
    turn = Affine.rotation(axis, angle_rad)  # type: ignore[arg-type]
    shift = moving.centre_um - turn.linear @ fixed.centre_um
    return Affine.from_linear(
        turn.linear, translation_um=shift, source=fixed.frame, target=moving.frame
    )


def search(
    fixed: tuple[Tensor, Grid],
    moving: tuple[Tensor, Grid],
    linears: list[Matrix],
    *,
    voxel_um: float,
    keep: int,
    least_energy: float = LEAST_ENERGY,
) -> list[Start]:
    """Return the best translation for each of the best `keep` linear maps, best first.

    Parameters
    ----------
    linears : (3, 3) maps of directions from the fixed to the moving frame
    voxel_um : isotropic voxel of the search; views are averaged down to it
    least_energy : share of the structure that must overlap to be believed at face value
    """
    fixed_image, fixed_grid = _high_passed(*downsampled(*fixed, voxel_um))
    moving_image, moving_grid = _high_passed(*downsampled(*moving, voxel_um))
    lattice = _lattice(fixed_grid, voxel_um)
    turned = [
        Affine.from_linear(linear, source=fixed_grid.frame, target=moving_grid.frame)
        for linear in linears
    ]
    boxes = [_bounding(moving_grid, turn.inverse(), lattice) for turn in turned]
    largest = np.max([box.shape for box in boxes], axis=0)
    z, y, x = (int(a + b - 1) for a, b in zip(lattice.shape, largest, strict=True))
    same = Affine.identity(source=fixed_grid.frame, target=fixed_grid.frame)
    template = _Template.of(
        resample(fixed_image, fixed_grid, lattice, target_to_source=same),
        resample(torch.ones_like(fixed_image), fixed_grid, lattice, target_to_source=same),
        fast_shape((z, y, x)),
    )
    found = []
    for turn, box in zip(turned, boxes, strict=True):
        other = resample(moving_image, moving_grid, box, target_to_source=turn)
        there = resample(torch.ones_like(moving_image), moving_grid, box, target_to_source=turn)
        index, score = template.best_shift(other, there, least_energy)
        shift = index * np.asarray(lattice.spacing_um) + box.origin_um - lattice.origin_um
        found.append(
            Start(turn @ Affine.translation(shift, source=same.source, target=same.target), score)
        )
    found.sort(key=lambda start: -start.score)
    return found[:keep]


def from_projections(
    fixed: tuple[Tensor, Grid],
    moving: tuple[Tensor, Grid],
    linear: Matrix,
    *,
    voxel_um: float,
    angles_rad: list[float],
) -> list[Affine]:
    """Return two transforms to begin from, out of maximum projections along the axes.

    Each pair of projections tells a shift along two axes and a turn about the third: planes are
    searched in place of volumes. The first transform only shifts, the second turns as well; turns
    about several axes at once change what projections show, and then the search over rotations of
    whole volumes finds more.

    Parameters
    ----------
    linear : (3, 3), directions from the fixed to the moving frame as far as they are known
    voxel_um : isotropic voxel of the projections
    angles_rad : turns to try about each axis, none (0) among them
    """
    fixed_image, fixed_grid = downsampled(*fixed, voxel_um)
    moving_image, moving_grid = downsampled(*moving, voxel_um)
    turn = Affine.from_linear(linear, source=fixed_grid.frame, target=moving_grid.frame)
    lattice = _lattice(fixed_grid, voxel_um)
    box = _bounding(moving_grid, turn.inverse(), lattice)
    same = Affine.identity(source=fixed_grid.frame, target=fixed_grid.frame)
    here = resample(fixed_image - fixed_image.min(), fixed_grid, lattice, target_to_source=same)
    there = resample(moving_image - moving_image.min(), moving_grid, box, target_to_source=turn)
    starts = []
    for angles in ([0.0], angles_rad):
        rotation, score, shift = np.eye(3), np.zeros(3), np.zeros(3)
        for axis, name in enumerate("zyx"):
            if lattice.shape[axis] > 1 and 1 in lattice.shape:
                continue
            turns = [Affine.rotation(name, a).linear.copy() for a in angles]  # type: ignore[arg-type]
            pair = _projected(here, lattice, axis), _projected(there, box, axis)
            best = search(*pair, turns, voxel_um=voxel_um, keep=1, least_energy=0.6)[0]
            centre = pair[0][1].centre_um
            moved = best.fixed_to_moving.apply(centre) - centre
            # each axis is seen twice: the better match is believed
            better = (np.arange(3) != axis) & (best.score > score)
            shift, score = np.where(better, moved, shift), np.where(better, best.score, score)
            rotation = best.fixed_to_moving.linear @ rotation
        about = Affine.from_linear(
            rotation, centre_um=lattice.centre_um, translation_um=shift,
            source=fixed_grid.frame, target=fixed_grid.frame,
        )  # fmt: skip
        starts.append(turn @ about)
    return starts


def _projected(image: Tensor, grid: Grid, axis: int) -> tuple[Tensor, Grid]:
    """Return the maximum along an axis, as an image of one plane at 0 along that axis."""
    shape, origin = list(grid.shape), list(grid.origin_um)
    origin[axis], shape[axis] = 0.0, 1
    z, y, x = shape
    flat = Grid((z, y, x), grid.spacing_um, as_triple(origin, "origin_um"), grid.frame)
    return image.amax(axis, keepdim=True), flat


def turns_within(angle_rad: float, step_rad: float) -> list[Matrix]:
    """Return rotations at most `angle_rad` from none, about `step_rad` apart, none first.

    Super-Fibonacci spirals (Alexa 2022) spread quaternions evenly over all rotations; those within
    the angle are kept.
    """
    # the volume of all rotations is 8 pi^2 in units of angle^3; spirals pack at about 0.7
    count = int(np.ceil(8 * np.pi**2 / (0.7 * step_rad**3)))
    s = np.arange(count) + 0.5
    near, far = np.sqrt(s / count), np.sqrt(1 - s / count)
    alpha, beta = 2 * np.pi * s / np.sqrt(2), 2 * np.pi * s / 1.533751168755204288118041
    w = far * np.cos(beta)
    vector = np.stack([near * np.sin(alpha), near * np.cos(alpha), far * np.sin(beta)], axis=1)
    vector *= np.where(w < 0, -1, 1)[:, None]
    half = np.arccos(np.clip(np.abs(w), 0, 1))
    chosen = np.flatnonzero(2 * half <= angle_rad)
    chosen = chosen[np.argsort(half[chosen])]
    turns = [
        Affine.rotation(as_triple(vector[i], "axis"), 2 * half[i]).linear.copy() for i in chosen
    ]
    return [np.eye(3), *turns]


def _high_passed(image: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
    spacing = np.asarray(grid.spacing_um) * (np.asarray(grid.shape) > 1)
    covariance = np.diag((HIGH_PASS_VOXELS * max(spacing)) ** 2 * (spacing > 0))
    return image - gaussian_blurred(image, grid, covariance), grid


def _lattice(grid: Grid, voxel_um: float) -> Grid:
    flat = [n == 1 for n in grid.shape]
    spacing = [s if f else voxel_um for s, f in zip(grid.spacing_um, flat, strict=True)]
    return grid.with_spacing(spacing)


def _bounding(moving: Grid, moving_to_fixed: Affine, lattice: Grid) -> Grid:
    """Return the lattice's voxels around the moving view, turned like the fixed view."""
    corners = moving_to_fixed.apply(moving.corners_um())
    low, high = corners.min(0), corners.max(0)
    z, y, x = (int(n) for n in np.ceil((high - low) / lattice.spacing_um + 1 - 1e-6))
    return Grid((z, y, x), lattice.spacing_um, as_triple(low, "origin_um"), lattice.frame)


@dataclass(frozen=True)
class _Template:
    """Spectra of the fixed view, its square and its support, on one FFT grid."""

    image: Tensor
    square: Tensor
    support: Tensor
    shape: Shape

    @classmethod
    def of(cls, image: Tensor, support: Tensor, shape: Shape) -> "_Template":
        squared, seen = rfftn(image.square(), shape), rfftn(support, shape)
        return cls(rfftn(image, shape).conj(), squared.conj(), seen.conj(), shape)

    def best_shift(
        self, other: Tensor, there: Tensor, least_energy: float
    ) -> tuple[NDArray[np.int64], float]:
        """Return the shift (voxels) that matches `other`, seen where `there` is 1; its score."""
        product = irfftn(self.image * rfftn(other, self.shape), self.shape)
        energy = irfftn(self.square * rfftn(there, self.shape), self.shape)
        other_energy = irfftn(self.support * rfftn(other.square(), self.shape), self.shape)
        energy = torch.maximum(energy, least_energy * energy.max())
        other_energy = torch.maximum(other_energy, least_energy * other_energy.max())
        score = product / (energy * other_energy).sqrt().clamp_min(1e-30)
        best = int(score.argmax())
        index = np.array(np.unravel_index(best, self.shape))
        # shifts wrap: those beyond the moving view are negative ones
        index = np.where(index >= np.array(other.shape), index - np.array(self.shape), index)
        return index, float(score.ravel()[best])
