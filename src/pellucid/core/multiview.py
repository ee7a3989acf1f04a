"""A simulated microscope with several arms: one object, known transforms, a PSF for each view.

Nothing here shares code with the fusion that it tests: views are sampled by cubic splines, blurred on
fine voxels and then thinned to the planes that the arm would record.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.signal import fftconvolve

from pellucid.core.geometry import Affine, Grid, Triple, as_triple
from pellucid.core.psf import Psf
from pellucid.core.simulation import Camera
from pellucid.errors import ParameterError

Volume = NDArray[np.floating]
Shape = tuple[int, int, int]

DUAL_DEG = (0.0, 90.0)
QUAD_DEG = (0.0, 45.0, 90.0, 135.0)


@dataclass(frozen=True)
class Arm:
    """One arm of the microscope.

    Parameters
    ----------
    world_to_view : where the arm stands; true, not nominal
    shape : voxels (z, y, x) of its recording, planes counted
    psf : on fine voxels (those of the world), in the arm's orientation, odd sizes
    planes_every : fine voxels between two recorded planes
    brightness : light collected relative to the first arm
    """

    world_to_view: Affine
    shape: Shape
    psf: Psf
    planes_every: int = 1
    brightness: float = 1.0


@dataclass(frozen=True)
class RecordedView:
    """What one arm recorded, on a grid of its own frame.

    `psf` is on the voxels of `grid`; `photons` are the mean photon numbers behind `counts`.
    """

    counts: NDArray[np.uint16]
    grid: Grid
    world_to_view: Affine
    psf: Psf
    photons: Volume


@dataclass(frozen=True)
class MultiViewRecording:
    """Views of one object, and the object: photons of the first arm per voxel of `world`."""

    views: tuple[RecordedView, ...]
    truth: Volume
    world: Grid


def turned_arms(
    angles_deg: Sequence[float],
    world: Grid,
    psfs: Sequence[Psf],
    *,
    shape: Shape | None = None,
    planes_every: int = 1,
    misplaced: float = 0.0,
    seed: int = 0,
) -> tuple[Arm, ...]:
    """Return arms turned about y by `angles_deg` around the middle of `world`.

    Parameters
    ----------
    world : fine isotropic grid of the truth
    psfs : one for each arm, or one for all, on voxels of the world
    shape : fine voxels that each arm sees; None: those of the world
    misplaced : 0 for nominal transforms; 1 moves all arms but the first by a turn of about 2 degrees,
        1 % of scale and shear, and 2 voxels, at random
    """
    rng = np.random.default_rng(seed)
    seen = world.shape if shape is None else shape
    spacing = np.asarray(world.spacing_um)
    arms = []
    for number, angle in enumerate(angles_deg):
        psf = psfs[number % len(psfs)]
        amount = misplaced if number else 0.0
        wrong = Affine.from_params(
            translation_um=amount * rng.normal(0, 2, 3) * spacing,
            rotation_rad=amount * rng.normal(0, math.radians(2.0), 3),
            scale=1 + amount * rng.normal(0, 0.01, 3),
            shear=amount * rng.normal(0, 0.01, 3),
            centre_um=world.centre_um,
        )
        middle = (np.asarray(seen) - 1) / 2 * spacing
        turn = Affine.rotation("y", math.radians(angle))
        placed = turn @ Affine.translation(-world.centre_um) @ wrong
        to_view = Affine.translation(middle) @ placed
        planes = -(-seen[0] // planes_every)
        arms.append(
            Arm(
                to_view.with_frames(source=world.frame, target=f"view {number}"),
                (planes, seen[1], seen[2]),
                psf,
                planes_every,
            )
        )
    return tuple(arms)


def record_views(
    structure: Callable[[Shape, int], Volume] | Volume,
    world: Grid,
    arms: Sequence[Arm],
    *,
    peak_photons: float,
    background_photons: float = 2.0,
    camera: Camera = Camera(),
    seed: int = 0,
) -> MultiViewRecording:
    """Record one object by all arms; light from outside every field falls in, as it does.

    Parameters
    ----------
    structure : one of `pellucid.core.simulation.STRUCTURES`, painted beyond `world` as far as the
        arms see; or a volume of `world`'s shape (a real one: semi-synthetic), dark beyond it
    world : isotropic grid of the truth
    peak_photons : mean photons in the brightest voxel of the first arm, without background
    """
    if max(world.spacing_um) > 1.001 * min(world.spacing_um):
        raise ParameterError(
            f"record_views: expected an isotropic world, got voxels of {world.spacing_um} um."
        )
    margin = _margin(world, arms)
    if callable(structure):
        wide = structure(_grown(world.shape, margin), seed)
    else:
        wide = np.pad(structure, [(m, m) for m in margin])
    origin = world.index_to_um.apply([-float(m) for m in margin])
    wide_grid = Grid(_grown(world.shape, margin), world.spacing_um, _triple(origin), world.frame)
    coefficients = ndimage.spline_filter(np.asarray(wide, dtype=np.float64))
    seen = [_seen(coefficients, wide_grid, arm) for arm in arms]
    scale = peak_photons / seen[0].max()
    views = []
    for number, (arm, image) in enumerate(zip(arms, seen, strict=True)):
        photons = image * (scale * arm.brightness) + background_photons
        spacing = _spacing(world, arm)
        grid = Grid(arm.shape, spacing, frame=arm.world_to_view.target)
        counts = camera(photons, seed + 1 + number)
        views.append(
            RecordedView(counts, grid, arm.world_to_view, recorded_psf(arm, spacing), photons)
        )
    inside = tuple(slice(m, m + n) for m, n in zip(margin, world.shape, strict=True))
    return MultiViewRecording(tuple(views), wide[inside] * scale, world)


def recorded_psf(arm: Arm, spacing_um: Triple) -> Psf:
    """Return the arm's PSF at the planes that it records: what its beads would show."""
    centre = arm.psf.centre[0]
    planes = arm.psf.values[centre % arm.planes_every :: arm.planes_every]
    # the centre stays at size // 2: an even number of planes loses the one without a partner
    below, above = centre // arm.planes_every, len(planes) - 1 - centre // arm.planes_every
    half = min(below, above)
    kept = planes[below - half : below + half + 1]
    return Psf.normalised(kept, spacing_um, arm.psf.notes)


