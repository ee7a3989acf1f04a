"""Measured quality: against a truth, against the recording, and of one image by itself."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pellucid.core.coverage import Fill, FillChoice, fill_of
from pellucid.core.decorrelation import Decorrelation, decorrelation, volume_decorrelation
from pellucid.core.noise import Background, Noise, estimate_background, estimate_noise
from pellucid.core.residual import Residual, reblur_residual
from pellucid.core.resolution import one_image_shell_correlation
from pellucid.core.sampling import (
    Array,
    blocks_of,
    checked_shape,
    checked_spacing,
    finite,
    to_numpy,
)
from pellucid.errors import InputError, ParameterError

__all__ = [
    "Quality",
    "Residual",
    "measure",
    "ncc",
    "nrmse",
    "psnr",
    "reblur_residual",
    "ssim",
]

Float64 = NDArray[np.float64]
PERCENTILES = (0.1, 1.0, 5.0, 50.0, 95.0, 99.0, 99.9)
SLAB = 16  # planes compared at a time: float64 copies of one slab, never of the volume


def ncc(image: Array, truth: Array) -> float:
    """Pearson correlation, -1 to 1, blind to gain and offset; 0 if one of them is constant."""
    sums = _moments(image, truth, "ncc")
    denominator = np.sqrt(sums["aa"] * sums["bb"])
    return float(sums["ab"] / denominator) if denominator > 0 else 0.0


def nrmse(image: Array, truth: Array) -> float:
    """Root mean square difference over the root mean square of `truth`; 0 is perfect."""
    sums = _moments(image, truth, "nrmse")
    if sums["truth2"] <= 0:
        raise InputError("nrmse: expected a truth that is not all zero. Use another measure.")
    return float(np.sqrt(sums["diff2"] / sums["truth2"]))


def psnr(image: Array, truth: Array, data_range: float | None = None) -> float:
    """Peak signal-to-noise ratio in dB; `data_range` is max - min of `truth` unless given."""
    sums = _moments(image, truth, "psnr")
    reach = _checked_range(data_range, truth, "psnr")
    if sums["diff2"] <= 0:
        return float("inf")
    return float(10.0 * np.log10(reach**2 * sums["n"] / sums["diff2"]))


def ssim(image: Array, truth: Array, data_range: float | None = None) -> float:
    """Structural similarity, 1 is identical: mean over the volume, Gaussian window of sigma 1.5.

    Wang et al. 2004 (IEEE Trans. Image Process. 13:600), K1 = 0.01, K2 = 0.03, window of 11 voxels
    per axis (fewer axes for a plane); voxels within 5 of a border do not count. `data_range` is
    max - min of `truth` unless given. Volumes thinner than 11 planes are compared plane by plane.
    """
    shape = _same_shape(image, truth, "ssim")
    reach = _checked_range(data_range, truth, "ssim")
    if min(shape[1:]) < 11:
        raise InputError(f"ssim: expected at least 11 pixels along y and x, got {shape}.")
    image, truth = _as_volume(image), _as_volume(truth)
    depth = 5 if shape[0] >= 11 else 0
    total, count = 0.0, 0
    for first in range(depth, shape[0] - depth, SLAB):
        last = min(first + SLAB, shape[0] - depth)
        rows = slice(first - depth, last + depth)
        a, b = (finite(to_numpy(v[rows]), "ssim").astype(np.float64) for v in (image, truth))
        values = _ssim_map(a, b, reach, depth)
        values = values[depth : depth + last - first, 5:-5, 5:-5]
        total, count = total + float(values.sum()), count + values.size
    return total / count


def _ssim_map(a: Float64, b: Float64, reach: float, depth: int) -> Float64:
    sigma = (1.5 if depth else 0.0, 1.5, 1.5)

    def window(values: Float64) -> Float64:
        return np.asarray(ndimage.gaussian_filter(values, sigma, truncate=3.5))

    ma, mb = window(a), window(b)
    va, vb, cov = window(a * a) - ma * ma, window(b * b) - mb * mb, window(a * b) - ma * mb
    c1, c2 = (0.01 * reach) ** 2, (0.03 * reach) ** 2
    top = (2 * ma * mb + c1) * (2 * cov + c2)
    return np.asarray(top / ((ma**2 + mb**2 + c1) * (va + vb + c2)))


def _as_volume(values: Array) -> Any:
    return values[None] if len(values.shape) == 2 else values


def _same_shape(image: Array, truth: Array, name: str) -> tuple[int, int, int]:
    shape = checked_shape(image, name)
    if checked_shape(truth, name) != shape:
        raise InputError(
            f"{name}: expected image and truth of one shape, got {tuple(image.shape)} and "
            f"{tuple(truth.shape)}. Crop or resample one to the other's grid."
        )
    return shape


def _checked_range(data_range: float | None, truth: Array, name: str) -> float:
    if data_range is None:
        values = to_numpy(truth)
        data_range = float(values.max()) - float(values.min())
    if not (np.isfinite(data_range) and data_range > 0):
        raise ParameterError(
            f"{name}: expected a data_range > 0, got {data_range}. Give it for a constant truth."
        )
    return float(data_range)


def _moments(image: Array, truth: Array, name: str) -> dict[str, float]:
    """Centred second moments and sums of squares, in float64, slab by slab."""
    shape = _same_shape(image, truth, name)
    image, truth = _as_volume(image), _as_volume(truth)
    slabs = [slice(k, min(k + SLAB, shape[0])) for k in range(0, shape[0], SLAB)]
    n = int(np.prod(shape))

    def pairs(rows: slice) -> tuple[Float64, Float64]:
        a, b = (finite(to_numpy(v[rows]), name).astype(np.float64) for v in (image, truth))
        return a, b

    means = np.sum([[v.sum() for v in pairs(rows)] for rows in slabs], axis=0) / n
    sums = {"n": float(n), "aa": 0.0, "bb": 0.0, "ab": 0.0, "diff2": 0.0, "truth2": 0.0}
    for rows in slabs:
        a, b = pairs(rows)
        sums["diff2"] += float(((a - b) ** 2).sum())
        sums["truth2"] += float((b**2).sum())
        a, b = a - means[0], b - means[1]
        for key, value in (("aa", a * a), ("bb", b * b), ("ab", a * b)):
            sums[key] += float(value.sum())
    return sums


@dataclass(frozen=True)
class Quality:
    """What one image says about itself. Lengths in micrometres, levels in counts; None is "not
    known".

    `signal_photons` is the 99.9th percentile above the background in photons. `sampling` is the
    lateral decorrelation resolution over the Nyquist period: below about 1.2 the image is
    undersampled or limited by its pixels. `notes` are sentences that say what could not be
    measured.
    """

    shape: tuple[int, int, int]
    spacing_um: tuple[float, float, float]
    background: Background
    noise: Noise
    percentiles: dict[float, float]
    saturated_share: float
    signal_photons: float | None
    lateral_resolution_um: float | None
    axial_resolution_um: float | None
    contrast: float
    correlation_resolution_um: float | None
    sampling: float | None
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries, ready for JSON."""
        out = asdict(self)
        out["percentiles"] = {f"{k:g}": v for k, v in self.percentiles.items()}
        out["notes"] = list(self.notes)
        for key in ("shape", "spacing_um"):
            out[key] = list(out[key])
        out["noise"] = self.noise.as_dict()
        return out


