"""Point spread functions: the value that carries one, and what is measured on it or done to it.

Convention: a PSF is (z, y, x), non-negative, sums to 1, and its centre is the voxel `size // 2`
of each axis, for odd and even sizes alike. A PSF of a 2D image is (1, y, x). A voxel's value is the
light that falls into the voxel, so that other voxels are other integrals of the same light.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.interpolate import make_interp_spline
from scipy.ndimage import gaussian_filter

from pellucid.errors import InputError, ParameterError

Volume = npt.NDArray[np.float64]
Triple = tuple[float, float, float]

FWHM_PER_SIGMA = float(2.0 * np.sqrt(2.0 * np.log(2.0)))


@dataclass(frozen=True, eq=False)
class Psf:
    """A point spread function: non-negative, sum 1, centred on the voxel `size // 2` of each axis.

    Parameters
    ----------
    values : (z, y, x) float64, read-only; (1, y, x) for 2D images
    spacing_um : voxel size (z, y, x) in micrometres, None when unknown
    notes : sentences that say where the PSF comes from and what was done to it

    Raises
    ------
    InputError : not (z, y, x), not finite, negative, or a sum other than 1. `prepare` makes a Psf
        of a recording, `Psf.normalised` of clean values.

    Examples
    --------
    >>> Psf.normalised(np.ones((1, 3, 3)), (1.0, 0.1, 0.1)).centre
    (0, 1, 1)
    """

    values: Volume
    spacing_um: Triple | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float64)
        _check_volume(values)
        if values.min() < 0.0 or abs(values.sum() - 1.0) > 1e-6:
            raise InputError(
                "Psf: expected non-negative values with sum 1, got a minimum of "
                f"{values.min():.3g} and a sum of {values.sum():.6g}. Use prepare(array) for a "
                "recording, Psf.normalised(array) for clean values."
            )
        values.setflags(write=False)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "spacing_um", check_spacing_um(self.spacing_um))
        object.__setattr__(self, "notes", tuple(self.notes))

    @classmethod
    def normalised(
        cls,
        values: npt.ArrayLike,
        spacing_um: Triple | None = None,
        notes: tuple[str, ...] = (),
    ) -> Psf:
        """The Psf of clean, centred values: rounding below zero clipped, divided by the sum."""
        clipped = np.maximum(np.asarray(values, dtype=np.float64), 0.0)
        _check_volume(clipped)
        total = clipped.sum()
        if not total > 0.0:
            raise InputError("Psf: expected some light, got only zeros or negative values.")
        return cls(clipped / total, spacing_um, notes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (z, y, x)."""
        z, y, x = self.values.shape
        return z, y, x

    @property
    def centre(self) -> tuple[int, int, int]:
        """Index of the voxel at which the PSF is centred."""
        z, y, x = self.values.shape
        return z // 2, y // 2, x // 2

    @property
    def typical(self) -> Psf:
        """The PSF itself: what a `PsfField` has in its place is its mean."""
        return self

    def noted(self, *sentences: str) -> Psf:
        """The same PSF with more notes."""
        return Psf(self.values, self.spacing_um, (*self.notes, *sentences))


def check_spacing_um(spacing_um: Any) -> Triple | None:
    """The voxel size as three floats (z, y, x) in micrometres, or None; refuses other units."""
    if spacing_um is None:
        return None
    sizes = tuple(float(size) for size in np.atleast_1d(spacing_um))
    if len(sizes) != 3 or not all(np.isfinite(size) and size > 0 for size in sizes):
        raise ParameterError(
            f"spacing_um: expected three positive micrometres (z, y, x), got {spacing_um!r}. "
            "For a 2D image give any z, for example (1.0, y, x)."
        )
    # No light microscope samples finer than 1 nm; voxels above 50 um hold a whole cell.
    if min(sizes) < 1e-3 or max(sizes) > 50.0:
        raise ParameterError(
            f"spacing_um: expected micrometres between 0.001 and 50, got {spacing_um!r}. "
            "If these are nanometres divide by 1000; if metres multiply by 1e6."
        )
    return sizes


def _check_volume(values: Volume) -> None:
    if values.ndim != 3 or values.size == 0:
        raise InputError(
            f"Psf: expected a (z, y, x) volume, got shape {values.shape}. "
            "A 2D PSF is (1, y, x); drop channel and time axes."
        )
    if not np.isfinite(values).all():
        bad = int(values.size - np.isfinite(values).sum())
        raise InputError(
            f"Psf: expected finite values, got {bad} NaN or infinite. Repair the file."
        )


# --------------------------------------------------------------------------- measuring


