"""Noise of a recording, from the recording alone: gain, offset, read noise, background, thinning.

The camera model everywhere is  counts = gain * Poisson(photons) + Normal(offset, read_noise).
"""

from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pellucid.core.coverage import FillChoice, chosen_fill
from pellucid.core.photon_transfer import (
    Dark,
    Line,
    Samples,
    dark_level,
    photon_transfer,
    sample,
    saturation,
)
from pellucid.core.sampling import Array, block_means, blocks_of
from pellucid.errors import InputError, ParameterError

# Noise power low along one axis over that high along all: 0.95 to 1.02 for white noise in
# simulation, 1.7 to 3.6 after interpolation by a quarter or half voxel, 2 after a Gaussian of
# 0.5 voxels.
MAX_EDGE_RATIO = 1.2


@dataclass(frozen=True)
class Noise:
    """Camera model  counts = gain * Poisson(photons) + Normal(offset, read_noise).

    `gain` is in counts per photon, the rest in counts. From one image only the line
    variance = gain * (mean - offset) + read_noise^2 can be known: the pair (offset, read_noise) is
    one point of `offset_range`, every point of which predicts the same variances.
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
        """Variance in counts^2 of voxels whose expected value is `mean` counts."""
        signal = mean - self.offset
        clipped = signal.clamp(min=0) if isinstance(signal, torch.Tensor) else np.maximum(signal, 0)
        return self.gain * clipped + self.read_noise**2 + self.quantisation**2 / 12

    def photons(self, counts: Any) -> Any:
        """Photons that `counts` stand for (negative where read noise went below the offset)."""
        if self.gain <= 0:
            raise ParameterError(f"Noise.photons: expected a gain > 0, got {self.gain}. Give it.")
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


def check_background(background: float | None, darkest: float, brightest: float) -> None:
    """Raise InputError where a stated background is above all that a volume holds.

    A volume of one value is left alone: it is dark, whatever the background.
    """
    if background is not None and darkest < brightest < background:
        raise InputError(
            f"background: {background:g} counts were stated, and the brightest voxel has "
            f"{brightest:g}. State the counts of empty regions, or leave it to be measured."
        )


def estimate_background(volume: Array, *, fill: FillChoice = "auto") -> Background:
    """Level of the empty regions: the darkest locally averaged blocks; too low rather than too
    high.

    The median of the lowest 2 % of block means (blocks of about 4 x 8 x 8 voxels, so that noise is
    averaged away), at least 5 of them; therefore never above the 5th percentile of the block
    means. Fill values (constant blocks that stand apart from all other data: padding of a deskewed
    or stitched volume) do not count. In widefield data without an empty region the haze of the
    darkest corner is reported: an upper bound of the offset. `fill` is "auto",
    "none", a value or a `Fill`.
    """
    blocks, value = _without_ramps(blocks_of(volume, "estimate_background"), fill)
    how = "median of the darkest 2 % of 4x8x8-voxel block means"
    if value is not None:
        how += f"; fill value {value:g} ignored"
    means = block_means(blocks, value)
    # where every block is cut by the fill, its voxels are all there is
    ordered = np.sort(means if means.size or value is None else _others(blocks, value))
    count = min(ordered.size, max(5, round(0.02 * ordered.size)))
    level = float(np.median(ordered[:count]))
    return Background(min(level, float(np.quantile(ordered, 0.05))), how)


def estimate_noise(
    volume: Array, *, offset: float | None = None, fill: FillChoice = "auto"
) -> Noise:
    """Gain, offset and read noise of the camera, from one image without calibration.

    The photon-transfer line var = gain * (mean - offset) + read_noise^2 is fitted to the mean
    square of high-frequency residuals against the local mean. The residual is a product of second
    differences over the axes, normalised to unit noise gain; its expected square is exactly `gain`
    times the mean weighted by the squared kernel, also at the lowest counts. Only the flattest half
    of the voxels of each brightness counts, by a measure that is independent of the residual.

    Parameters
    ----------
    volume : (z, y, x) or (y, x), numpy, torch or lazily sliced; counts, or any linear scale of them
    offset : camera offset in counts when it is known; fixes the read noise too
    fill : of voxels that were never recorded and do not count: "auto" finds them, "none", a value,
        or a `Fill`

    Returns
    -------
    Noise ; with `reliable` False and a `reason` where the image cannot tell: no noise, no range of
    brightness, coarse grey levels, noise correlated between voxels (interpolation, compression,
    denoising) or structure at the scale of a voxel. Its numbers are then the best guess.

    After Foi et al. 2008 (IEEE Trans. Image Process. 17:1737); we use a corner-band residual
    instead of wavelets, and means instead of medians, which are biased at few photons.
    """
    blocks, value = _without_ramps(blocks_of(volume, "estimate_noise"), fill)
    ceiling, saturated_share = saturation(blocks)
    empty = Noise(
        0.0, 0.0, 0.0, quantisation=_quantisation(blocks), saturated_share=saturated_share
    )
    samples = sample(blocks, ceiling, value)
    if samples.smooth.size < 400:
        return _unreliable(empty, "too few usable voxels (small, constant or saturated image)")
    dark = dark_level(blocks, samples, value)
    line = photon_transfer(samples)
    if line is None:
        return _unreliable(empty, "no range of brightness to compare noise over")
    return _judge(_noise_from_line(line, dark, offset, empty), line, samples, dark)


def _without_ramps(
    blocks: list[NDArray[Any]], choice: FillChoice
) -> tuple[list[NDArray[Any]], float | None]:
    """The blocks with fill wherever nothing was recorded, and the fill's value."""
    fill = chosen_fill(blocks, choice)
    return (blocks, None) if fill is None else ([fill.spread(b) for b in blocks], fill.value)