def _seen(coefficients: Volume, wide: Grid, arm: Arm) -> Volume:
    """Return the blurred image of the object in the arm's voxels, without noise."""
    fine = _fine_shape(arm)
    reach = [n // 2 for n in arm.psf.shape]
    view_to_index = wide.um_to_index @ arm.world_to_view.inverse()
    linear = view_to_index.linear * np.asarray(wide.spacing_um)
    offset = view_to_index.apply(-np.asarray(reach) * np.asarray(wide.spacing_um))
    around = _grown(fine, (reach[0], reach[1], reach[2]))
    turned = ndimage.affine_transform(
        coefficients, linear, offset, output_shape=around, order=3, prefilter=False
    )
    blurred = fftconvolve(turned.clip(0), arm.psf.values, mode="valid").clip(0)
    return np.asarray(blurred[:: arm.planes_every])


def _margin(world: Grid, arms: Sequence[Arm]) -> Shape:
    """Return how many voxels around `world` any arm sees, its PSF's reach included."""
    low, high = np.zeros(3), np.asarray(world.shape) - 1.0
    for arm in arms:
        reach = np.asarray(arm.psf.shape) // 2
        ends = np.array([-reach, np.asarray(_fine_shape(arm)) - 1 + reach]) * world.spacing_um
        corners = np.array(
            [[ends[i, 0], ends[j, 1], ends[k, 2]] for i, j, k in np.ndindex(2, 2, 2)]
        )
        places = world.um_to_index.apply(arm.world_to_view.inverse().apply(corners))
        low, high = np.minimum(low, places.min(0)), np.maximum(high, places.max(0))
    grown = np.maximum(-low, high - np.asarray(world.shape) + 1)
    z, y, x = (int(n) + 2 for n in np.ceil(grown))
    return z, y, x


def _fine_shape(arm: Arm) -> Shape:
    return (arm.shape[0] - 1) * arm.planes_every + 1, arm.shape[1], arm.shape[2]


def _spacing(world: Grid, arm: Arm) -> Triple:
    z, y, x = world.spacing_um
    return z * arm.planes_every, y, x


def _grown(shape: Shape, margin: Shape) -> Shape:
    z, y, x = (n + 2 * m for n, m in zip(shape, margin, strict=True))
    return z, y, x


def _triple(values: NDArray[np.float64]) -> Triple:
    return as_triple(values, "origin_um")
