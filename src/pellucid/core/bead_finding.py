"""Beads in a stack: where they are, how wide, and which of them are fit to be a PSF."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, maximum_filter
from scipy.optimize import least_squares
from scipy.spatial import cKDTree

from pellucid.core.psf import FWHM_PER_SIGMA, Triple, Volume, line_fwhm, line_through

# A bead stands this many standard deviations out of the filtered stack; a few hundred million
# voxels of noise have one such value.
DETECTION_SIGMAS = 6.0
# Below this peak over noise a single bead's width and centre are no longer known to a few percent.
DIM_PEAK_OVER_NOISE = 10.0
# And below this it is no bead but noise.
SPOT_PEAK_OVER_NOISE = 6.0
# In widths: beads closer than this overlap, bead centres this near the border are incomplete.
OVERLAP_WIDTHS = 3.0
BORDER_WIDTHS = 1.5
# (distance in widths, height relative to the bead): fainter spots this close are its own rings and
# the lobes of its cone, not beads.
RINGS = ((3.0, 0.2), (8.0, 0.05), (20.0, 0.01))
MOST_CANDIDATES = 1000


@dataclass(frozen=True)
class Bead:
    """A bead that was used.

    Parameters
    ----------
    centre_px : position (z, y, x) as a fractional voxel index
    fwhm_px : full widths at half maximum of the Gaussian fitted to its core; NaN for one plane
    peak : height of that Gaussian above the local background, in counts
    background, noise : level around the bead and its standard deviation, in counts
    residual : root mean square difference from the average bead over the core, relative to the peak
    """

    centre_px: Triple
    fwhm_px: Triple
    peak: float
    background: float
    noise: float
    residual: float = float("nan")


@dataclass(frozen=True)
class RejectedBead:
    """A bead that was left out, and why: saturated, overlapping, border, dim or odd one out."""

    centre_px: Triple
    reason: str


def typical_fwhm_px(stack: Volume) -> Triple:
    """Median width (z, y, x) in voxels of the brightest spots of a stack; NaN where not measurable.

    The spots are those that reach a fifth of the brightest one's height, 50 at most.
    """
    sigma = 0.7  # a hot pixel is no spot; its width is taken off again below
    soft = gaussian_filter(stack, [sigma if size > 2 else 0.0 for size in stack.shape])
    level, noise = floor_and_noise(soft)
    soft -= level
    peaks = _local_maxima(soft, [5 if size > 2 else 1 for size in stack.shape])
    heights = soft[tuple(peaks.T)]
    bright = heights > max(DETECTION_SIGMAS * noise, 0.2 * heights.max(initial=0.0))
    peaks = peaks[bright][np.argsort(-heights[bright])][:50]
    spots = [(int(z), int(y), int(x)) for z, y, x in peaks]
    typical = []
    for axis in range(3):
        widths = [line_fwhm(line_through(soft, axis, at), at[axis]) for at in spots]
        known = [w for w in widths if np.isfinite(w)]
        width = np.median(known) if known else np.nan
        typical.append(float(np.sqrt(np.maximum(width**2 - (sigma * FWHM_PER_SIGMA) ** 2, 1.0))))
    return typical[0], typical[1], typical[2]


def floor_and_noise(values: Volume) -> tuple[float, float]:
    """Median and scaled median absolute deviation: level and noise where most voxels are dark."""
    level = float(np.median(values))
    noise = 1.4826 * float(np.median(np.abs(values - level)))
    if noise == 0.0:  # more than half of the voxels are equal: counts of a few levels, or none
        noise = float(np.std(values[values <= np.percentile(values, 90)]))
    return level, max(noise, 1e-9 * float(np.ptp(values)))


def find_candidates(stack: Volume, fwhm: Triple) -> tuple[npt.NDArray[np.int_], Volume]:
    """Spots of about the width `fwhm` (voxels): indices (spot, axis) and heights, brightest first.

    Local maxima of a difference of Gaussians (1 : 1.6, close to a Laplacian of that scale) that
    stand out of the filtered stack's noise.
    """
    axes = [(w, size > 2) for w, size in zip(fwhm, stack.shape, strict=True)]
    sigma = np.array([w / FWHM_PER_SIGMA if extended else 0.0 for w, extended in axes])
    spots = gaussian_filter(stack, 0.8 * sigma) - gaussian_filter(stack, 1.6 * 0.8 * sigma)
    _, noise = floor_and_noise(spots)
    peaks = _local_maxima(spots, [max(3, int(w) | 1) if extended else 1 for w, extended in axes])
    heights = spots[tuple(peaks.T)]
    # The filters see noise beyond the border mirrored: in a corner sqrt(8) times as much of it.
    least = np.array([3.0 if near_border(at, stack.shape, fwhm) else 1.0 for at in peaks])
    order = np.argsort(-heights)
    order = order[(heights > least * DETECTION_SIGMAS * noise)[order]][:MOST_CANDIDATES]
    peaks, heights = peaks[order], heights[order]
    own = ~_is_ring(peaks, heights, fwhm)
    return peaks[own], heights[own]


def _is_ring(at: npt.NDArray[np.int_], heights: Volume, fwhm: Triple) -> npt.NDArray[np.bool_]:
    """Which spots are so faint beside a brighter one that they are taken for its rings or lobes."""
    ring = np.zeros(len(at), dtype=bool)
    for widths, share in RINGS:
        for i, j in _pairs(at, fwhm, widths):
            ring[i] |= bool(heights[i] < share * heights[j])
            ring[j] |= bool(heights[j] < share * heights[i])
    return ring


def has_close_neighbour(at: npt.NDArray[np.int_], fwhm: Triple) -> npt.NDArray[np.bool_]:
    """Which spots have another one within three widths."""
    close = np.zeros(len(at), dtype=bool)
    for pair in _pairs(at, fwhm, OVERLAP_WIDTHS):
        close[list(pair)] = True
    return close


def _pairs(at: npt.NDArray[np.int_], fwhm: Triple, widths: float) -> set[tuple[int, int]]:
    return set(cKDTree(at / np.array(fwhm)).query_pairs(widths)) if len(at) else set()


def _local_maxima(values: Volume, reach: list[int]) -> npt.NDArray[np.int_]:
    """Indices of the voxels that are the largest in a window of `reach`; one for each plateau."""
    # A slope far below any signal breaks ties, so that a plateau has one maximum.
    tilt = np.linspace(0.0, 1e-9 * float(np.ptp(values)), values.size).reshape(values.shape)
    tilted = values + tilt
    return np.argwhere(tilted == maximum_filter(tilted, size=reach))


def near_border(at: npt.NDArray[np.int_], shape: tuple[int, ...], fwhm: Triple) -> bool:
    """Whether the spot's centre is within one and a half widths of the stack's border."""
    return any(
        size > 2 and not BORDER_WIDTHS * w <= i <= size - 1 - BORDER_WIDTHS * w
        for i, size, w in zip(at, shape, fwhm, strict=True)
    )


def is_saturated(core: Volume, background: float, full_scale: float | None) -> bool:
    """Whether the core has a flat top, or reaches what its data type can hold.

    The volume of a Gaussian above a height falls as log(1 / height)^(3/2). Of its upper tenth, what
    lies within one count of the top is therefore small for bright beads; of a bead cut off at 95 %
    of its height, a fifth. `full_scale` is that of whole counts, None for floating point.
    """
    top = core.max()
    if full_scale is not None and top >= full_scale:
        return True
    upper = core > background + 0.9 * (top - background)
    at_top = int((core == top).sum())
    one_count = 0.0 if full_scale is None else 1.0 / max(top - background, 1.0)
    by_rounding = (one_count / 0.1) ** (0.5 * sum(size > 2 for size in core.shape))
    return at_top >= 4 and at_top > (0.15 + by_rounding) * int(upper.sum())


def fit_bead(stack: Volume, at: npt.NDArray[np.int_], fwhm: Triple) -> Bead:
    """A Gaussian with a constant background, least squares over the core of the spot at `at`."""
    sides = [max(1.0, 1.25 * w) if n > 2 else 0.0 for w, n in zip(fwhm, stack.shape, strict=True)]
    spans = [
        slice(max(0, int(i - s)), min(n, int(i + s) + 1))
        for i, s, n in zip(at, sides, stack.shape, strict=True)
    ]
    core = stack[tuple(spans)]
    axes = [np.arange(span.start, span.stop, dtype=float) for span in spans]
    free = [axis for axis in range(3) if stack.shape[axis] > 2]
    background, noise = _surroundings(stack, at, fwhm)
    scale = max(float(core.max()) - background, 1e-12)

    def residual(p: Volume) -> Volume:
        lines = [np.ones(a.size) for a in axes]
        for k, axis in enumerate(free):
            lines[axis] = np.exp(-0.5 * ((axes[axis] - p[2 + 2 * k]) / p[3 + 2 * k]) ** 2)
        model = p[0] * np.einsum("z,y,x->zyx", *lines) + p[1]
        return np.asarray((model - (core - background) / scale).ravel())

    start = [1.0, 0.0]
    for axis in free:
        start += [float(at[axis]), fwhm[axis] / FWHM_PER_SIGMA]
    fit = least_squares(residual, start, method="lm", max_nfev=60 * len(start)).x
    centre, widths = [0.0, 0.0, 0.0], [float("nan")] * 3
    for k, axis in enumerate(free):
        centre[axis] = float(fit[2 + 2 * k])
        widths[axis] = abs(float(fit[3 + 2 * k])) * FWHM_PER_SIGMA
    return Bead(
        (centre[0], centre[1], centre[2]), (widths[0], widths[1], widths[2]),
        float(fit[0]) * scale, background, noise,
    )  # fmt: skip


def _surroundings(stack: Volume, at: npt.NDArray[np.int_], fwhm: Triple) -> tuple[float, float]:
    """Background and noise in a frame two to three widths around the spot (y and x only)."""
    reach = [3.0 * w if n > 2 else 0.0 for w, n in zip(fwhm, stack.shape, strict=True)]
    spans = tuple(
        slice(max(0, int(i - r)), min(n, int(i + r) + 2))
        for i, r, n in zip(at, reach, stack.shape, strict=True)
    )
    y, x = (np.arange(spans[a].start, spans[a].stop) - at[a] for a in (1, 2))
    outside = np.hypot(y[:, None] / fwhm[1], x[None, :] / fwhm[2]) > 2.0
    return floor_and_noise(stack[spans][:, outside])
