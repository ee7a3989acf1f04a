"""A PSF seen from another frame: turned, stretched and on other voxels."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import map_coordinates

from pellucid.core.geometry import Triple, as_triple
from pellucid.core.psf import Psf


def rotated_psf(
    psf: Psf, spacing_um: ArrayLike, linear: NDArray[np.float64], target_spacing_um: ArrayLike
) -> Psf:
    """Return the PSF read at `linear @ offset` for every offset of the target's voxels; sum 1.

    Parameters
    ----------
    psf : on voxels of `spacing_um` in its own frame
    linear : (3, 3) from directions of the target frame to directions of the PSF's frame: the linear
        part of `world_to_view` turns the PSF of a view into the world, its inverse the other way
    target_spacing_um : voxel size in the target frame, z, y, x

    Returns
    -------
    Psf of odd sizes that hold the turned box. Cubic interpolation; values below zero are clipped.
    """
    source = np.asarray(as_triple(spacing_um, "spacing_um"))
    target = np.asarray(as_triple(target_spacing_um, "target_spacing_um"))
    corners = (np.array(list(np.ndindex(2, 2, 2))) * 2 - 1) * (np.asarray(psf.shape) // 2) * source
    reach_um = np.abs(corners @ np.linalg.inv(linear).T).max(0)
    reach = [math.ceil(r / s - 1e-6) for r, s in zip(reach_um, target, strict=True)]
    index = np.stack(np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij"))
    offsets_um = index * target[:, None, None, None]
    places = np.einsum("ij,jzyx->izyx", linear, offsets_um) / source[:, None, None, None]
    places += np.asarray(psf.centre, dtype=np.float64)[:, None, None, None]
    values = map_coordinates(psf.values, places, order=3, mode="constant")
    spacing: Triple = as_triple(target, "target_spacing_um")
    return Psf.normalised(values, spacing, (*psf.notes, "turned into another frame"))
