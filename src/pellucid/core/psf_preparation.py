"""From a PSF as somebody saved it to one that can be deconvolved with, saying what was done."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_dilation, gaussian_filter, label

from pellucid.core.psf import Psf, Triple, Volume, check_spacing_um, core_centre, rebin
from pellucid.errors import InputError, ParameterError

# Noise decisions: a smoothed voxel must stand this many standard deviations above the floor to
# count as light (1 voxel in 30000 of pure noise does).
NOISE_SIGMAS = 4.0
# Dark voxels between the core and a ring or side lobe that still belongs to it, halved.
DARK_RING_PX = 2
# Spacings that agree to 1 % are the same: a PSF of 50 voxels is off by a quarter voxel at its rim.
SPACING_TOLERANCE = 0.01
# Moving by less than this would only smooth.
SHIFT_TOLERANCE_PX = 0.02
# A camera's floor of 100 counts under a peak that fills 16 bits; anything fainter is a tail.
FAINTEST_FLOOR = 1e-3
# Light left in the outermost voxels of the sides, relative to the peak, that deserves a sentence.
CUT_TAIL = 0.01


@dataclass(frozen=True)
class Floor:
    """What the camera records without light: its level, and its noise (also after smoothing)."""

    offset: float
    noise: float
    smooth_noise: float


def prepare(
    array: npt.ArrayLike,
    spacing_um: Triple | None = None,
    image_spacing_um: Triple | None = None,
    *,
    offset: float | None = None,
) -> Psf:
    """The Psf of a recorded or computed array: cleaned, centred, on the image's voxels, sum 1.

    In order: the camera offset is removed, voxels that do not stand out of the camera's noise or
    are not connected to the peak are emptied, the bright core is moved onto the central voxel and,
    when both voxel sizes are known and differ by more than 1 %, the light is collected by the
    image's voxels (one interpolation for both). Every step that changed something is a sentence in
    `notes`.

    Parameters
    ----------
    array : (z, y, x), or (y, x) for 2D images; any real dtype
    spacing_um : voxel size (z, y, x) of `array` in micrometres, if known
    image_spacing_um : voxel size of the image that will be deconvolved, if known
    offset : camera offset in counts; None measures it in the corners, where a floor of constant
        height with noise is taken for the camera's and a sloping tail is left alone

    Raises
    ------
    InputError : wrong dimensions, not finite, flat, dark, or brightest at its border

    Examples
    --------
    >>> recording = np.full((9, 9, 9), 100.0)
    >>> recording[4, 4, 4] = 500.0
    >>> prepare(recording).notes
    ('removed an offset of 100 counts',)
    """
    values, notes = _validated(array), []
    spacing, image_spacing = check_spacing_um(spacing_um), check_spacing_um(image_spacing_um)
    floor = _given_floor(values, offset)
    if abs(floor.offset) > FAINTEST_FLOOR * values.max():
        notes.append(f"removed an offset of {floor.offset:.4g} counts")
    values = values - floor.offset
    if floor.noise > 0.0:
        values = _without_noise(values, floor)
        notes.append(
            "kept the light around the peak that stands out of the noise "
            f"({floor.noise:.3g} counts)"
        )
    elif values.min() < 0.0:
        share = -values[values < 0.0].sum() / np.abs(values).sum()
        notes.append(f"set negative values to zero ({share:.1%} of the absolute sum)")
    values = np.maximum(values, 0.0)
    notes += _recording_warnings(values)
    ratios = _ratios(spacing, image_spacing)
    values, moved = _centred(values, ratios)
    on_image = spacing is None or ratios != (1.0, 1.0, 1.0)
    return Psf.normalised(values, image_spacing if on_image else spacing, (*notes, *moved))


def _validated(array: npt.ArrayLike) -> Volume:
    given = np.asarray(array)
    if given.dtype.kind not in "iuf":
        raise InputError(
            f"PSF: expected real numbers, got {given.dtype}. Give counts or intensity."
        )
    if given.ndim not in (2, 3) or given.size == 0:
        raise InputError(
            f"PSF: expected (z, y, x) or (y, x), got shape {given.shape}. "
            "Drop channel and time axes: one PSF a channel."
        )
    values = given.astype(np.float64)
    values = values[None] if values.ndim == 2 else values
    if not np.isfinite(values).all():
        bad = int(values.size - np.isfinite(values).sum())
        raise InputError(
            f"PSF: expected finite values, got {bad} NaN or infinite. Repair the file."
        )
    if min(values.shape[1:]) < 3:
        raise InputError(f"PSF: expected at least 3 x 3 voxels in y and x, got {given.shape}.")
    if values.max() <= 0.0:
        raise InputError("PSF: expected some light, got only zeros or negative values.")
    if values.max() == values.min():
        raise InputError(f"PSF: expected a peak, got {values.max():.4g} everywhere (flat).")
    return values


def _given_floor(values: Volume, offset: float | None) -> Floor:
    measured = camera_floor(values)
    if offset is None:
        return measured
    if not np.isfinite(offset) or offset >= values.max():
        raise ParameterError(
            f"offset: expected counts below the peak of {values.max():.4g}, got {offset!r}."
        )
    return Floor(float(offset), measured.noise, measured.smooth_noise)


def camera_floor(values: Volume) -> Floor:
    """The camera's offset and noise, from the corners of a (z, y, x) volume, where a PSF fades.

    The mean of the medians of those corners that are as dark as the darker ones. It is taken for
    the camera's only if it looks like one: negative values, or a fifth percentile above half the
    median of a level that is not negligible. The tail of a computed PSF is left alone.
    """
    edges = [max(1, min(size, max(2, size // 8))) for size in values.shape]
    sides = [
        (slice(0, edge), slice(size - edge, size)) if size > 1 else (slice(0, 1),)
        for edge, size in zip(edges, values.shape, strict=True)
    ]
    corners = list(itertools.product(*sides))
    voxels = [values[corner].ravel() for corner in corners]
    medians = np.array([np.median(corner) for corner in voxels])
    noise = _spread(voxels)
    # Corners as dark as the darker ones, within the error of a median (1.25 sigma / sqrt(n)).
    error = 1.25 * noise / np.sqrt(voxels[0].size)
    dark = np.flatnonzero(medians <= np.percentile(medians, 25) + 4.0 * error)
    level = np.concatenate([voxels[corner] for corner in dark])
    offset = float(np.mean(medians[dark]))
    smoothed = gaussian_filter(values, _smoothing(values))
    smooth_noise = _spread([smoothed[corner].ravel() for corner in corners])
    low = float(np.percentile(level, 5))
    if low < 0.0 or (low > 0.5 * offset and offset >= FAINTEST_FLOOR * values.max()):
        return Floor(offset, noise, smooth_noise)
    return _clipped_floor(level, smooth_noise)


def _clipped_floor(level: Volume, smooth_noise: float) -> Floor:
    """The floor of a recording whose offset somebody removed already, clipping the noise at zero.

    Half a normal distribution is left: many zeros, a mean of 0.4 sigma, a mean square of half its
    variance. Unlike the faint tail of a computed PSF it is rough: smoothing takes most of it away.
    """
    noise = float(np.sqrt(2.0 * np.mean(level**2)))
    zeros = float(np.mean(level == 0.0))
    if not 0.2 < zeros < 0.8 or smooth_noise > 0.4 * noise:
        return Floor(0.0, 0.0, 0.0)
    return Floor(float(np.mean(level)), noise, smooth_noise)


def _smoothing(values: Volume) -> list[float]:
    return [1.0 if size > 2 else 0.0 for size in values.shape]


def _spread(samples: list[Volume]) -> float:
    """Standard deviation of the noise: the median over samples of each one's scaled MAD."""
    deviations = [np.median(np.abs(sample - np.median(sample))) for sample in samples]
    return 1.4826 * float(np.median(deviations))  # the MAD of a normal distribution