def fwhm_px(psf: Psf | Volume) -> Triple:
    """Full width at half maximum (z, y, x) in voxels, along the lines through the brightest voxel.

    Each line is read through its interpolating cubic spline, whose top and half crossings count, so
    that a peak between two voxels is measured as wide as one on a voxel. NaN for an axis whose
    line never falls to half, and for an axis of one voxel: the width is then not in the data.
    """
    values = psf.values if isinstance(psf, Psf) else np.asarray(psf, dtype=np.float64)
    peak = _brightest(values)
    widths = []
    for axis in range(3):
        widths.append(line_fwhm(line_through(values, axis, peak), peak[axis]))
    return widths[0], widths[1], widths[2]


def fwhm_um(psf: Psf) -> Triple:
    """Full width at half maximum (z, y, x) in micrometres; NaN where `fwhm_px` is."""
    if psf.spacing_um is None:
        raise InputError("fwhm_um: expected a PSF with a voxel size, got None. Use fwhm_px.")
    z, y, x = (w * s for w, s in zip(fwhm_px(psf), psf.spacing_um, strict=True))
    return z, y, x


def line_fwhm(line: Volume, peak: int) -> float:
    """Full width at half maximum, in samples, of the peak at or beside index `peak`; or NaN."""
    if line.size < 3:
        return float("nan")
    per_voxel = 64  # crossings are then linear between samples to better than 1e-3 voxels
    spline = make_interp_spline(np.arange(line.size), line, k=min(3, line.size - 1))
    at = np.linspace(0.0, line.size - 1.0, (line.size - 1) * per_voxel + 1)
    fine = spline(at)
    near = slice(max(0, (peak - 1) * per_voxel), (peak + 1) * per_voxel + 1)
    top = near.start + int(np.argmax(fine[near]))
    below = fine < 0.5 * fine[top]
    right, left = np.flatnonzero(below[top:]), np.flatnonzero(below[: top + 1])
    if right.size == 0 or left.size == 0:
        return float("nan")

    def crossing(inside: int, outside: int) -> float:
        share = (fine[inside] - 0.5 * fine[top]) / (fine[inside] - fine[outside])
        return float(at[inside] + share * (at[outside] - at[inside]))

    first_right, first_left = top + int(right[0]), int(left[-1])
    return crossing(first_right - 1, first_right) - crossing(first_left + 1, first_left)


def centroid(psf: Psf | Volume) -> Triple:
    """Centre of gravity (z, y, x) of all the light, as a fractional voxel index."""
    values = psf.values if isinstance(psf, Psf) else np.asarray(psf, dtype=np.float64)
    total = values.sum()
    at = []
    for axis in range(3):
        marginal = values.sum(axis=tuple(a for a in range(3) if a != axis))
        at.append(float(marginal @ np.arange(marginal.size) / total))
    return at[0], at[1], at[2]


def core_centre(values: Volume, start: tuple[int, int, int] | None = None) -> Triple:
    """Centre (z, y, x) of the bright core, as a fractional voxel index.

    The point about which the Gaussian-weighted centroid is zero, the weight being as wide as the
    core: sub-voxel for any symmetric core, blind to tails and to light further away. Without
    `start` it looks around the peak of the lightly smoothed volume, which a hot pixel seldom is.
    """
    soft = gaussian_filter(values, [1.0 if size > 2 else 0.0 for size in values.shape])
    if start is None:
        start = _brightest(soft)
    widths = [line_fwhm(line_through(soft, axis, start), start[axis]) for axis in range(3)]
    sigmas = [
        max(w / FWHM_PER_SIGMA, 0.8) if np.isfinite(w) else max(size / 6.0, 0.8)
        for w, size in zip(widths, values.shape, strict=True)
    ]
    spans = [
        slice(max(0, at - int(4 * s) - 1), at + int(4 * s) + 2)
        for at, s in zip(start, sigmas, strict=True)
    ]
    box = np.maximum(values[tuple(spans)], 0.0)
    axes = [np.arange(span.start, span.start + n) for span, n in zip(spans, box.shape, strict=True)]
    centre = np.array(start, dtype=np.float64)
    for _ in range(50):
        step = _weighted_centroid(box, axes, centre, sigmas) - centre
        centre += 2.0 * step  # exact for a Gaussian core under a weight of the same width
        if np.abs(step).max() < 1e-4:
            break
    if np.any(np.abs(centre - start) > 2.0 * np.array(sigmas) + 1.0):
        return float(start[0]), float(start[1]), float(start[2])
    return float(centre[0]), float(centre[1]), float(centre[2])


def _brightest(values: Volume) -> tuple[int, int, int]:
    z, y, x = np.unravel_index(int(np.argmax(values)), values.shape)
    return int(z), int(y), int(x)


def line_through(values: Volume, axis: int, voxel: tuple[int, int, int]) -> Volume:
    """The values along `axis` through `voxel`."""
    index: list[int | slice] = list(voxel)
    index[axis] = slice(None)
    return values[tuple(index)]