def _others(blocks: list[NDArray[Any]], fill: float) -> NDArray[Any]:
    return np.concatenate([b[b != fill].ravel() for b in blocks])


def _unreliable(noise: Noise, reason: str) -> Noise:
    return replace(noise, reliable=False, reason=reason)


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


def _noise_from_line(line: Line, dark: Dark, offset: float | None, empty: Noise) -> Noise:
    """Split the line's intercept into an offset and a read noise."""
    shared = replace(empty, gain_error=line.gain_error, reason="photon-transfer line")
    quantum = empty.quantisation**2 / 12
    if line.gain <= 0:
        level = dark.level if offset is None else offset
        read = float(np.sqrt(max(dark.variance - quantum, 0.0)))
        return replace(shared, offset=level, read_noise=read, offset_range=(level, level))
    # Without read noise the line meets zero variance at the offset: the lowest that is possible.
    lowest = min((quantum - line.intercept) / line.gain, dark.level)
    if offset is None:
        offset = dark.level if dark.flat else lowest
    read = float(np.sqrt(max(line.intercept + line.gain * offset - quantum, 0.0)))
    return replace(
        shared, gain=line.gain, offset=offset, read_noise=read, offset_range=(lowest, dark.level)
    )


def _judge(noise: Noise, line: Line, samples: Samples, dark: Dark) -> Noise:
    """The same numbers, with the reason not to rely on them where there is one."""
    typical = float(np.sqrt(np.median(noise.variance(samples.mean.astype(np.float64)))))
    signal = float(np.quantile(samples.smooth, 0.999) - dark.level)
    if typical <= 1e-4 * max(abs(signal), 1e-30):
        return _unreliable(noise, "no noise to speak of: a synthetic or denoised image")
    if noise.quantisation > 3.0 * typical:
        return _unreliable(noise, "grey levels coarser than the noise")
    if noise.gain <= 3.0 * noise.gain_error:
        return _unreliable(
            noise, "noise does not grow with brightness: too dim, or no photon noise"
        )
    if line.edge_ratio > MAX_EDGE_RATIO:
        return _unreliable(
            noise,
            "noise is correlated between voxels (interpolated, compressed or denoised recording), "
            "or there is structure at the scale of a voxel",
        )
    return noise


# Above this many photons the normal law stands for the binomial: skewness below 0.1 at fraction
# 0.5.
FEW_PHOTONS = 30
# Uniform numbers are 16-bit indices into a table of quantiles: one gather per voxel, against 20
# times the time for torch.binomial. Probabilities are right to 2^-17.
QUANTILES = 1 << 16


@lru_cache(maxsize=8)
def _binomial_quantiles(fraction: float) -> torch.Tensor:
    """Quantiles of Binomial(n, fraction), n = 0..FEW_PHOTONS, flattened (n, QUANTILES), uint8."""
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
    """Two recordings with independent noise out of one: (kept, held_out), float32 counts above
    offset.

    kept + held_out = counts - offset to rounding; kept holds `fraction` of the photons and of the
    read noise's variance, held_out the rest. Up to 30 photons are drawn binomially, more by the
    normal law. Given the expected image their noise is uncorrelated (independent for integer
    photons without read noise: Poisson thinning). Values may be negative where read noise makes
    them so.

    ParameterError for a fraction outside (0, 1) or a gain of 0.
    """
    if not 0.0 < fraction < 1.0:
        raise ParameterError(f"thin: expected a fraction between 0 and 1, got {fraction}.")
    if noise.gain <= 0:
        raise ParameterError(f"thin: expected a gain > 0, got {noise.gain}. Give the camera's.")
    photons = (counts.to(torch.float32) - noise.offset) / noise.gain
    read = (noise.read_noise**2 + noise.quantisation**2 / 12) / noise.gain**2
    whole = photons.round().clamp_(min=0)
    few = whole <= FEW_PHOTONS
    drawn = torch.where(few, whole, torch.zeros_like(whole))
    kept = _binomial(drawn, fraction, generator)
    # What a split must add is photons + read, in expectation; the binomial draw has added `drawn`.
    wanted = photons - drawn + read
    spread = wanted.clamp(min=0)
    # Clipping the negative ones adds variance on the whole: take it back from the dim voxels,
    # where it arose.
    dim = few & (wanted < 4.0 * (read + 1.0))
    added, meant = (spread * dim).sum(), (wanted * dim).sum()
    spread = torch.where(dim, spread * (meant / added.clamp(min=1e-12)).clamp(0, 1), spread)
    normal = torch.randn(photons.shape, generator=generator, device=photons.device)
    kept += fraction * (photons - drawn) + (fraction * (1 - fraction) * spread).sqrt() * normal
    kept *= noise.gain
    return kept, photons * noise.gain - kept
