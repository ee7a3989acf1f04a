"""Re-blur residual: is the blurred estimate consistent with the recording's Poisson noise?"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pellucid.core.noise import Noise
from pellucid.core.sampling import Array, checked_shape, finite, to_numpy
from pellucid.errors import InputError, ParameterError

Float64 = NDArray[np.float64]

# Voxels expected to hold less than this many photons (variance in units of gain^2) carry no
# information about their own spread; they still count in the sum of their region.
MIN_PHOTONS = 0.05


@dataclass(frozen=True)
class Residual:
    """Consistency of a recording with its model, region by region.

    Arrays have the shape of the grid of regions. `chi2` is the mean squared Pearson residual, 1
    where the model is right; `chi2_z`, `bias_z` and `lag_z` (last axis z, y, x) are standard
    normal there: spread, sum and lag-1 correlation of the residual. `p` is the probability of the
    worst of them by chance. NaN where a region has too few usable voxels.
    """

    chi2: Float64
    chi2_z: Float64
    bias_z: Float64
    lag: Float64
    lag_z: Float64
    p: Float64
    overall_chi2: float
    overall_lag: tuple[float, float, float]
    rejected_share: float
    consistent: bool
    verdict: str


def reblur_residual(
    image: Array,
    model: Array,
    noise: Noise,
    *,
    region: tuple[int, int, int] = (16, 32, 32),
    level: float = 0.01,
    recorded: Array | None = None,
) -> Residual:
    """Consistency of `image` with the expected counts `model` = A x + b, under the camera's
    `noise`.

    Parameters
    ----------
    image, model : (z, y, x) or (y, x) counts, offset included in both
    noise : camera model; voxels at its saturation must be cropped before
    region : voxels per region; a rest at the border joins the last one
    level : false-alarm rate per region
    recorded : (z, y, x) booleans, False for voxels that do not count; None: all do

    For a model fitted to the same recording the spread falls below 1 as the fit follows the noise;
    that is what a low `chi2` with negative `lag` says. Spread is judged with the exact variance of
    a squared Pearson residual, 2 + gain^4 photons / variance^2, and the cube-root law of Wilson and
    Hilferty 1931; the three kinds of statistic are combined by Sidak's rule.
    """
    shape = checked_shape(image, "reblur_residual")
    if checked_shape(model, "reblur_residual") != shape:
        raise InputError(
            f"reblur_residual: expected image and model of one shape, got {tuple(image.shape)} and "
            f"{tuple(model.shape)}. Blur the estimate onto the recording's grid."
        )
    if any(n < 1 for n in region) or not 0 < level < 1:
        raise ParameterError(
            f"reblur_residual: expected regions >= 1 and a level in (0, 1), got {region}, {level}."
        )
    grid = tuple(max(1, n // r) for n, r in zip(shape, region, strict=True))
    edges = [[*range(0, r * k, r), n] for n, r, k in zip(shape, region, grid, strict=True)]
    if len(image.shape) == 2:
        image, model = image[None], model[None]
        recorded = None if recorded is None else recorded[None]
    table = np.full((*grid, 10), np.nan)
    for cell in np.ndindex(*grid):
        here = tuple(slice(e[c], e[c + 1]) for e, c in zip(edges, cell, strict=True))
        seen = finite(to_numpy(image[here]), "reblur_residual").astype(np.float64)
        expected = finite(to_numpy(model[here]), "reblur_residual").astype(np.float64)
        counts = True if recorded is None else to_numpy(recorded[here])
        table[cell] = _region(seen, expected, noise, np.broadcast_to(counts, seen.shape))
    return _summary(table, level)


def _region(seen: Float64, expected: Float64, noise: Noise, recorded: NDArray[np.bool_]) -> Any:
    """chi2, its weight and z, bias z, 3 lags, 3 lag z of one region."""
    variance = np.asarray(noise.variance(expected))
    floor = MIN_PHOTONS * noise.gain**2 + 1e-12 * float(variance.max(initial=0.0))
    usable = (variance > floor) & recorded
    total = float(variance.sum(where=recorded))
    bias_z = float((seen - expected).sum(where=recorded) / np.sqrt(total)) if total > 0 else np.nan
    n = int(usable.sum())
    out = np.full(10, np.nan)
    out[3] = bias_z
    if n < 30:
        return out
    pearson = np.where(usable, (seen - expected) / np.sqrt(np.where(usable, variance, 1.0)), 0.0)
    photons = np.maximum(expected - noise.offset, 0.0) / max(noise.gain, 1e-300)
    excess = np.where(usable, noise.gain**4 * photons / np.where(usable, variance, 1.0) ** 2, 0.0)
    chi2 = float((pearson**2).sum() / n)
    freedom = 2.0 * n * n / float(2.0 * n + excess.sum())
    spread = 2.0 / (9.0 * freedom)
    out[:3] = chi2, n, (np.cbrt(chi2) - (1.0 - spread)) / np.sqrt(spread)
    for axis in range(3):
        upper, lower = slice(1, None), slice(None, -1)
        at = [(*[slice(None)] * axis, half) for half in (upper, lower)]
        pairs = usable[at[0]] & usable[at[1]]
        count = int(pairs.sum())
        if count >= 30:
            products = (pearson[at[0]] * pearson[at[1]])[pairs]
            out[4 + axis] = float(products.mean())
            out[7 + axis] = float(products.sum() / np.sqrt(count))
    return out


def _summary(table: Float64, level: float) -> Residual:
    """Probabilities per region, and a sentence about the whole."""
    scores = np.abs(np.concatenate([table[..., 2:4], table[..., 7:]], axis=-1))
    known = np.isfinite(scores)
    number = known.sum(axis=-1)
    worst = np.where(known, scores, 0.0).max(axis=-1)
    smallest = 2.0 * stats.norm.sf(worst)
    p = np.where(number > 0, -np.expm1(number * np.log1p(-np.minimum(smallest, 1 - 1e-16))), np.nan)
    judged = np.isfinite(p)
    rejected, regions = int((p[judged] < level).sum()), int(judged.sum())
    share = rejected / regions if regions else 0.0
    weight = np.where(np.isfinite(table[..., 1]), table[..., 1], 0.0)
    spare = max(float(weight.sum()), 1.0)
    overall = float((weight * np.nan_to_num(table[..., 0])).sum() / spare)
    lags = [float((weight * np.nan_to_num(table[..., 4 + a])).sum() / spare) for a in range(3)]
    # More rejections than chance gives in one of a thousand consistent recordings.
    consistent = regions > 0 and rejected <= int(stats.binom.isf(1e-3, regions, level))
    bias = float(np.nanmedian(np.abs(table[..., 3]))) if regions else 0.0
    verdict = _verdict(regions, rejected, overall, max(lags, key=abs), bias, consistent)
    return Residual(
        table[..., 0], table[..., 2], table[..., 3], table[..., 4:7], table[..., 7:], p, overall,
        (lags[0], lags[1], lags[2]), share, consistent, verdict,
    )  # fmt: skip


def _verdict(
    regions: int, rejected: int, chi2: float, lag: float, bias: float, consistent: bool
) -> str:
    figures = f"{rejected} of {regions} regions off, chi2 {chi2:.3f}, strongest lag-1 {lag:+.3f}"
    if regions == 0:
        return "not judged: no region with enough light"
    if consistent:
        return f"consistent with the recording ({figures})"
    if chi2 < 0.95 and lag < 0.01:
        return f"follows the noise: residual smaller than the noise ({figures})"
    if lag > 0.01:
        return f"not consistent: structure is left in the residual ({figures})"
    if bias > 2.0:
        return f"not consistent: brightness or background is off ({figures})"
    return f"not consistent: the noise is not as stated ({figures})"
