"""A simulated microscope: objects with a known truth, recorded with known optics and realistic noise.

Tests, benchmarks, the demonstration and the training of networks all record through this one
microscope. Objects are painted in voxels with anti-aliased edges, so that their spectrum is that of a
continuous object; `record` blurs, adds background, counts photons, and passes them through a camera.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.signal import fftconvolve

from pellucid.errors import InputError, ParameterError

Volume = NDArray[np.floating]
Shape = tuple[int, int, int]


def filaments(
    shape: Shape, seed: int, *, count: int | None = None, radius_px: float = 0.9
) -> Volume:
    """Return (z, y, x) smooth random filaments of unequal brightness, like microtubules; 0 to about 1.

    The voxels are taken as isotropic; `count` defaults to one filament per 16,000 voxels.
    """
    rng = np.random.default_rng(seed)
    size = np.array(shape)
    volume = np.zeros(shape)
    for _ in range(_count(count, shape, per=16_000)):
        step, steps = 0.5, int(4 * size.max())
        kinks = ndimage.gaussian_filter1d(rng.normal(size=(steps, 3)), 40, axis=0) * 12
        direction = rng.normal(size=3) * (size > 1) + kinks * (size > 1)
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        path = rng.uniform(0, size) + step * np.cumsum(direction, axis=0)
        path = path - path[steps // 2] + rng.uniform(0, size)
        path[:, size == 1] = 0
        _splat(volume, path, rng.uniform(0.3, 1.0) * step)
    sigma = np.where(size > 1, radius_px, 0)
    return _unit_peak(ndimage.gaussian_filter(volume, sigma, mode="constant"))


def shells(
    shape: Shape, seed: int, *, count: int | None = None, thickness_px: float = 1.5
) -> Volume:
    """Return (z, y, x) hollow ellipsoids of unequal size and brightness, like membranes; 0 to about 1."""
    rng = np.random.default_rng(seed)
    volume = np.zeros(shape)
    for _ in range(_count(count, shape, per=40_000)):
        radius = rng.uniform(5, 14) * rng.uniform(0.7, 1.3, 3)
        box, distance = _ellipsoid(shape, rng.uniform(0, shape), radius, margin=3 * thickness_px)
        volume[box] += rng.uniform(0.3, 1.0) * np.exp(-0.5 * (distance / (thickness_px / 2)) ** 2)
    return _unit_peak(volume)


def points(shape: Shape, seed: int, *, count: int | None = None) -> Volume:
    """Return (z, y, x) sub-voxel points of unequal brightness, like vesicles or spots; 0 to about 1."""
    rng = np.random.default_rng(seed)
    size = np.array(shape)
    volume = np.zeros(shape)
    for _ in range(_count(count, shape, per=3_000)):
        place = np.where(size > 1, rng.uniform(0, size), 0)[None]
        _splat(volume, place, rng.uniform(0.2, 1.0))
    return _unit_peak(ndimage.gaussian_filter(volume, np.where(size > 1, 0.6, 0), mode="constant"))


def nuclei(shape: Shape, seed: int, *, count: int | None = None) -> Volume:
    """Return (z, y, x) textured ellipsoids, like stained nuclei with chromatin; 0 to about 1."""
    rng = np.random.default_rng(seed)
    volume = np.zeros(shape)
    sigma = np.where(np.array(shape) > 1, 1.0, 0)
    texture = ndimage.gaussian_filter(rng.normal(size=shape), 1.5 * sigma)
    texture = np.exp(0.8 * texture / texture.std())
    for _ in range(_count(count, shape, per=30_000)):
        radius = rng.uniform(8, 16) * rng.uniform(0.8, 1.2, 3)
        box, distance = _ellipsoid(shape, rng.uniform(0, shape), radius, margin=3)
        volume[box] = np.maximum(volume[box], rng.uniform(0.4, 1.0) / (1 + np.exp(2 * distance)))
    return _unit_peak(volume * texture)


STRUCTURES: dict[str, Callable[[Shape, int], Volume]] = {
    "filaments": filaments,
    "shells": shells,
    "points": points,
    "nuclei": nuclei,
}


@dataclass(frozen=True)
class Camera:
    """counts = gain * Poisson(photons) + Normal(offset, read_noise), rounded and clipped to uint16.

    Parameters
    ----------
    gain : counts per photo-electron
    offset : counts at no light
    read_noise : standard deviation in counts
    saturation : counts above which the camera clips
    """

    gain: float = 1.0
    offset: float = 100.0
    read_noise: float = 2.0
    saturation: int = 65535

    def __call__(self, photons: Volume, seed: int) -> NDArray[np.uint16]:
        """Return uint16 counts for the mean photon numbers `photons`, any shape."""
        rng = np.random.default_rng(seed)
        counts = self.gain * rng.poisson(photons) + rng.normal(
            self.offset, self.read_noise, photons.shape
        )
        return np.clip(np.rint(counts), 0, self.saturation).astype(np.uint16)


@dataclass(frozen=True)
class Recording:
    """What the simulated microscope saw, and the truth behind it; all (z, y, x) on one grid.

    `truth` and `photons` are mean photon numbers per voxel: of the object, and of its blurred image
    with background.
    """

    counts: NDArray[np.uint16]
    truth: Volume
    photons: Volume


def record(
    structure: Callable[[Shape, int], Volume],
    psf: Volume,
    shape: Shape,
    *,
    peak_photons: float,
    background_photons: float = 2.0,
    camera: Camera = Camera(),
    seed: int = 0,
) -> Recording:
    """Record `structure(shape, seed)` through `psf`; light from outside the field falls in, as it does.

    Parameters
    ----------
    structure : one of `STRUCTURES`, or any function of (shape, seed)
    psf : (z, y, x), odd or even, centre at index size // 2; its sum is taken as 1
    peak_photons : mean photons in the brightest voxel of the blurred image, without background
    """
    psf = np.asarray(psf, dtype=np.float64)
    if psf.ndim != 3:
        raise InputError(f"record: expected a (z, y, x) PSF, got shape {psf.shape}.")
    if peak_photons <= 0:
        raise ParameterError(f"record: peak_photons must be above 0, got {peak_photons}.")
    before = [s // 2 for s in psf.shape]
    wide = tuple(n + s - 1 for n, s in zip(shape, psf.shape, strict=True))
    whole = structure(wide, seed)
    # index j of a kernel is offset j - s // 2, so voxel i of the valid part sits at i + (s - 1 - s // 2)
    inside = tuple(
        slice(s - 1 - b, s - 1 - b + n) for s, b, n in zip(psf.shape, before, shape, strict=True)
    )
    blurred = fftconvolve(whole, psf / psf.sum(), mode="valid").clip(0)
    scale = peak_photons / blurred.max()
    photons = blurred * scale + background_photons
    return Recording(camera(photons, seed + 1), whole[inside] * scale, photons)


def _count(count: int | None, shape: Shape, per: int) -> int:
    return max(3, int(np.prod(shape)) // per) if count is None else count


def _unit_peak(volume: Volume) -> Volume:
    return volume / max(float(np.percentile(volume, 99.95)), 1e-12)


def _splat(volume: Volume, places: Volume, weight: float) -> None:
    """Add `weight` at each sub-voxel place (n, 3), shared trilinearly; what falls outside is lost."""
    low = np.floor(places).astype(int)
    part = places - low
    for corner in np.ndindex(2, 2, 2):
        index = low + corner
        share = weight * np.prod(np.where(np.array(corner) == 1, part, 1 - part), axis=1)
        inside = np.all((index >= 0) & (index < volume.shape), axis=1)
        np.add.at(volume, tuple(index[inside].T), share[inside])


def _ellipsoid(
    shape: Shape, centre: Volume, radius: Volume, margin: float
) -> tuple[tuple[slice, ...], Volume]:
    """Return the box around an ellipsoid and the signed distance (voxels, about) to its surface."""
    centre = np.where(np.array(shape) > 1, centre, 0)
    reach = radius + margin
    box = tuple(
        slice(max(0, int(c - r)), min(n, int(c + r) + 2))
        for c, r, n in zip(centre, reach, shape, strict=True)
    )
    axes = np.ogrid[box]
    rho = np.sqrt(sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radius, strict=True)))
    return box, (rho - 1) * radius.mean()
