"""The operator of each view of a joint problem: the object sampled behind the image, and blurred.

    Blur(psf) @ SlabSample(domain, behind, world_to_view)

`behind` is the view's own voxels, continued beyond its image by the reach of the PSF; `domain` is the
object's grid, which covers what is behind every image.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pellucid.core.fourier import Shape
from pellucid.core.geometry import Affine, Grid, as_triple
from pellucid.core.operators import Extended
from pellucid.core.problem import Window


def extended_grid(grid: Grid, blur: Extended) -> Grid:
    """Return the grid of the object behind a blurred image: object voxel = image voxel + margin."""
    origin = grid.index_to_um.apply(-np.asarray(blur.margin, dtype=np.float64))
    return Grid(blur.domain_shape, grid.spacing_um, as_triple(origin, "origin"), grid.frame)


def widened(
    world: Grid,
    world_to_views: Sequence[Affine],
    behind: Sequence[Grid],
    blurs: Sequence[Extended],
    displaced_um: float = 0.0,
) -> tuple[Grid, Window]:
    """Return `world` grown over all that sends light into the views, and where `world` lies in it.

    Parameters
    ----------
    displaced_um : how far fields take points from where `world_to_views` have them, at most
    """
    low, high = np.zeros(3), np.asarray(world.shape) - 1.0
    for world_to_view, grid, blur in zip(world_to_views, behind, blurs, strict=True):
        corners = np.array(list(np.ndindex(2, 2, 2))) * (_reached(blur) - 1)
        view_to_index = world.um_to_index @ world_to_view.inverse() @ grid.index_to_um
        places: NDArray[np.float64] = view_to_index.apply(corners)
        low, high = np.minimum(low, places.min(0)), np.maximum(high, places.max(0))
    if displaced_um > 0:
        further = np.where(np.asarray(world.shape) > 1, displaced_um / np.asarray(world.spacing_um), 0)
        low, high = low - further, high + further
    before = -np.floor(low + 1e-6).astype(int)
    z, y, x = (int(n) for n in np.ceil(high - 1e-6).astype(int) + before + 1)
    origin = as_triple(world.index_to_um.apply(-before.astype(float)), "origin")
    inside = [slice(int(b), int(b) + n) for b, n in zip(before, world.shape, strict=True)]
    return Grid((z, y, x), world.spacing_um, origin, world.frame), (inside[0], inside[1], inside[2])


def reached_box(
    grid: Grid, world_to_view: Affine, psf: Shape, world: Grid, displaced_um: float = 0.0
) -> Window | None:
    """Return the voxels of a view that light from `world` reaches through a PSF; None where none is.

    `displaced_um` is how far a field takes points from where `world_to_view` has them, at most.
    """
    corners = grid.um_to_index.apply(world_to_view.apply(world.corners_um()))
    # light is displaced in the world, where the view's transform does not stretch by much
    displaced = np.ceil(displaced_um / np.asarray(grid.spacing_um)).astype(int)
    reach = [n // 2 + 1 for n in psf] + np.where(np.asarray(grid.shape) > 1, displaced, 0)
    start = np.maximum(np.floor(corners.min(0)).astype(int) - reach, 0)
    stop = np.minimum(np.ceil(corners.max(0)).astype(int) + reach + 1, grid.shape)
    if (start >= stop).any():
        return None
    z, y, x = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    return z, y, x


def _reached(blur: Extended) -> NDArray[np.int64]:
    """Return the shape of the object that the image sees; the blur's domain is an FFT size larger."""
    return np.add(blur.range_shape, blur.psf.shape) - 1


def sharpened(psf: NDArray[np.float64], variance_px: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the PSF that, after a blur of small variance on each axis, is `psf`; the same sum.

    Sampling the object blurs it a little, and the microscope did not: without this the restored
    object would be too sharp. To second order, psf - sum_d variance_d / 2 d^2 psf / dx_d^2.
    """
    result = psf.copy()
    for axis, variance in enumerate(variance_px):
        if psf.shape[axis] > 1:
            edges = [(1, 1) if a == axis else (0, 0) for a in range(3)]
            result -= variance / 2 * np.diff(np.pad(psf, edges), 2, axis)
    result = np.maximum(result, 0)
    normalised: NDArray[np.float64] = result * (psf.sum() / result.sum())
    return normalised
