"""Noise of a recording, from the recording alone: camera gain, offset, read noise, background, thinning.

The camera model everywhere is  counts = gain * Poisson(photons) + Normal(offset, read_noise).
"""

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from pellucid.errors import InputError, ParameterError

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]

# Statistics are read from at most this many voxels, in blocks spread over the volume: 4 million give
# the gain to better than 1 %, so more would only cost memory.
MAX_VOXELS = 4_000_000
BLOCK = (16, 256, 256)
# Second difference; the outer product over the axes passes only the corner of the spectrum, where an
# oversampled (band-limited) image has no signal (Immerkaer 1996, Comput. Vis. Image Underst. 64:300).
SECOND_DIFFERENCE = np.array([1.0, -2.0, 1.0]) / np.sqrt(6.0)
# sum over lags of the squared autocorrelation of one such axis: 1 + 2 (4/6)^2 + 2 (1/6)^2. Neighbouring
# residuals are correlated, so n of them count as n / 1.944 per axis.
RESIDUAL_REDUNDANCY = 1.0 + 2.0 * (4 / 6) ** 2 + 2.0 * (1 / 6) ** 2


class Array(Protocol):
    """What can be measured: a numpy array, a torch tensor, or anything lazily sliced like one."""

    @property
    def shape(self) -> Any: ...
    def __getitem__(self, key: Any, /) -> Any: ...


@dataclass(frozen=True)
class Noise:
    """Camera model  counts = gain * Poisson(photons) + Normal(offset, read_noise).

    `gain` is in counts per photon, the rest in counts. From one image only the line
    variance = gain * (mean - offset) + read_noise^2 can be known: the pair (offset, read_noise) is one
    point of `offset_range`, every point of which predicts the same variances.
    """

    gain: float
    offset: float
    read_noise: float
    gain_error: float = 0.0
    offset_range: tuple[float, float] = (0.0, 0.0)
    quantisation: float = 0.0
    saturated_share: float = 0.0
    reliable: bool = True
    reason: str = "given"

    def variance(self, mean: Any) -> Any:
        """Variance in counts^2 of voxels whose expected value is `mean` counts, never below read noise."""
        signal = mean - self.offset
        clipped = signal.clamp(min=0) if isinstance(signal, torch.Tensor) else np.maximum(signal, 0)
        return self.gain * clipped + self.read_noise**2 + self.quantisation**2 / 12

    def photons(self, counts: Any) -> Any:
        """Photons that `counts` stand for (negative where read noise went below the offset)."""
        if self.gain <= 0:
            raise ParameterError(f"Noise.photons: expected a gain above 0, got {self.gain}. Give it.")
        return (counts - self.offset) / self.gain

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Background:
    """Level of the empty regions in counts, and in words how it was found."""

    level: float
    how: str

    def __float__(self) -> float:
        return self.level


def to_numpy(values: Any) -> NDArray[Any]:
    """`values` as a numpy array on the CPU, whatever they were."""
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().numpy()
    return np.asarray(values)


def checked_shape(volume: Array, name: str) -> tuple[int, int, int]:
    """(z, y, x) of a volume or plane; InputError for anything else."""
    shape = tuple(int(n) for n in volume.shape)
    if len(shape) not in (2, 3) or 0 in shape:
        raise InputError(
            f"{name}: expected a non-empty (z, y, x) volume or (y, x) plane, got shape {shape}. "
            "Pick one channel and one time point."
        )
    z, y, x = (1, *shape) if len(shape) == 2 else shape
    return z, y, x