def _without_noise(values: Volume, floor: Floor) -> Volume:
    """The light around the peak that stands out of the noise; zero elsewhere.

    Clipping alone would keep the positive half of the noise, and over a whole volume that half can
    outweigh the PSF. Light that is not connected to the peak (within the width of a dark ring) is
    another bead or a camera's bright edge.
    """
    smoothed = gaussian_filter(values, _smoothing(values))
    lit = smoothed > NOISE_SIGMAS * floor.smooth_noise
    regions, _ = label(binary_dilation(lit, iterations=DARK_RING_PX))
    core = regions == regions.flat[int(np.argmax(smoothed))]
    return np.where(lit & core, values, 0.0)


def _recording_warnings(values: Volume) -> list[str]:
    """Refuses a PSF that peaks at its border; sentences for a cut tail and a saturated core."""
    soft = gaussian_filter(values, _smoothing(values))
    if not soft.max() > 0.0:
        raise InputError(
            "PSF: expected a peak, got nothing that stands out of the noise. "
            "Average more beads, or record them brighter."
        )
    peak = np.unravel_index(int(np.argmax(soft)), values.shape)
    names = [
        name
        for name, at, size in zip("zyx", peak, values.shape, strict=True)
        if size > 2 and at in (0, size - 1)
    ]
    if names:
        raise InputError(
            f"PSF: expected its peak inside the array, got it at the border in {', '.join(names)} "
            f"(index {tuple(int(i) for i in peak)} of shape {values.shape}): at most half of the "
            "PSF is there. Crop the bead with a margin on every side; if the PSF is stored with "
            "its origin at index 0, apply numpy.fft.fftshift first."
        )
    notes = []
    for axis, name in enumerate("zyx"):
        if values.shape[axis] < 3:
            continue
        lines = np.moveaxis(values, axis, 0)
        height = max(lines[0].max(), lines[-1].max()) / values.max()
        share = (lines[0].sum() + lines[-1].sum()) / values.sum()
        if height > CUT_TAIL:
            notes.append(
                f"the tail is cut in {name}: the outermost planes still hold {share:.1%} of the "
                f"light and reach {height:.1%} of the peak"
            )
    plateau = int((values >= values.max() * (1.0 - 1e-12)).sum())
    if plateau > 3:
        notes.append(f"{plateau} voxels share the maximum: the recording may be saturated")
    return notes


