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
Box = tuple[slice, slice, slice]

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
    seen, true = _at_resolution(image, truth, resolution_px, region)
    if not true.any():
        raise InputError("wrongness: expected a truth that is not all zero. Use another one.")
    centre = float(seen.mean())  # sums about it keep their digits
    measured = _sums(seen - centre, true, region)
    light, (gain, offset) = _light(measured), _brightness(measured)
    offset -= gain * centre
    error = np.sqrt(by_region((gain * seen + offset - true) ** 2, region)) / light
    # A haze that the truth lacks is taken away, but an offset that the fit would add is no structure.
    structure = gain * seen + min(offset, 0.0)
    near = tuple(max(1, round(f)) for f in resolution_px)
    return Wrongness(
        error, _excess(structure, true, near), _excess(true, structure, near), gain, offset
    )


def moments(
    image: Array, truth: Array, resolution_px: Triple, part: Box | None = None, *, region: Shape = REGION
) -> Float64:
    """Return what `errors` has to know of every region of a part of both; see `wrongness`.

    Parameters
    ----------
    part : whole regions of the volume, in voxels of `image`, which holds what surrounds them; None: all

    Returns
    -------
    (6, z, y, x) : voxels, and sums over them of answer, truth, answer^2, answer truth, truth^2
    """
    return _sums(*_at_resolution(image, truth, resolution_px, region, part), region)


def errors(measured: Float64) -> Float64:
    """Return the error of every region from the `moments` of all; 1 where the truth is empty."""
    if not measured[5].any():
        return np.ones(measured.shape[1:])
    squares = _left(measured, *_brightness(measured)) / measured[0]
    return np.asarray(np.sqrt(squares) / _light(measured))


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


def _at_resolution(
    image: Array, truth: Array, resolution_px: Triple, region: Shape, part: Box | None = None
) -> tuple[Float64, Float64]:
    """Return a part of both as a Gaussian of `resolution_px` sees them; raises what `wrongness` does."""
    shape = checked_shape(image, "wrongness")
    if checked_shape(truth, "wrongness") != shape:
        raise InputError(
            f"wrongness: expected image and truth of one shape, got {tuple(image.shape)} and "
            f"{tuple(truth.shape)}. Crop or resample one to the other's grid."
        )
    if min(resolution_px) < 0 or min(region) < 1:
        raise ParameterError(f"wrongness: expected sizes above 0, got {resolution_px} and {region}.")
    sigma = np.asarray(resolution_px) / FWHM_PER_SIGMA
    around, inner = [], []
    for n, wanted, s in zip(shape, part or [slice(0, n) for n in shape], sigma, strict=True):
        low, high = max(wanted.start - round(4 * s), 0), min(wanted.stop + round(4 * s), n)
        around.append(slice(low, high))
        inner.append(slice(wanted.start - low, wanted.stop - low))
    seen, true = (
        ndimage.gaussian_filter(finite(to_numpy(v[tuple(around)]), "wrongness").astype(np.float64), sigma)
        for v in (image, truth)
    )
    return seen[tuple(inner)], true[tuple(inner)]


def _sums(seen: Float64, true: Float64, region: Shape) -> Float64:
    sizes = np.ones(())
    for n, r in zip(seen.shape, region, strict=True):
        sizes = np.multiply.outer(sizes, np.diff(region_edges(n, r)))
    pairs = ((seen, 1.0), (true, 1.0), (seen, seen), (seen, true), (true, true))
    return np.asarray(np.stack([sizes, *(by_region(a * b, region) * sizes for a, b in pairs)]))


def _light(measured: Float64) -> Float64:
    """Return the root mean square of the truth in every region, or what a difference counts against."""
    overall = np.sqrt(measured[5].sum() / measured[0].sum())
    return np.asarray(np.maximum(np.sqrt(measured[5] / measured[0]), EMPTY * overall))


def _left(measured: Float64, gain: float, offset: float) -> Float64:
    """Return the sum of squares that an answer of this brightness leaves, region by region."""
    n, s, t, ss, st, tt = measured
    squares = gain * gain * ss + offset * offset * n + tt
    return np.asarray(squares + 2 * (gain * offset * s - gain * st - offset * t)).clip(0)


def _brightness(measured: Float64) -> tuple[float, float]:
    """Return gain (0 or more) and offset that bring the answer closest to the truth: least trimmed squares.

    Rousseeuw's concentration steps (1984, 2006) on regions, from the fit of the whole and of every half
    of the volume; then all regions take part that the best of these explains. Bright and dark regions
    must both stay, or a gain of 0 would explain the darkness.
    """
    grid, light = measured.shape[1:], _light(measured).ravel()
    n, s, t, ss, st, tt = measured.reshape(6, -1)
    centre = float(s.sum() / n.sum())
    varies = float(ss.sum() / n.sum()) - centre**2
    width = float(np.sqrt(varies)) if varies > 1e-12 * centre**2 else 1.0
    # about the mean of the answer and by its width, so that the fit's sums stay alike in size
    ss, st = (ss - 2 * centre * s + centre**2 * n) / width**2, (st - centre * t) / width
    moved = np.stack([n, (s - centre * n) / width, t, ss, st, tt])
    energy = tt

    def fitted(kept: NDArray[np.bool_]) -> tuple[float, float]:
        n, s, t, ss, st, _ = moved[:, kept].sum(axis=1)
        varies = ss - s * s / n
        gain = max((st - s * t / n) / varies, 0.0) if varies > 1e-12 * ss else 0.0
        return float(gain), float((t - gain * s) / n)

    def concentrated(kept: NDArray[np.bool_]) -> tuple[float, float, float]:
        for _ in range(FIT_ROUNDS):
            squares = _left(moved, *fitted(kept))
            order = np.argsort(squares / n, kind="stable")
            enough = max(
                int(np.ceil(TRUSTED * order.size)),
                int(np.searchsorted(np.cumsum(energy[order]), TRUSTED * energy.sum())) + 1,
            )
            before, kept = kept, np.isin(np.arange(order.size), order[:enough])
            if (kept == before).all():
                break
        return (float(_left(moved, *fitted(kept))[kept].sum()), *fitted(kept))

    starts = [np.ones(energy.size, bool)]
    for axis, count in enumerate(grid):
        first = np.expand_dims(np.arange(count) < count / 2, [a for a in range(3) if a != axis])
        side = np.broadcast_to(first, grid).ravel()
        starts += [h for h in (side, ~side) if energy[h].sum() > 0]
    _, gain, offset = min(concentrated(kept) for kept in starts)
    for _ in range(FIT_ROUNDS):
        explained = np.sqrt(_left(moved, gain, offset) / n) <= EXPLAINED * light
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