def blocks_of(volume: Array, name: str, max_voxels: int = MAX_VOXELS) -> list[NDArray[Any]]:
    """Blocks of at most BLOCK voxels spread evenly over the volume, at most `max_voxels` in all.

    InputError where they hold NaN or infinity. A lazy array is read block by block.
    """
    shape = checked_shape(volume, name)
    plane = len(volume.shape) == 2
    # Shares of nearly equal size, so that no block is a sliver of the last few planes.
    counts = [-(-n // b) for n, b in zip(shape, BLOCK, strict=True)]
    edges = [np.linspace(0, n, k + 1).astype(int) for n, k in zip(shape, counts, strict=True)]
    total = int(np.prod(counts))
    keep = min(total, max(1, int(total * max_voxels / float(np.prod(shape)))))
    blocks = []
    # An irrational stride visits z, y and x evenly, without the aliasing of a regular one.
    chosen = np.unique(((np.arange(keep) + 0.5) * total / keep).astype(int))
    for index in chosen:
        i, j, k = np.unravel_index(index, counts)
        rows = slice(edges[1][j], edges[1][j + 1]), slice(edges[2][k], edges[2][k + 1])
        picked = volume[rows] if plane else volume[(slice(edges[0][i], edges[0][i + 1]), *rows)]
        block = to_numpy(picked)
        block = block[None] if plane else block
        if block.dtype.kind == "f" and not np.isfinite(block).all():
            raise InputError(
                f"{name}: expected finite values, got NaN or infinity. Replace them before measuring."
            )
        blocks.append(block)
    return blocks


def estimate_background(volume: Array) -> Background:
    """Level of the empty regions: the darkest locally averaged blocks; too low rather than too high.

    The median of the lowest 2 % of block means (blocks of about 4 x 8 x 8 voxels, so that noise is
    averaged away), at least 5 of them; therefore never above the 5th percentile of the block means. Fill values
    (constant blocks that stand apart from all other data: padding of a deskewed or stitched volume) do
    not count. In widefield data without an empty region the haze of the darkest corner is reported:
    an upper bound of the offset.
    """
    blocks = blocks_of(volume, "estimate_background")
    means, constant = _block_means(blocks)
    lowest = min(float(b.min()) for b in blocks)
    fill = constant & (means == lowest)
    how = "median of the darkest 2 % of 4x8x8-voxel block means"
    rest = means[~fill]
    if fill.any() and rest.size and _stands_apart(blocks, lowest, float(np.quantile(rest, 0.02))):
        means = rest
        how += f"; fill value {lowest:g} ignored"
    ordered = np.sort(means)
    count = min(ordered.size, max(5, round(0.02 * ordered.size)))
    level = float(np.median(ordered[:count]))
    return Background(min(level, float(np.quantile(ordered, 0.05))), how)


def _block_means(blocks: list[NDArray[Any]]) -> tuple[Float64, NDArray[np.bool_]]:
    means, constant = [], []
    for block in blocks:
        size = [min(s, n) for s, n in zip((4, 8, 8), block.shape, strict=True)]
        z, y, x = (n // s for n, s in zip(block.shape, size, strict=True))
        tiles = block[: z * size[0], : y * size[1], : x * size[2]]
        tiles = tiles.reshape(z, size[0], y, size[1], x, size[2])
        means.append(tiles.mean(axis=(1, 3, 5), dtype=np.float64).ravel())
        constant.append((tiles.max(axis=(1, 3, 5)) == tiles.min(axis=(1, 3, 5))).ravel())
    return np.concatenate(means), np.concatenate(constant)


def _stands_apart(blocks: list[NDArray[Any]], fill: float, level: float) -> bool:
    """Whether almost no voxel lies between a fill value and half-way to the level of the data."""
    half = fill + 0.5 * (level - fill)
    between = sum(int(((b > fill) & (b < half)).sum()) for b in blocks)
    return between < 1e-3 * sum(b.size for b in blocks)


def estimate_noise(volume: Array, *, offset: float | None = None) -> Noise:
    """Gain, offset and read noise of the camera, from one image without calibration.

    The photon-transfer line var = gain * (mean - offset) + read_noise^2 is fitted to the mean square
    of high-frequency residuals against the local mean. The residual is a product of second differences
    over the axes, normalised to unit noise gain; its expected square is exactly `gain` times the mean
    weighted by the squared kernel, also at the lowest counts. Only the flattest half of the voxels of
    each brightness counts, by a measure that is independent of the residual.

    Parameters
    ----------
    volume : (z, y, x) or (y, x), numpy, torch or lazily sliced; counts, or any linear scale of them
    offset : camera offset in counts when it is known; fixes the read noise too

    Returns
    -------
    Noise ; with `reliable` False and a `reason` where the image cannot tell (no noise, no range of
    brightness, noise correlated between voxels by interpolation, compression or denoising, coarse
    quantisation). Its numbers are then the best guess, and a gain of 0 means "no photon noise seen".

    After Foi et al. 2008 (IEEE Trans. Image Process. 17:1737); we use a polyphase-free corner-band
    residual instead of wavelets, and means instead of medians, which are biased at few photons.
    """
    blocks = blocks_of(volume, "estimate_noise")
    step = _quantisation(blocks)
    ceiling, saturated_share = _saturation(blocks)
    samples = np.concatenate([_samples(b.astype(np.float32), ceiling) for b in blocks], axis=1)
    axes = int(sum(n >= 5 for n in blocks[0].shape))
    empty = Noise(0.0, 0.0, 0.0, 0.0, (0.0, 0.0), step, saturated_share, False, "")
    if samples.shape[1] < 400:
        return _unreliable(empty, "too few usable voxels (small, constant or saturated image)")
    dark = _dark_level(blocks, samples)
    line = _photon_transfer(samples, RESIDUAL_REDUNDANCY**axes)
    if line is None:
        return _unreliable(empty, "no range of brightness to compare noise over")
    gain, gain_error, intercept = line
    noise = _noise_from_line(gain, gain_error, intercept, dark, offset, empty)
    return _judge(noise, samples, dark)


def _unreliable(noise: Noise, reason: str) -> Noise:
    return Noise(**{**asdict(noise), "reliable": False, "reason": reason})


def _quantisation(blocks: list[NDArray[Any]]) -> float:
    """Step between grey levels in counts; 0 where the values are continuous."""
    values = np.unique(np.concatenate([np.unique(b)[:70_000] for b in blocks]).astype(np.float64))
    total = sum(b.size for b in blocks)
    if values.size < 2 or values.size > max(2, total // 3):
        return 0.0
    gaps = np.diff(values)
    step = float(gaps.min())
    # Scaled integers have gaps that are whole multiples of the smallest.
    return step if float(np.abs(gaps / step - np.round(gaps / step)).max()) < 0.05 else 0.0


def _saturation(blocks: list[NDArray[Any]]) -> tuple[float, float]:
    """The level at which the recording clips (infinity if it does not), and the share of voxels there."""
    top = max(float(b.max()) for b in blocks)
    total = sum(b.size for b in blocks)
    count = sum(int((b == top).sum()) for b in blocks)
    # One voxel is the brightest in any image; a pile at the top that outnumbers the levels just below
    # it is a clipped one.
    near = sum(int(((b < top) & (b >= top - 0.02 * abs(top))).sum()) for b in blocks)
    if count <= max(3, 1e-5 * total) or count < 0.5 * near or count == total:
        return np.inf, 0.0
    return top, count / total


def _samples(block: Float32, ceiling: float) -> Float32:
    """Rows per usable voxel: smooth mean, kernel-weighted mean, squared residual, roughness, at floor."""
    axes = [a for a, n in enumerate(block.shape) if n >= 5]
    if not axes:
        return np.empty((5, 0), np.float32)
    residual, weighted, smooth = block - block.mean(dtype=np.float64).astype(np.float32), block, block
    for axis in axes:
        residual = ndimage.correlate1d(residual, SECOND_DIFFERENCE, axis, mode="reflect")
        weighted = ndimage.correlate1d(weighted, SECOND_DIFFERENCE**2, axis, mode="reflect")
        smooth = ndimage.gaussian_filter1d(smooth, 1.5, axis, mode="reflect", truncate=3.0)
    window = [5 if a in axes else 1 for a in range(3)]
    centred = smooth - smooth.mean(dtype=np.float64).astype(np.float32)
    rough = ndimage.uniform_filter(centred**2, window) - ndimage.uniform_filter(centred, window) ** 2
    support = [3 if a in axes else 1 for a in range(3)]
    usable = ndimage.maximum_filter(block, support) < ceiling
    lowest = block.min()
    usable &= ndimage.maximum_filter(block, support) > lowest  # fill values and clipped-away regions
    inner = tuple(slice(1, -1) if a in axes else slice(None) for a in range(3))
    floor = (block == lowest).astype(np.float32)
    rows = np.stack([v[inner] for v in (smooth, weighted, residual**2, rough, floor)])
    return rows[:, usable[inner]].astype(np.float32)


@dataclass(frozen=True)
class _Dark:
    level: float
    variance: float
    flat: bool


def _dark_level(blocks: list[NDArray[Any]], samples: Float32) -> _Dark:
    """The darkest level, the noise there, and whether it is a flat floor rather than haze."""
    means, constant = _block_means(blocks)
    means = np.sort(means[~constant]) if (~constant).any() else means
    level = float(means[: max(1, means.size // 50)].mean())
    near = samples[:, samples[0] <= np.quantile(samples[0], 0.05)]
    variance = float(near[2].mean())
    # A floor: 5 % of the block means lie within what their own noise explains (4 sigma of a block).
    spread = float(np.quantile(means, 0.05) - means[0])
    voxels = float(np.prod([min(s, n) for s, n in zip((4, 8, 8), blocks[0].shape, strict=True)]))
    return _Dark(level, variance, spread <= 6.0 * np.sqrt(max(variance, 1e-30) / voxels))


def _photon_transfer(samples: Float32, redundancy: float) -> tuple[float, float, float] | None:
    """(gain, its standard error, intercept) of variance against mean; None without a range of means."""
    fit: tuple[float, float, float] | None = None
    squares = samples[2]
    for _ in range(2):
        bins = _bins(samples, squares)
        if bins is None:
            return None
        fit = _fit_unclipped(bins, redundancy)
        # Hot pixels and cosmic rays: no honest residual exceeds 6 sigma once in 4 million, and a single
        # photon in the dark stays below 40 times the variance of the kernel's neighbourhood.
        expected = np.maximum(fit[2] + fit[0] * samples[1], 0.25 * float(bins[1].min()) + 1e-30)
        squares = np.where(samples[2] > 40.0 * expected, np.nan, samples[2])
    return fit


def _fit_unclipped(bins: Float64, redundancy: float) -> tuple[float, float, float]:
    """The line, without the bins that lost variance by clipping at the floor of the recording.

    Voxels at the floor are honest in a photon count without offset, and clipped in a recording whose
    background was subtracted: there the bins lie well below the line of all brighter ones.
    """
    mean, variance, count, floor = bins
    every = _fit_line(mean, variance, count / redundancy)
    clean = floor < 0.01
    if clean.all() or clean.sum() < 6:
        return every
    line = _fit_line(mean[clean], variance[clean], count[clean] / redundancy)
    gain, error, intercept = line
    predicted = intercept + gain * mean[~clean]
    clipped = bool((variance[~clean] < 0.8 * predicted).any())
    return line if clipped and gain > 8.0 * error else every


def _bins(samples: Float32, squares: Float32) -> Float64 | None:
    """Rows mean, variance, count, share at the floor, by brightness, of the flattest half of each bin."""
    low, high = np.quantile(samples[0], [0.0005, 0.9995])
    if not high > low:
        return None
    edges = low + (high - low) * np.linspace(0.0, 1.0, 49) ** 2  # finer where dim voxels crowd
    which = np.clip(np.searchsorted(edges, samples[0]) - 1, 0, 47)
    order = np.argsort(which, kind="stable")
    starts = np.searchsorted(which[order], np.arange(49))
    columns = []
    for first, last in zip(starts[:-1], starts[1:], strict=True):
        members = order[first:last]
        if members.size < 200:
            continue
        members = members[samples[3, members] <= np.median(samples[3, members])]
        good = members[np.isfinite(squares[members])]
        if good.size < 100:
            continue
        mean, floor = samples[1, good].mean(dtype=np.float64), samples[4, good].mean(dtype=np.float64)
        columns.append((mean, squares[good].mean(dtype=np.float64), good.size, floor))
    return np.array(columns, dtype=np.float64).T if len(columns) >= 3 else None


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
    """Coefficients and standard errors; weights from the fitted variance, outlying bins held down."""
    expected = np.maximum(y, 1e-6)
    hold = np.ones_like(y)
    for _ in range(12):
        sigma = expected * np.sqrt(2.0 / count) + 0.01 * expected  # 1 %: what the model itself may miss
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


def _noise_from_line(
    gain: float, error: float, intercept: float, dark: _Dark, offset: float | None, empty: Noise
) -> Noise:
    """Split the line's intercept into an offset and a read noise."""
    shared = {**asdict(empty), "gain_error": error, "reliable": True, "reason": "photon-transfer line"}
    quantum = empty.quantisation**2 / 12
    if gain <= 0:
        level = dark.level if offset is None else offset
        read = float(np.sqrt(max(dark.variance - quantum, 0.0)))
        return Noise(**{**shared, "offset": level, "read_noise": read, "offset_range": (level, level)})
    # Without read noise the line meets zero variance at the offset: the lowest that is possible.
    lowest = min((quantum - intercept) / gain, dark.level)
    span = (lowest, dark.level)
    if offset is None:
        offset = dark.level if dark.flat else lowest
    read = float(np.sqrt(max(intercept + gain * offset - quantum, 0.0)))
    shared.update(gain=gain, offset=float(offset), read_noise=read, offset_range=span)
    return Noise(**shared)


def _judge(noise: Noise, samples: Float32, dark: _Dark) -> Noise:
    """The same numbers, with the reason not to rely on them where there is one."""
    typical = float(np.sqrt(np.median(noise.variance(samples[1].astype(np.float64)))))
    signal = float(np.quantile(samples[0], 0.999) - dark.level)
    if typical <= 1e-4 * max(abs(signal), 1e-30):
        return _unreliable(noise, "no noise to speak of: a synthetic or denoised image")
    if noise.quantisation > 3.0 * typical:
        return _unreliable(noise, "grey levels coarser than the noise")
    if noise.gain <= 3.0 * noise.gain_error:
        reason = "noise does not grow with brightness beyond its error: too dim, or not photon noise"
        return _unreliable(noise, reason)
    return noise


# Above this many photons the normal law stands for the binomial: skewness below 0.1 at fraction 0.5.
FEW_PHOTONS = 30
# Uniform numbers are 16-bit indices into a table of quantiles: one gather per voxel, against 20 times
# the time for torch.binomial. Probabilities are right to 2^-17.
QUANTILES = 1 << 16


@lru_cache(maxsize=8)
def _binomial_quantiles(fraction: float) -> torch.Tensor:
    """Quantiles of Binomial(n, fraction) for n = 0..FEW_PHOTONS, flattened (n, QUANTILES), as uint8."""
    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    law = np.ones(1)
    rows = []
    for _ in range(FEW_PHOTONS + 1):
        rows.append(np.searchsorted(np.cumsum(law)[:-1], levels).astype(np.uint8))
        law = np.convolve(law, [1.0 - fraction, fraction])
    return torch.from_numpy(np.concatenate(rows))


def _binomial(trials: torch.Tensor, fraction: float, generator: torch.Generator) -> torch.Tensor:
    """A float32 draw of Binomial(trials, fraction); trials are whole and at most FEW_PHOTONS."""
    table = _binomial_quantiles(fraction).to(trials.device)
    index = torch.randint(
        QUANTILES, trials.shape, generator=generator, device=trials.device, dtype=torch.int32
    )
    index += trials.to(torch.int32) * QUANTILES
    drawn = torch.index_select(table, 0, index.ravel())
    return drawn.view(trials.shape).to(torch.float32)


def thin(
    counts: torch.Tensor, noise: Noise, fraction: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two recordings with independent noise out of one: (kept, held_out), float32 counts above offset.

    kept + held_out = counts - offset to rounding; kept holds `fraction` of the photons and of the read
    noise's variance, held_out the rest. Up to 30 photons are drawn binomially, more by the normal law.
    Given the expected image their noise is uncorrelated (independent for integer photons without read
    noise: Poisson thinning). Values may be negative where read noise makes them so.

    ParameterError for a fraction outside (0, 1) or a gain of 0.
    """
    if not 0.0 < fraction < 1.0:
        raise ParameterError(f"thin: expected a fraction between 0 and 1, got {fraction}.")
    if noise.gain <= 0:
        raise ParameterError(f"thin: expected a gain above 0, got {noise.gain}. Give the camera's gain.")
    photons = (counts.to(torch.float32) - noise.offset) / noise.gain
    read = (noise.read_noise**2 + noise.quantisation**2 / 12) / noise.gain**2
    whole = photons.round().clamp_(min=0)
    few = whole <= FEW_PHOTONS
    drawn = torch.where(few, whole, torch.zeros_like(whole))
    kept = _binomial(drawn, fraction, generator)
    # What a split must add is photons + read, in expectation; the binomial draw has added `drawn`.
    wanted = photons - drawn + read
    spread = wanted.clamp(min=0)
    # Clipping the negative ones adds variance on the whole: take it back from the dim voxels, where it arose.
    dim = few & (wanted < 4.0 * (read + 1.0))
    added, meant = (spread * dim).sum(), (wanted * dim).sum()
    spread = torch.where(dim, spread * (meant / added.clamp(min=1e-12)).clamp(0, 1), spread)
    normal = torch.randn(photons.shape, generator=generator, device=photons.device)
    kept += fraction * (photons - drawn) + (fraction * (1 - fraction) * spread).sqrt() * normal
    kept *= noise.gain
    return kept, photons * noise.gain - kept