def _ratios(spacing: Triple | None, image_spacing: Triple | None) -> Triple:
    """Size of the new voxels in old ones; exactly 1 where the two agree or one is unknown."""
    if spacing is None or image_spacing is None:
        return 1.0, 1.0, 1.0
    z, y, x = (
        new / old if abs(new / old - 1.0) > SPACING_TOLERANCE else 1.0
        for new, old in zip(image_spacing, spacing, strict=True)
    )
    return z, y, x


def _centred(values: Volume, ratios: Triple) -> tuple[Volume, list[str]]:
    """The volume with its core on the voxel `size // 2`, in voxels `ratios` as large, and why."""
    middle = np.array([size // 2 for size in values.shape], dtype=np.float64)
    centre = np.array(core_centre(values))
    centre[np.array(values.shape) == 1] = 0.0
    move, notes = middle - centre, []
    if np.abs(move).max() > SHIFT_TOLERANCE_PX:
        notes.append(f"moved the centre by {_triple(move)} voxels")
    else:
        centre = middle
    if ratios != (1.0, 1.0, 1.0):
        notes.append(f"resampled to voxels {_triple(ratios, 3)} times as large")
    if not notes:
        return values, notes
    return rebin(values, centre, ratios), notes


def _triple(values: npt.ArrayLike, digits: int = 2) -> str:
    return "(" + ", ".join(f"{v:.{digits}f}" for v in np.asarray(values, dtype=float)) + ")"
