"""The photon-transfer line of one image: variance of high-frequency residuals against the mean."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pellucid.core.sampling import block_means

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]

# The product of second differences over the axes passes only the corner of the spectrum, where an
# oversampled (band-limited) image has no signal (Immerkaer 1996, Comput. Vis. Image Underst.
# 64:300).
SECOND_DIFFERENCE = np.array([1.0, -2.0, 1.0]) / np.sqrt(6.0)
# Its counterpart of low frequencies, of the same noise gain.
SMOOTHING = np.array([1.0, 2.0, 1.0]) / np.sqrt(6.0)
# Neighbouring residuals are correlated: n of them count as n / 1.944 per axis, the sum over lags of
# the squared autocorrelation, 1 + 2 (4/6)^2 + 2 (1/6)^2.
REDUNDANCY = 1.0 + 2.0 * (4 / 6) ** 2 + 2.0 * (1 / 6) ** 2
MIN_LENGTH = 5  # an axis shorter than this is not differenced
BINS = 48


@dataclass(frozen=True)
class Samples:
    """Per usable voxel: smooth and kernel-weighted mean, squared residual at the corner and at the
    edges of the spectrum, roughness of the smooth image, and whether it lies at the floor."""

    smooth: Float32
    mean: Float32
    corner: Float32
    edge: Float32
    roughness: Float32
    floor: Float32
    axes: int


@dataclass(frozen=True)
class Dark:
    """The darkest level, the noise there, and whether it is a flat floor rather than haze."""

    level: float
    variance: float
    flat: bool


@dataclass(frozen=True)
class Line:
    """variance = intercept + gain * mean; `edge_ratio` is the noise at the edges of the spectrum
    over
    that at its corner: 1 for white noise, more where noise is correlated or structure is left."""

    gain: float
    gain_error: float
    intercept: float
    edge_ratio: float


@dataclass(frozen=True)
class _Bins:
    mean: Float64
    variance: Float64
    edge: Float64
    count: Float64
    floor: Float64


def saturation(blocks: list[NDArray[Any]]) -> tuple[float, float]:
    """The level at which the recording clips (infinity if none), and the share of voxels there."""
    top = max(float(b.max()) for b in blocks)
    total = sum(b.size for b in blocks)
    count = sum(int((b == top).sum()) for b in blocks)
    # One voxel is the brightest in any image; a pile at the top that outnumbers the levels just
    # below it is a clipped one.
    near = sum(int(((b < top) & (b >= top - 0.02 * abs(top))).sum()) for b in blocks)
    if count <= max(3, 1e-5 * total) or count < 0.5 * near or count == total:
        return np.inf, 0.0
    return top, count / total


def sample(blocks: list[NDArray[Any]], ceiling: float, fill: float | None) -> Samples:
    """Residuals and local means of all blocks, away from saturated voxels and fill values."""
    rows = [_sample_block(b.astype(np.float32), ceiling, fill) for b in blocks]
    smooth, mean, corner, edge, roughness, floor = np.concatenate(rows, axis=1)
    axes = sum(n >= MIN_LENGTH for n in blocks[0].shape)
    return Samples(smooth, mean, corner, edge, roughness, floor, axes)


def _sample_block(block: Float32, ceiling: float, fill: float | None) -> Float32:
    axes = [a for a, n in enumerate(block.shape) if n >= MIN_LENGTH]
    if len(axes) < 2:
        return np.empty((6, 0), np.float32)
    centred = block - block.mean(dtype=np.float64).astype(np.float32)
    corner, weighted, smooth = centred, block, block
    for axis in axes:
        corner = ndimage.correlate1d(corner, SECOND_DIFFERENCE, axis)
        weighted = ndimage.correlate1d(weighted, SECOND_DIFFERENCE**2, axis)
        smooth = ndimage.gaussian_filter1d(smooth, 1.5, axis, truncate=3.0)
    window = [5 if a in axes else 1 for a in range(3)]
    flat = smooth - smooth.mean(dtype=np.float64).astype(np.float32)
    rough = ndimage.uniform_filter(flat**2, window) - ndimage.uniform_filter(flat, window) ** 2
    support = [3 if a in axes else 1 for a in range(3)]
    highest, lowest = ndimage.maximum_filter(block, support), block.min()
    usable = (highest < ceiling) & (highest > lowest)
    if fill is not None:  # as far as the smoothing carries it
        reach = [11 if a in axes else 1 for a in range(3)]
        usable &= ndimage.minimum_filter(block, reach) > np.float32(fill)
    inner = tuple(slice(1, -1) if a in axes else slice(None) for a in range(3))
    floor = (block == lowest).astype(np.float32)
    edge = _edge_power(centred, axes)
    rows = np.stack([v[inner] for v in (smooth, weighted, corner**2, edge, rough, floor)])
    return rows[:, usable[inner]].astype(np.float32)


def _edge_power(block: Float32, axes: list[int]) -> Float32:
    """Mean square of the residuals low along one axis and high along the others."""
    power = np.zeros_like(block)
    for low in axes:
        band = block
        for axis in axes:
            kernel = SMOOTHING if axis == low else SECOND_DIFFERENCE
            band = ndimage.correlate1d(band, kernel, axis)
        power += band**2 / len(axes)
    return power


def dark_level(blocks: list[NDArray[Any]], samples: Samples, fill: float | None) -> Dark:
    """The darkest 2 % of block means (without fill), and the noise of the darkest 5 % of voxels."""
    means = np.sort(block_means(blocks, fill))
    level = float(means[: max(1, means.size // 50)].mean())
    near = samples.smooth <= np.quantile(samples.smooth, 0.05)
    variance = float(samples.corner[near].mean(dtype=np.float64))
    # A floor: the darkest 5 % of the block means lie within what their own noise explains.
    spread = float(np.quantile(means, 0.05) - means[0])
    voxels = float(np.prod([min(s, n) for s, n in zip((4, 8, 8), blocks[0].shape, strict=True)]))
    return Dark(level, variance, spread <= 6.0 * np.sqrt(max(variance, 1e-30) / voxels))


def photon_transfer(samples: Samples) -> Line | None:
    """The line through the bins of brightness; None without a range of brightness."""
    line: Line | None = None
    squares, flattest = samples.corner, _flattest(samples)
    for _ in range(2):
        bins = _bins(samples, squares, flattest)
        if bins is None:
            return None
        line = _fit_unclipped(bins, REDUNDANCY**samples.axes)
        # Hot pixels and cosmic rays: no honest residual exceeds 6 sigma once in 4 million, and a
        # single photon in the dark stays below 40 times the variance of the kernel's neighbourhood.
        expected = line.intercept + line.gain * samples.mean
        expected = np.maximum(expected, 0.25 * float(bins.variance.min()) + 1e-30)
        squares = np.where(samples.corner > 40.0 * expected, np.nan, samples.corner)
    return line


def _flattest(samples: Samples) -> list[NDArray[np.int64]]:
    """The flattest half of the voxels of each bin of brightness; bins of few are left out."""
    low, high = np.quantile(samples.smooth, [0.0005, 0.9995])
    if not high > low:
        return []
    edges = low + (high - low) * np.linspace(0.0, 1.0, BINS + 1) ** 2  # dim voxels crowd
    which = np.clip(np.searchsorted(edges, samples.smooth) - 1, 0, BINS - 1).astype(np.int16)
    order = np.argsort(which, kind="stable")  # sixteen bits: sorted in linear time
    ends = np.cumsum(np.bincount(which, minlength=BINS))
    halves = []
    for first, last in pairwise([0, *ends.tolist()]):
        members = order[first:last]
        if members.size >= 200:
            rough = samples.roughness[members]
            halves.append(members[rough <= np.median(rough)])
    return halves


def _bins(
    samples: Samples, squares: Float32, flattest: list[NDArray[np.int64]]
) -> _Bins | None:
    """Averages over the voxels of each bin whose square is a number."""
    columns = []
    for members in flattest:
        good = members[np.isfinite(squares[members])]
        if good.size < 100:
            continue
        fields = (samples.mean, squares, samples.edge, samples.floor)
        mean, variance, edge, floor = (f[good].mean(dtype=np.float64) for f in fields)
        columns.append((mean, variance, edge, float(good.size), floor))
    return _Bins(*np.array(columns, dtype=np.float64).T) if len(columns) >= 3 else None


def _fit_unclipped(bins: _Bins, redundancy: float) -> Line:
    """The line, without the bins that lost variance by clipping at the floor of the recording.

    Voxels at the floor are honest in a photon count without offset, and clipped in a recording
    whose background was subtracted: there the bins lie well below the line of all brighter ones.
    """
    count = bins.count / redundancy
    every = _fit_line(bins.mean, bins.variance, count)
    # Correlated noise raises every bin, structure only the bright ones, which have few voxels: the
    # lower quartile of the voxels.
    ratios = bins.edge / np.maximum(bins.variance, 1e-30)
    order = np.argsort(ratios)
    share = np.cumsum(bins.count[order]) / bins.count.sum()
    ratio = float(ratios[order][np.searchsorted(share, 0.25)])
    clean = bins.floor < 0.01
    if clean.all() or clean.sum() < 6:
        return Line(*every, ratio)
    line = _fit_line(bins.mean[clean], bins.variance[clean], count[clean])
    gain, error, intercept = line
    clipped = bool((bins.variance[~clean] < 0.8 * (intercept + gain * bins.mean[~clean])).any())
    return Line(*(line if clipped and gain > 4.0 * error else every), ratio)


def _fit_line(mean: Float64, variance: Float64, count: Float64) -> tuple[float, float, float]:
    """(gain, standard error, intercept), robust to bins with structure in them.

    A quadratic term (structure that reaches the corner band, or unequal pixels: both grow as the
    square of the signal) is kept only where it is positive and significant.
    """
    # Scale to order one, so that the normal equations are well conditioned whatever the units.
    at, unit = float(mean.min()), float(np.ptp(mean)) or 1.0
    top = float(variance.max()) or 1.0
    x, y = (mean - at) / unit, variance / top
    columns = np.stack([np.ones_like(x), x, x**2])
    best = _weighted(columns[:2], y, count)
    if len(x) >= 8:
        curved = _weighted(columns, y, count)
        if curved[0][2] > 3.0 * curved[1][2] and curved[0][1] > 0:
            best = curved
    coefficients, errors = best
    gain = float(coefficients[1]) * top / unit
    return gain, float(errors[1]) * top / unit, float(coefficients[0]) * top - gain * at


def _weighted(columns: Float64, y: Float64, count: Float64) -> tuple[Float64, Float64]:
    """Coefficients and errors; weights from the fitted variance, outlying bins held down."""
    expected = np.maximum(y, 1e-6)
    hold = np.ones_like(y)
    for _ in range(12):
        sigma = expected * (np.sqrt(2.0 / count) + 0.01)  # 1 %: what the model itself may miss
        weight = hold / sigma**2
        normal = (columns * weight) @ columns.T
        inverse = np.linalg.pinv(normal)
        coefficients = inverse @ ((columns * weight) @ y)
        fitted = coefficients @ columns
        expected = np.maximum(fitted, 0.05 * np.maximum(y, 1e-6))
        pull = (y - fitted) / sigma
        # Structure only ever adds variance, so excess is distrusted sooner than deficit.
        hold = np.where(pull > 0, np.minimum(1.0, 1.5 / np.maximum(pull, 1e-9)), 1.0)
        hold = np.where(pull < 0, np.minimum(1.0, 3.0 / np.maximum(-pull, 1e-9)), hold)
    scatter = max(1.0, float((weight * (y - fitted) ** 2).sum() / max(1, len(y) - len(columns))))
    return coefficients, np.sqrt(np.diag(inverse) * scatter)