def measure(
    volume: Array,
    spacing_um: tuple[float, float, float],
    *,
    seed: int = 0,
    fill: FillChoice = "auto",
) -> Quality:
    """Background, noise, percentiles and resolution of one recording, without a reference.

    Parameters
    ----------
    volume : (z, y, x) or (y, x) counts as recorded, numpy, torch or lazily sliced
    spacing_um : (z, y, x) voxel size; z is ignored for a plane
    seed : of the photon splitting behind `correlation_resolution_um` (one-image shell correlation)
    fill : what stands in voxels that were never recorded: a value, "none", or "auto" to find it. They
        do not count; for the resolutions the background stands there, without an edge
    """
    shape = checked_shape(volume, "measure")
    spacing = checked_spacing(spacing_um)
    blocks = blocks_of(volume, "measure")
    found = fill_of(volume, fill)
    known: FillChoice = found or "none"
    values = np.concatenate([b[found.recorded(b)] if found else b.ravel() for b in blocks])
    values = values if values.size else blocks[0].ravel()
    levels = np.percentile(values.astype(np.float64), PERCENTILES)
    background, noise = estimate_background(volume, fill=known), estimate_noise(volume, fill=known)
    notes = [] if noise.reliable else [f"noise: {noise.reason}"]
    if found is not None:
        volume, note = _without_fill(to_numpy(volume[:]), found, background.level)
        notes.append(note)
    lateral, axial = _decorrelate(volume, shape, spacing, notes)
    correlation = _correlation_resolution(volume, shape, noise, spacing, seed, notes)
    judged = noise.reliable and noise.gain > 0
    photons = float((levels[-1] - background.level) / noise.gain) if judged else None
    nyquist = 2.0 * max(spacing[1:])
    return Quality(
        shape,
        spacing,
        background,
        noise,
        {p: float(v) for p, v in zip(PERCENTILES, levels, strict=True)},
        noise.saturated_share,
        photons,
        lateral.resolution_um if lateral else None,
        axial.resolution_um if axial else None,
        lateral.contrast if lateral else 0.0,
        correlation,
        lateral.resolution_um / nyquist if lateral and lateral.resolution_um else None,
        tuple(notes),
    )


def _without_fill(counts: NDArray[Any], fill: Fill, level: float) -> tuple[NDArray[Any], str]:
    """The volume with its background where nothing was recorded, and a sentence about that."""
    mask = fill.recorded(counts)
    note = (
        f"fill: {1 - float(mask.mean()):.1%} of the voxels hold {fill.value:g} and were taken as never "
        "recorded; they do not count"
    )
    return np.where(mask, counts, counts.dtype.type(level)), note


def _decorrelate(
    volume: Array,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    notes: list[str],
) -> tuple[Decorrelation | None, Decorrelation | None]:
    if min(shape[1:]) < 16:
        notes.append("resolution: fewer than 16 pixels along y or x")
        return None, None
    if shape[0] == 1:
        lateral, axial = decorrelation(volume, spacing[1:]), None
    else:
        both = volume_decorrelation(volume, spacing)
        lateral, axial = both.lateral, both.axial
    for name, result in (("lateral", lateral), ("axial", axial)):
        if result is not None and result.reason:
            notes.append(f"{name} resolution: {result.reason}")
    return lateral, axial


def _correlation_resolution(
    volume: Array,
    shape: tuple[int, int, int],
    noise: Noise,
    spacing: tuple[float, float, float],
    seed: int,
    notes: list[str],
) -> float | None:
    if min(shape[1:]) < 16:
        return None
    curve = one_image_shell_correlation(volume, noise, spacing, direction="lateral", seed=seed)
    resolution = curve.resolution_um()
    if resolution is None:
        notes.append(f"shell correlation: {curve.reason or 'no frequency above the threshold'}")
    return resolution