def _weighted_centroid(
    box: Volume, axes: list[npt.NDArray[np.int_]], centre: Volume, sigmas: list[float]
) -> Volume:
    weights = [
        np.exp(-0.5 * ((at - c) / s) ** 2) for at, c, s in zip(axes, centre, sigmas, strict=True)
    ]
    weighted = np.einsum("zyx,z,y,x->zyx", box, *weights)
    total = weighted.sum()
    if not total > 0.0:
        return centre
    at: Volume = np.array([first[0] for first in axes], dtype=np.float64)
    at += centroid(weighted)
    return at


# --------------------------------------------------------------------------- changing


def crop_to_support(psf: Psf, energy: float = 0.999) -> Psf:
    """The smallest box about the centre that holds at least `energy` of the light, sum 1 again.

    Each axis may lose a third of what is left over, so the bound holds for the box as a whole.
    """
    if not 0.0 < energy <= 1.0:
        raise ParameterError(f"energy: expected a share in (0, 1], got {energy!r}.")
    spans = []
    for axis, (size, centre) in enumerate(zip(psf.shape, psf.centre, strict=True)):
        marginal = psf.values.sum(axis=tuple(a for a in range(3) if a != axis))
        distance = np.abs(np.arange(size) - centre)
        within = np.cumsum(np.bincount(distance, weights=marginal))
        half = int(np.searchsorted(within, within[-1] * (1.0 - (1.0 - energy) / 3.0) - 1e-15))
        spans.append(slice(max(0, centre - half), min(size, centre + half + 1)))
        if spans[-1].stop - spans[-1].start == size or half >= size - centre:
            spans[-1] = slice(0, size)  # an even axis keeps its extra voxel, and with it its centre
    box = psf.values[tuple(spans)]
    if box.shape == psf.shape:
        return psf
    note = (
        f"cropped from {psf.shape} to {box.shape} voxels, which hold {box.sum():.2%} of the light"
    )
    return Psf.normalised(box, psf.spacing_um, (*psf.notes, note))


def focal_plane(psf: Psf) -> Psf:
    """The PSF of a 2D image: the plane through the centre, sum 1, as (1, y, x)."""
    if psf.shape[0] == 1:
        return psf
    plane = psf.values[psf.centre[0]][None]
    return Psf.normalised(plane, psf.spacing_um, (*psf.notes, "took the plane in focus"))


def resample(psf: Psf, spacing_um: Triple) -> Psf:
    """The same light collected by voxels of another size; sum kept, odd sizes, centre kept.

    The light below each position is known exactly at the voxel borders. It is interpolated by a
    cubic spline and differenced at the new borders, so new voxels integrate over their own extent:
    larger ones average (no aliasing), smaller ones share out what the old voxel held.
    """
    target = check_spacing_um(spacing_um)
    if psf.spacing_um is None or target is None:
        raise InputError("resample: expected a PSF with a voxel size, got None. Give spacing_um.")
    ratios = [new / old for new, old in zip(target, psf.spacing_um, strict=True)]
    values = rebin(psf.values, psf.centre, ratios)
    note = f"resampled from {_triple(psf.spacing_um)} to {_triple(target)} um per voxel"
    return Psf.normalised(values, target, (*psf.notes, note))


def rebin(values: Volume, centre: npt.ArrayLike, ratios: npt.ArrayLike) -> Volume:
    """Light in new voxels, `ratios` times as large, the middle one centred at index `centre`.

    All light is kept but for the half voxel that may not fill one more at the border. Sizes are
    odd; an axis of one voxel stays as it is. Shifting and resampling are this one interpolation;
    beside an edge it may dip below zero, which `Psf.normalised` clips.
    """
    for axis, (at, ratio) in enumerate(
        zip(np.asarray(centre, dtype=float), np.asarray(ratios, dtype=float), strict=True)
    ):
        if values.shape[axis] > 1:
            values = _rebin_axis(values, axis, float(at), float(ratio))
    return values


def _rebin_axis(values: Volume, axis: int, centre: float, ratio: float) -> Volume:
    size = values.shape[axis]
    extent = max(centre + 0.5, size - 0.5 - centre) / ratio
    half = max(int(np.floor(extent + 1e-6)), 0) if ratio == 1.0 else int(np.ceil(extent - 0.5))
    lines = np.moveaxis(values, axis, -1)
    dark = 3  # empty voxels on either side: the spline then knows that the light ends
    padded = np.pad(lines, [(0, 0), (0, 0), (dark, dark)])
    below = np.concatenate([np.zeros((*padded.shape[:2], 1)), np.cumsum(padded, axis=-1)], axis=-1)
    borders = np.arange(below.shape[-1]) - dark - 0.5
    wanted = centre + (np.arange(-half, half + 2) - 0.5) * ratio
    spline = make_interp_spline(borders, below, k=3, axis=-1)
    light = np.diff(spline(np.clip(wanted, borders[0], borders[-1])), axis=-1)
    return np.moveaxis(light, -1, axis)


def _triple(values: npt.ArrayLike, digits: int = 4) -> str:
    return "(" + ", ".join(f"{v:.{digits}g}" for v in np.asarray(values, dtype=float)) + ")"
