"""A PSF from a stack of beads: find, reject, centre, average, clean."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy.fft import irfftn, rfftn
from scipy.ndimage import shift as shift_linearly

from pellucid.core.bead_finding import (
    DIM_PEAK_OVER_NOISE,
    SPOT_PEAK_OVER_NOISE,
    Bead,
    RejectedBead,
    find_candidates,
    fit_bead,
    has_close_neighbour,
    is_saturated,
    near_border,
    typical_fwhm_px,
)
from pellucid.core.psf import Psf, Triple, Volume, check_spacing_um, fwhm_um, rebin
from pellucid.core.psf_preparation import prepare
from pellucid.errors import InputError, ParameterError

T = TypeVar("T", bound=np.generic)

# The PSF reaches this many widths to either side unless a shape is asked for.
REACH_WIDTHS = 3.0
# Odd ones out: this many robust standard deviations from the median width, and at least 10 %
# (wider beads than the spread of a good batch, 5 %, explains).
ODD_SIGMAS, ODD_SHARE = 4.0, 0.10
# And: less alike the average than this (root mean square over the core, relative to the peak).
ODD_RESIDUAL = 0.12
# A bead has faded to less than this share of its peak at the border, REACH_WIDTHS away.
FADED = 0.25
NOT_BEADS = "Check that this is a recording of beads, in the right channel."
# Richardson-Lucy steps that take a bead's size out; more only sharpen noise.
SIZE_ITERATIONS = 25


@dataclass(frozen=True)
class BeadPsf:
    """A PSF distilled from beads, and the account of it.

    Parameters
    ----------
    psf : the averaged, cleaned and centred PSF
    used, rejected : every bead that was found
    fwhm_um : mean over the used beads of the full widths (z, y, x) of a Gaussian fitted to each
    fwhm_spread_um : their standard deviation; NaN for one bead
    """

    psf: Psf
    used: tuple[Bead, ...]
    rejected: tuple[RejectedBead, ...]
    fwhm_um: Triple
    fwhm_spread_um: Triple


def distill(
    stack: npt.ArrayLike,
    spacing_um: Triple,
    *,
    bead_um: float | None = None,
    shape: tuple[int, int, int] | None = None,
    expected_fwhm_um: Triple | None = None,
) -> BeadPsf:
    """The PSF that a stack of beads shows.

    Spots of the expected width are found; those that are saturated, overlapping, too near the
    border, dim, or unlike the others are left out. Each of the rest is moved sub-voxel onto one
    centre and averaged, brighter ones counting more; the rest of the background and the noise
    around the average are removed.

    Parameters
    ----------
    stack : (z, y, x) counts, or (y, x)
    spacing_um : voxel size (z, y, x) in micrometres
    bead_um : diameter of the beads, to take their size out of the PSF; None leaves it in
    shape : odd size (z, y, x) of the PSF; None: three widths to either side
    expected_fwhm_um : width (z, y, x) of a bead's image; None measures it on the brightest spots

    Raises
    ------
    InputError : no bead was found, none could be used (with the reasons), or spots are no beads
    """
    spacing = check_spacing_um(spacing_um)
    if spacing is None:
        raise ParameterError("spacing_um: a PSF from beads needs the voxel size (z, y, x) in um.")
    values, full_scale = as_stack(stack)
    fwhm = expected_fwhm(values, spacing, expected_fwhm_um)
    half = half_shape(values.shape, fwhm, shape)
    beads, others, rejected = usable_beads(values, fwhm, full_scale)
    beads, odd = _without_odd_widths(beads)
    rejected += odd
    if not beads:
        raise InputError(_nothing_usable(rejected, fwhm, spacing))
    aligned = [centred_bead(values, bead, others, half, fwhm) for bead in beads]
    beads, aligned, odd = _without_odd_shapes(beads, aligned, fwhm)
    # In counts of a typical bead, so that what `prepare` says of offset and noise means something.
    counts = float(np.median([bead.peak for bead in beads]))
    psf = prepare(counts * _average(beads, aligned), spacing)
    psf = Psf.normalised(_cropped(psf.values, half), spacing, psf.notes)
    _check_faded(psf, len(beads))
    if bead_um is not None:
        psf = without_bead_size(psf, bead_um)
    widths = np.array([bead.fwhm_px for bead in beads]) * spacing
    mean = widths.mean(axis=0)
    spread = widths.std(axis=0, ddof=1) if len(beads) > 1 else np.full(3, np.nan)
    found = f"average of {len(beads)} beads ({len(rejected) + len(odd)} more were left out)"
    psf = Psf(psf.values, spacing, (found, *psf.notes))
    return BeadPsf(psf, tuple(beads), tuple(rejected + odd), _as_triple(mean), _as_triple(spread))


def as_stack(stack: npt.ArrayLike) -> tuple[Volume, float | None]:
    """The stack as (z, y, x) float64, and the value at which its data type is full."""
    given = np.asarray(stack)
    if given.ndim not in (2, 3) or given.size == 0 or given.dtype.kind not in "iuf":
        raise InputError(
            f"beads: expected counts (z, y, x) or (y, x), got {given.dtype} {given.shape}. "
            "Give one channel and one time point."
        )
    values = given.astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError("beads: expected finite counts, got NaN or infinite. Repair the file.")
    full_scale = float(np.iinfo(given.dtype).max) if given.dtype.kind in "iu" else None
    return (values[None] if values.ndim == 2 else values), full_scale


def expected_fwhm(values: Volume, spacing: Triple, expected_um: Triple | None) -> Triple:
    if expected_um is not None:
        return _as_triple(np.array(expected_um) / spacing)
    z, y, x = typical_fwhm_px(values)
    if not (np.isfinite(y) and np.isfinite(x)):
        raise InputError(
            "beads: found no spot that stands out of the noise. Check the channel, record the "
            "beads brighter, or give expected_fwhm_um."
        )
    return (z if np.isfinite(z) else 1.0), y, x


def half_shape(
    stack: tuple[int, ...], fwhm: Triple, shape: tuple[int, int, int] | None
) -> tuple[int, int, int]:
    if shape is None:
        z, y, x = (
            int(np.ceil(REACH_WIDTHS * w)) if n > 2 else 0 for w, n in zip(fwhm, stack, strict=True)
        )
        return z, y, x
    if len(shape) != 3 or any(size < 1 or size % 2 == 0 for size in shape):
        raise ParameterError(f"shape: expected three odd sizes (z, y, x), got {shape!r}.")
    return shape[0] // 2, shape[1] // 2, shape[2] // 2


def usable_beads(
    values: Volume, fwhm: Triple, full_scale: float | None
) -> tuple[list[Bead], Volume, list[RejectedBead]]:
    """Beads fit for use, the places of all spots (spot, axis), and the beads that are not fit."""
    at, _ = find_candidates(values, fwhm)
    fits = [fit_bead(values, spot, fwhm) for spot in at]
    real = [i for i, bead in enumerate(fits) if _is_bead(at[i], bead, fwhm)]
    at, fits = at[real], [fits[i] for i in real]
    beads, rejected = [], []
    for spot, bead, close in zip(at, fits, has_close_neighbour(at, fwhm), strict=True):
        reason = _unfit(values, spot, bead, fwhm, full_scale) or ("overlapping" if close else None)
        if reason is None:
            beads.append(bead)
        else:
            rejected.append(RejectedBead(_as_triple(spot), reason))
    return beads, at.astype(float), rejected


def _is_bead(spot: npt.NDArray[np.int_], bead: Bead, fwhm: Triple) -> bool:
    """Whether the spot stands out of the noise around it and a Gaussian fits where it was seen.

    Out-of-focus light carries noise of its own, which the threshold for the dark does not know.
    """
    near = np.all(np.abs(np.array(bead.centre_px) - spot) <= np.maximum(fwhm, 1.0))
    return bool(near) and bead.peak > SPOT_PEAK_OVER_NOISE * bead.noise


def _unfit(
    values: Volume,
    spot: npt.NDArray[np.int_],
    bead: Bead,
    fwhm: Triple,
    full_scale: float | None,
) -> str | None:
    """Why a bead cannot be used on its own account; None if it can."""
    if near_border(spot, values.shape, fwhm):
        return "border"
    if bead.peak < DIM_PEAK_OVER_NOISE * bead.noise:
        return "dim"
    core = tuple(slice(max(0, int(i - w)), int(i + w) + 1) for i, w in zip(spot, fwhm, strict=True))
    if is_saturated(values[core], bead.background, full_scale):
        return "saturated"
    return None


def _nothing_usable(rejected: list[RejectedBead], fwhm: Triple, spacing: Triple) -> str:
    width = ", ".join(f"{w * s:.3g}" for w, s in zip(fwhm, spacing, strict=True))
    if not rejected:
        return (
            f"beads: found no spot about ({width}) um wide. Give expected_fwhm_um (z, y, x), check "
            "the channel, or record the beads brighter."
        )
    reasons = ", ".join(f"{n} {why}" for why, n in Counter(r.reason for r in rejected).items())
    return (
        f"beads: found {len(rejected)} spots about ({width}) um wide and none fit for use "
        f"({reasons}). Record fewer beads a field, below saturation and away from the border, or "
        "give expected_fwhm_um if the width is wrong."
    )


def _without_odd_widths(beads: list[Bead]) -> tuple[list[Bead], list[RejectedBead]]:
    """Beads whose widths agree with the median of all; three are needed to say which is odd."""
    if len(beads) < 3:
        return beads, []
    logs = np.log(np.array([bead.fwhm_px for bead in beads]))
    logs = np.where(np.isfinite(logs), logs, 0.0)
    away = np.abs(logs - np.median(logs, axis=0))
    limit = np.maximum(ODD_SIGMAS * 1.4826 * np.median(away, axis=0), ODD_SHARE)
    odd = np.any(away > limit, axis=1)
    return (
        [bead for bead, out in zip(beads, odd, strict=True) if not out],
        [
            RejectedBead(bead.centre_px, "odd one out")
            for bead, out in zip(beads, odd, strict=True)
            if out
        ],
    )


def centred_bead(
    values: Volume, bead: Bead, others: Volume, half: tuple[int, int, int], fwhm: Triple
) -> Volume:
    """The bead above its background on the common centre, NaN where the stack does not show it."""
    centre = np.array(bead.centre_px)
    nearest = np.round(centre).astype(int)
    margin = 4  # voxels for the spline to settle, cut off again
    reach = np.where(np.array(values.shape) > 2, np.array(half) + margin, 0)
    box = [nearest[a] + np.arange(-reach[a], reach[a] + 1) for a in range(3)]
    inside = [(box[a] >= 0) & (box[a] < values.shape[a]) for a in range(3)]
    crop = values[np.ix_(*[np.clip(box[a], 0, values.shape[a] - 1) for a in range(3)])]
    seen = inside[0][:, None, None] & inside[1][:, None] & inside[2]
    for place in others:
        apart = (place - centre) / fwhm
        if np.abs(apart).max() < 1.0:
            continue  # the bead itself
        distance = sum(
            np.expand_dims(((box[a] - place[a]) / fwhm[a]) ** 2, [b for b in range(3) if b != a])
            for a in range(3)
        )
        seen &= np.asarray(distance) > 1.5**2
    offset = centre - nearest
    moved = rebin(crop - bead.background, reach + offset, np.ones(3))
    known = shift_linearly(seen.astype(float), -offset, order=1, mode="nearest") > 0.999
    return np.where(_cropped(known, half), _cropped(moved, half), np.nan)


def _cropped(values: npt.NDArray[T], half: tuple[int, int, int]) -> npt.NDArray[T]:
    """The middle of `values`, `half` voxels to either side, or all that there is."""
    spans = [
        slice(max(0, n // 2 - h), n // 2 + h + 1) for n, h in zip(values.shape, half, strict=True)
    ]
    return values[tuple(spans)]


def _average(beads: list[Bead], aligned: list[Volume]) -> Volume:
    """Weighted mean of the beads over the voxels that each one shows, one peak high.

    Least squares gives a bead the weight peak / noise^2; the peak counts up to the median only,
    lest a single aggregate be the PSF.
    """
    peaks = np.array([bead.peak for bead in beads])
    noise = np.maximum([bead.noise for bead in beads], 1e-6 * peaks)
    weights = np.minimum(peaks, np.median(peaks)) / noise**2
    light, exposure = np.zeros(aligned[0].shape), np.zeros(aligned[0].shape)
    for bead, weight, peak in zip(aligned, weights, peaks, strict=True):
        shown = np.isfinite(bead)
        light += np.where(shown, weight * bead, 0.0)
        exposure += np.where(shown, weight * peak, 0.0)
    return np.divide(light, exposure, out=np.zeros_like(light), where=exposure > 0.0)


def _without_odd_shapes(
    beads: list[Bead], aligned: list[Volume], fwhm: Triple
) -> tuple[list[Bead], list[Volume], list[RejectedBead]]:
    """Beads with their residual against the average of all; those that differ are rejected."""
    average = _average(beads, aligned)
    core = _cropped(np.ones(average.shape, dtype=bool), _core_half(fwhm))
    inner = _cropped(average, _core_half(fwhm))
    kept, volumes, odd = [], [], []
    for bead, volume in zip(beads, aligned, strict=True):
        own = _cropped(volume, _core_half(fwhm)) / bead.peak
        own = np.where(core & np.isfinite(own), own, inner)
        noise = bead.noise / bead.peak
        residual = float(np.sqrt(max(float(np.mean((own - inner) ** 2)) - noise**2, 0.0)))
        if residual > ODD_RESIDUAL and len(beads) > 2:
            odd.append(RejectedBead(bead.centre_px, "odd one out"))
        else:
            kept.append(replace(bead, residual=residual))
            volumes.append(volume)
    if not kept or (len(beads) == 2 and min(bead.residual for bead in kept) > ODD_RESIDUAL):
        raise InputError(
            f"beads: {len(beads)} spots were found, and no two are alike. {NOT_BEADS} Where the PSF "
            "changes over the stack, measure a field (--field)."
        )
    return kept, volumes, odd


def _check_faded(psf: Psf, count: int) -> None:
    """InputError where what was averaged is no spot: it goes on at the border."""
    ends = [psf.values.take([0, -1], axis) for axis, n in enumerate(psf.shape) if n > 2]
    reach = max((float(end.max()) for end in ends), default=0.0) / float(psf.values.max())
    if reach > FADED:
        raise InputError(
            f"beads: the average of {count} {'spot' if count == 1 else 'spots'} still reaches "
            f"{reach:.0%} of its peak at the border, {REACH_WIDTHS:g} widths away, where a bead has "
            f"faded. {NOT_BEADS}"
        )


def _core_half(fwhm: Triple) -> tuple[int, int, int]:
    z, y, x = (int(np.ceil(w)) for w in fwhm)
    return z, y, x


def without_bead_size(psf: Psf, bead_um: float) -> Psf:
    """The PSF with the bead's own diameter taken out.

    A bead's image is the PSF blurred by a ball; Richardson-Lucy takes the ball out and stays
    positive. Beads wider than the PSF leave too little to restore and are refused.
    """
    if psf.spacing_um is None:
        raise InputError("without_bead_size: expected a PSF with a voxel size, got None.")
    width = np.nanmin(np.array(fwhm_um(psf)))
    if not 0.0 < bead_um <= 1.2 * width:
        raise ParameterError(
            f"bead_um: expected a diameter up to the bead's own image ({width:.3g} um), got "
            f"{bead_um!r}. Give micrometres, or use smaller beads."
        )
    ball = _ball_otf(psf.shape, psf.spacing_um, bead_um)
    # The ball's sharp rim rings: where there is no light the ratio must not follow.
    floor = 1e-5 * psf.values.max()
    estimate = psf.values
    for _ in range(SIZE_ITERATIONS):
        blurred = irfftn(rfftn(estimate) * ball, s=psf.shape)
        ratio = (psf.values + floor) / (np.maximum(blurred, 0.0) + floor)
        estimate = np.maximum(estimate * irfftn(rfftn(ratio) * ball, s=psf.shape), 0.0)
    note = f"took out the size of the beads ({bead_um:g} um)"
    return Psf.normalised(estimate, psf.spacing_um, (*psf.notes, note))


def _ball_otf(shape: tuple[int, int, int], spacing: Triple, diameter_um: float) -> Volume:
    """Fourier transform of a ball of that diameter, 1 at zero frequency; real and even."""
    axes = [np.fft.fftfreq(n, s) for n, s in zip(shape[:2], spacing[:2], strict=True)]
    last = np.fft.rfftfreq(shape[2], spacing[2])
    frequency = np.sqrt(axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + last**2)
    q = np.maximum(np.pi * diameter_um * frequency, 1e-3)  # the limit is 1 to 1e-7 there
    return np.asarray(3.0 * (np.sin(q) - q * np.cos(q)) / q**3)


def _as_triple(values: npt.ArrayLike) -> Triple:
    z, y, x = np.asarray(values, dtype=float)
    return float(z), float(y), float(x)
