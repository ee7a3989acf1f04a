"""Where an answer is wrong, and what of it is invented or missing: against a truth, at a resolution.

Brightness is no matter of truth: gain and offset of the answer are fitted first, once for the image,
on the regions that they explain, so that an invention does not make everything else wrong.
Both are compared at a stated resolution, because no recording decides about finer detail. Structure is
weighed by its energy (squares), so that a faint haze is none; what is missing is counted like what is
false, so that an answer cannot win by being dark.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pellucid.core.psf import Psf, Triple, fwhm_px
from pellucid.core.sampling import Array, checked_shape, finite, to_numpy
from pellucid.errors import InputError, ParameterError

Float64 = NDArray[np.float64]
Shape = tuple[int, int, int]

FWHM_PER_SIGMA = 2.3548200450309493
REGION = (8, 16, 16)
"""Voxels of a region."""

EMPTY = 0.25
"""Share of the image's root mean square below which a region's own light does not count as light: an
error there is relative to this."""

EXCESS = 4.0
"""How many times brighter than the brightest truth within a resolution what is false must be."""

TRUSTED = 0.6
"""Share of the regions, and of the truth's energy, that the brightness is fitted on at least."""

EXPLAINED = 0.5
"""Relative error up to which all other regions take part in the fit as well."""

FIT_ROUNDS = 10
"""Rounds of a trimmed fit, which settles in three to six."""


@dataclass(frozen=True)
class Wrongness:
    """How an answer differs from its truth.

    Parameters
    ----------
    error : on the grid of regions, root mean square difference relative to the truth's light there
    false_structure : share of the answer's energy that lies where the truth has next to nothing
    missing_structure : share of the truth's energy that lies where the answer has next to nothing
    gain, offset : what the answer was scaled by and what was added, for the least difference where
        they explain it
    """

    error: Float64
    false_structure: float
    missing_structure: float
    gain: float
    offset: float

    def exceeds(self, limit: float) -> NDArray[np.bool_]:
        """Return which regions err by more than `limit` times their light."""
        return self.error > limit


def wrongness(
    image: Array, truth: Array, resolution_px: Triple, *, region: Shape = REGION
) -> Wrongness:
    """Compare an answer with its truth at the resolution of a Gaussian of `resolution_px` (z, y, x).

    Parameters
    ----------
    image, truth : (z, y, x), any unit of brightness
    resolution_px : full widths at half maximum of what both are blurred with; see
        `supported_resolution_px`
    region : voxels per region; a rest at the border joins the last one
    """
    error, seen, true, gain, offset = _compared(image, truth, resolution_px, region)
    # A haze that the truth lacks is taken away, but an offset that the fit would add is no structure.
    structure = gain * seen + min(offset, 0.0)
    near = tuple(max(1, round(f)) for f in resolution_px)
    return Wrongness(
        error, _excess(structure, true, near), _excess(true, structure, near), gain, offset
    )


def relative_error(
    image: Array, truth: Array, resolution_px: Triple, *, region: Shape = REGION
) -> Float64:
    """Return the error of every region alone, as `wrongness` has it, in two thirds of its time."""
    return _compared(image, truth, resolution_px, region)[0]


def _compared(
    image: Array, truth: Array, resolution_px: Triple, region: Shape
) -> tuple[Float64, Float64, Float64, float, float]:
    """Return the errors of the regions, both images at the resolution, and gain and offset of the first."""
    shape = checked_shape(image, "wrongness")
    if checked_shape(truth, "wrongness") != shape:
        raise InputError(
            f"wrongness: expected image and truth of one shape, got {tuple(image.shape)} and "
            f"{tuple(truth.shape)}. Crop or resample one to the other's grid."
        )
    if min(resolution_px) < 0 or min(region) < 1:
        raise ParameterError(f"wrongness: expected sizes above 0, got {resolution_px} and {region}.")
    sigma = np.asarray(resolution_px) / FWHM_PER_SIGMA
    seen, true = (
        ndimage.gaussian_filter(finite(to_numpy(v), "wrongness").astype(np.float64), sigma)
        for v in (image, truth)
    )
    overall = float(np.sqrt((true**2).mean()))
    if overall == 0:
        raise InputError("wrongness: expected a truth that is not all zero. Use another one.")
    light = np.sqrt(by_region(true**2, region))
    gain, offset = _brightness(seen, true, region, np.maximum(light, EMPTY * overall))
    off = np.sqrt(by_region((gain * seen + offset - true) ** 2, region))
    return off / np.maximum(light, EMPTY * overall), seen, true, gain, offset


