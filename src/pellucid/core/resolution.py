"""Resolution by Fourier ring and shell correlation, between two recordings or within one."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

from pellucid.core.noise import Noise, thin
from pellucid.core.sampling import Array, checked_shape, checked_spacing, finite, to_numpy
from pellucid.errors import InputError

Float64 = NDArray[np.float64]
Direction = Literal["all", "lateral", "axial"]
Threshold = Literal["one-seventh", "half-bit"]

# The central part of a larger volume is enough, and keeps two spectra below a gigabyte.
MAX_VOXELS = 1 << 24

CONE_COSINE = 0.8
"""Frequencies within 37 degrees of an axis speak for it."""


@dataclass(frozen=True)
class ShellCorrelation:
    """Correlation of two spectra by shell of frequency (1/um); `count` independent voxels each."""

    frequency: Float64
    correlation: Float64
    count: Float64
    reason: str = ""

    def threshold(self, kind: Threshold = "one-seventh") -> Float64:
        """1/7, or the half-bit curve of van Heel & Schatz 2005 (J. Struct. Biol. 151:250)."""
        if kind == "one-seventh":
            return np.full_like(self.frequency, 1.0 / 7.0)
        root = np.sqrt(np.maximum(self.count, 1.0))
        return np.asarray((0.2071 + 1.9102 / root) / (1.2071 + 0.9102 / root))

    def resolution_um(self, kind: Threshold = "one-seventh") -> float | None:
        """Period in micrometres at the first crossing of the threshold; None where there is none.

        None means that no shell stands above the threshold (noise alone), or that the noise of the
        two images is not independent (`reason` says so). A curve that stays above to the end is
        limited by its sampling: the answer is then the period at the highest frequency.
        """
        if self.reason:
            return None
        smooth, counts = self._smooth()
        above = smooth - self.threshold(kind)
        # Chance correlates a shell of n voxels to 1 / sqrt(n), and more where the taper ties
        # neighbours: the signal begins at the first shell that stands 5 of these above nothing.
        signal = (above > 0) & (smooth > 5.0 / np.sqrt(np.maximum(counts, 1.0)))
        if not signal.any():
            return None
        start = int(np.argmax(signal))
        below = np.flatnonzero(above[start:] <= 0)
        if below.size == 0:
            return float(1.0 / self.frequency[-1])
        i = start + int(below[0])
        share = above[i - 1] / (above[i - 1] - above[i])
        crossing = self.frequency[i - 1] + share * (self.frequency[i] - self.frequency[i - 1])
        return float(1.0 / crossing) if crossing > 0 else None

    def _smooth(self) -> tuple[Float64, Float64]:
        """The correlation averaged over three shells, to cross once, and the voxels behind it."""
        kernel = np.ones(3)
        weighted = np.convolve(self.correlation * self.count, kernel, mode="same")
        counts = np.convolve(self.count, kernel, mode="same")
        return np.asarray(weighted / np.maximum(counts, 1e-12)), np.asarray(counts)


def fourier_shell_correlation(
    a: Array,
    b: Array,
    spacing_um: tuple[float, float, float],
    *,
    direction: Direction = "all",
    lateral_limit_um: float | None = None,
) -> ShellCorrelation:
    """Correlation of two independent recordings of one object against spatial frequency (1/um).

    Parameters
    ----------
    a, b : (z, y, x) or (y, x), same shape, finite; noise independent between them
    spacing_um : (z, y, x) voxel size; shells are spheres in physical frequency
    direction : "all" shells |k|, to the finer of the Nyquist frequencies; "lateral" cylinders of
        |(ky, kx)| with |kz| up to a quarter of Nyquist; "axial" planes of |kz|, over the lateral
        frequencies up to 1 / `lateral_limit_um`. A plane keeps its signal where a cone about the
        kz axis would lie within the missing cone of a widefield microscope.
    lateral_limit_um : period of the finest lateral detail; by default the lateral crossing of 1/7

    Edges are brought to zero (cosine over an eighth of y and x, Hann along z), or they correlate.
    After van Heel & Keegstra 1987, Saxton & Baumeister 1982.
    """
    shape = checked_shape(a, "fourier_shell_correlation")
    if checked_shape(b, "fourier_shell_correlation") != shape:
        raise InputError(
            f"fourier_shell_correlation: expected two volumes of one shape, got {tuple(a.shape)} "
            f"and {tuple(b.shape)}. Crop or register them first."
        )
    if min(shape[1:]) < 16 or (direction == "axial" and shape[0] < 12):
        raise InputError(
            f"fourier_shell_correlation: expected at least 16 pixels along y and x, and 12 planes "
            f"for an axial figure, got {shape}. Take a larger region."
        )
    spacing = checked_spacing(spacing_um)
    spectra = _spectrum(a, shape), _spectrum(b, shape)
    if direction == "axial" and lateral_limit_um is None:
        lateral = _correlate(*spectra, spacing, "lateral", None).resolution_um()
        if lateral is None:
            nothing = np.zeros(0)
            return ShellCorrelation(nothing, nothing, nothing, "no lateral signal")
        lateral_limit_um = lateral
    return _correlate(*spectra, spacing, direction, lateral_limit_um)


def one_image_shell_correlation(
    volume: Array,
    noise: Noise,
    spacing_um: tuple[float, float, float],
    *,
    direction: Direction = "all",
    lateral_limit_um: float | None = None,
    seed: int = 0,
) -> ShellCorrelation:
    """What two recordings like this one would correlate to, from one image by photon splitting.

    The photons are split into two halves of independent noise (`thin`), correlated, and the
    correlation h of the halves, each of half the light, is carried to the full light: 2 h / (1 +
    h). Unlike a checkerboard split (Koho et al. 2019, Nat. Commun. 10:3103) this needs no
    empirical calibration and reaches to the Nyquist frequency, but it needs the noise: with a
    wrong gain the halves share noise. Where the highest frequencies show that, or `noise` is not
    reliable, `reason` says so.
    """
    shape = checked_shape(volume, "one_image_shell_correlation")
    if not noise.reliable or noise.gain <= 0:
        nothing = np.zeros(0)
        return ShellCorrelation(nothing, nothing, nothing, f"noise not known: {noise.reason}")
    counts = torch.from_numpy(_central(volume, shape).astype(np.float32))
    kept, held_out = thin(counts, noise, 0.5, torch.Generator().manual_seed(seed))
    halves = fourier_shell_correlation(
        kept, held_out, spacing_um, direction=direction, lateral_limit_um=lateral_limit_um
    )
    h = np.clip(halves.correlation, -0.99, 1.0)
    reason = halves.reason
    tail = slice(int(0.9 * h.size), None)
    if not reason and np.average(h[tail], weights=halves.count[tail] + 1e-9) < -0.05:
        reason = "the halves' noise is anticorrelated: the gain is smaller than stated"
    full = np.where(h > 0, 2.0 * h / (1.0 + h), h)
    return ShellCorrelation(halves.frequency, full, halves.count, reason)


def resolution_along_axes(
    image: Array, truth: Array, *, level: float = 0.5
) -> tuple[float, float, float]:
    """The finest periods (voxels) along z, y, x that correlate with a known truth by `level`.

    Parameters
    ----------
    image, truth : (z, y, x), same shape, isotropic voxels, finite
    level : correlation, over shells within 37 degrees of the axis, that is still resolved

    Whole shells are counted, so the figure comes in steps: the smallest side over a whole number.
    """
    shape = checked_shape(image, "resolution_along_axes")
    if checked_shape(truth, "resolution_along_axes") != shape or min(shape) < 12:
        raise InputError(
            f"resolution_along_axes: expected two volumes of one shape, 12 voxels or more along "
            f"each axis, got {tuple(image.shape)} and {tuple(truth.shape)}. Take a larger region."
        )
    window = np.ones(shape)
    for axis, n in enumerate(shape):
        taper = np.hanning(n + 2)[1:-1]
        window *= taper.reshape([-1 if a == axis else 1 for a in range(3)])
    whole = [finite(to_numpy(v), "resolution_along_axes") for v in (image, truth)]
    a, b = (np.fft.fftn((v - v.mean()) * window) for v in whole)
    k = np.stack(np.meshgrid(*[np.fft.fftfreq(n) for n in shape], indexing="ij"))
    radius = np.sqrt((k**2).sum(0))
    bins = np.rint(radius * min(shape)).astype(int)
    periods = []
    for axis in range(3):
        cone = (np.abs(k[axis]) >= CONE_COSINE * radius) & (radius > 0) & (radius <= 0.5)
        cross, aa, bb = (
            np.bincount(bins[cone], weights=power[cone])
            for power in ((a * b.conj()).real, np.abs(a) ** 2, np.abs(b) ** 2)
        )
        curve = (cross / np.sqrt(np.maximum(aa * bb, 1e-30)))[1:]
        below = np.flatnonzero(uniform_filter1d(curve, 3, mode="nearest") < level)
        last = int(below[0]) if below.size else len(curve)
        periods.append(min(shape) / max(last, 1))
    z, y, x = periods
    return z, y, x


def _central(volume: Array, shape: tuple[int, int, int]) -> NDArray[Any]:
    """The central part of at most MAX_VOXELS, as (z, y, x); InputError for NaN or infinity."""
    z, y, x = shape
    if len(volume.shape) == 2:
        volume = volume[None]
    side = max(16, int(np.sqrt(MAX_VOXELS / min(z, 256))))
    picks = []
    for n, limit in ((z, 256), (y, side), (x, side)):
        first = max(0, (n - limit) // 2)
        picks.append(slice(first, min(n, first + limit)))
    return finite(to_numpy(volume[tuple(picks)]), "fourier_shell_correlation")


def _spectrum(volume: Array, shape: tuple[int, int, int]) -> tuple[NDArray[np.complex64], int]:
    """Half spectrum of the central part with tapered edges, and its x size."""
    block = _central(volume, shape)
    block = (block - block.mean(dtype=np.float64)).astype(np.float32)
    for axis, n in enumerate(block.shape):
        if n > 1:
            distance = np.minimum(np.arange(n), np.arange(n)[::-1]) + 0.5
            # All of z is tapered (Hann): with few planes, what leaks from a shorter edge reaches
            # across the spectrum and correlates.
            width = n / 2 if axis == 0 else n / 8
            window = 0.5 - 0.5 * np.cos(np.pi * np.clip(distance / width, 0, 1))
            block *= window.astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    return scipy.fft.rfftn(block), block.shape[2]


def _correlate(
    first: tuple[NDArray[np.complex64], int],
    second: tuple[NDArray[np.complex64], int],
    spacing: tuple[float, float, float],
    direction: Direction,
    lateral_limit_um: float | None,
) -> ShellCorrelation:
    """Sums over the shells of one direction."""
    fa, nx = first
    fb, _ = second
    nz, ny = fa.shape[:2]
    kz = scipy.fft.fftfreq(nz, spacing[0])[:, None, None]
    lateral = np.hypot(
        scipy.fft.fftfreq(ny, spacing[1])[:, None], scipy.fft.rfftfreq(nx, spacing[2])[None, :]
    )[None]
    extents = (nz * spacing[0], ny * spacing[1], nx * spacing[2])
    step = 1.0 / min(extents[1:])
    highest = 0.5 / max(spacing[1:])
    if direction == "axial":
        radius = np.broadcast_to(np.abs(kz), fa.shape)
        inside = np.broadcast_to(lateral * (lateral_limit_um or 0.0) <= 1.0, fa.shape)
        step, highest = 1.0 / extents[0], 0.5 / spacing[0]
    elif direction == "lateral":
        radius = np.broadcast_to(lateral, fa.shape)
        inside = np.broadcast_to(np.abs(kz) <= 0.125 / spacing[0], fa.shape)
    else:
        radius = np.hypot(kz, lateral)
        inside = np.ones(fa.shape, bool)
        if nz > 1:
            highest = max(highest, 0.5 / spacing[0])
    return _shells(fa, fb, radius, inside, step, highest, nx)


def _shells(
    fa: NDArray[np.complex64],
    fb: NDArray[np.complex64],
    radius: Float64,
    inside: NDArray[np.bool_],
    step: float,
    highest: float,
    nx: int,
) -> ShellCorrelation:
    """Normalised cross-correlation by shell of width `step` (1/um); empty shells are left out."""
    bins = int(np.floor(highest / step + 1e-6)) + 1
    index = np.minimum(np.rint(radius / step), bins).astype(np.int64)
    index = np.where(inside, index, bins).ravel()
    weight = np.full(fa.shape[2], 2.0)  # the half spectrum holds most frequencies for two
    weight[0] = 1.0
    if nx % 2 == 0:
        weight[-1] = 1.0
    sums = [
        np.bincount(index, (weight * values).ravel(), bins + 1)[:bins].astype(np.float64)
        for values in (
            (fa * fb.conj()).real.astype(np.float64),
            np.abs(fa).astype(np.float64) ** 2,
            np.abs(fb).astype(np.float64) ** 2,
            np.ones(fa.shape),
        )
    ]
    cross, power_a, power_b, count = (np.asarray(s, dtype=np.float64) for s in sums)
    used = (count > 0) & (power_a > 0) & (power_b > 0)
    used[0] = False  # the mean was removed
    correlation = np.asarray(cross[used] / np.sqrt(power_a[used] * power_b[used]))
    frequency = np.arange(bins, dtype=np.float64)[used] * step
    return ShellCorrelation(frequency, correlation, count[used] / 2.0)