def supported_resolution_px(psf: Psf) -> Triple:
    """Return half of the PSF's full widths at half maximum, in voxels: finer detail is not asked of
    an answer."""
    z, y, x = (0.5 * float(np.nan_to_num(w)) for w in fwhm_px(psf))
    return z, y, x


def by_region(values: Float64, region: Shape = REGION) -> Float64:
    """Return the mean over every region of `values` (z, y, x)."""
    for axis, (n, r) in enumerate(zip(values.shape, region, strict=True)):
        edges = region_edges(n, r)
        sums = np.add.reduceat(values, edges[:-1], axis=axis)
        sizes = np.diff(edges).reshape([-1 if a == axis else 1 for a in range(3)])
        values = sums / sizes
    return values


def region_edges(n: int, region: int) -> list[int]:
    """Return where the regions of an axis of `n` voxels begin, and its end."""
    return [*range(0, region * max(1, n // region), region), n]


def _brightness(seen: Float64, true: Float64, region: Shape, light: Float64) -> tuple[float, float]:
    """Return gain (0 or more) and offset that bring `seen` closest to `true`: least trimmed squares.

    Rousseeuw's concentration steps (1984, 2006) on regions, from the fit of the whole and of every half
    of the volume; then all regions take part that the best of these explains. Bright and dark regions
    must both stay, or a gain of 0 would explain the darkness.
    """
    centre, width = float(seen.mean()), float(seen.std()) or 1.0
    seen = (seen - centre) / width
    sizes = np.ones(())
    for n, r in zip(seen.shape, region, strict=True):
        sizes = np.multiply.outer(sizes, np.diff(region_edges(n, r)))
    means = [by_region(p, region) for p in (seen, true, seen**2, seen * true, true**2)]
    moments = np.stack([np.ones(sizes.size), *(m.ravel() for m in means)]) * sizes.ravel()
    energy = moments[5]

    def fitted(kept: NDArray[np.bool_]) -> tuple[float, float]:
        n, s, t, ss, st, _ = moments[:, kept].sum(axis=1)
        varies = ss - s * s / n
        gain = max((st - s * t / n) / varies, 0.0) if varies > 1e-12 * ss else 0.0
        return float(gain), float((t - gain * s) / n)

    def left(gain: float, offset: float) -> Float64:
        n, s, t, ss, st, tt = moments
        squares = gain * gain * ss + offset * offset * n + tt
        return np.asarray(squares + 2 * (gain * offset * s - gain * st - offset * t)).clip(0)

    def concentrated(kept: NDArray[np.bool_]) -> tuple[float, float, float]:
        for _ in range(FIT_ROUNDS):
            squares = left(*fitted(kept))
            order = np.argsort(squares / moments[0], kind="stable")
            enough = max(
                int(np.ceil(TRUSTED * order.size)),
                int(np.searchsorted(np.cumsum(energy[order]), TRUSTED * energy.sum())) + 1,
            )
            before, kept = kept, np.isin(np.arange(order.size), order[:enough])
            if (kept == before).all():
                break
        return (float(left(*fitted(kept))[kept].sum()), *fitted(kept))

    starts = [np.ones(energy.size, bool)]
    for axis, n in enumerate(light.shape):
        side = np.broadcast_to(np.expand_dims(np.arange(n) < n / 2, [a for a in range(3) if a != axis]),
                               light.shape).ravel()  # fmt: skip
        starts += [h for h in (side, ~side) if energy[h].sum() > 0]
    _, gain, offset = min(concentrated(kept) for kept in starts)
    for _ in range(FIT_ROUNDS):
        explained = np.sqrt(left(gain, offset) / moments[0]) <= EXPLAINED * light.ravel()
        if explained.mean() < TRUSTED or energy[explained].sum() < TRUSTED * energy.sum():
            break
        before = gain, offset
        gain, offset = fitted(explained)
        if before == (gain, offset):
            break
    return gain / width, offset - gain * centre / width


def _excess(one: Float64, other: Float64, near: tuple[int, ...]) -> float:
    one, other = one.clip(0), other.clip(0)
    false = one > EXCESS * ndimage.maximum_filter(other, size=near)
    return float((one[false] ** 2).sum() / max(float((one**2).sum()), 1e-300))

