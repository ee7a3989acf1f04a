"""Resolution and contrast of one image by decorrelation analysis, without calibration.

Descloux, Grussmayer, Radenovic 2019, Nature Methods 16:918. The image's spectrum I is correlated
with its own phase, I/|I|, inside a growing disc of radius r; since Re(I conj(I)/|I|) = |I|,

    d(r) = sum_{|k|<r} |I| / sqrt(sum |I|^2 * N(r)),

which rises while a ring adds signal and falls once it adds only noise. Gaussian high-pass filters
of growing strength move the maximum outwards; the outermost one that is significant is the
cut-off. All filters are radial, so we bin |I| and |I|^2 by radius once and evaluate every curve on
the bins: the whole analysis costs one FFT.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from pellucid.core.sampling import Array, checked_shape, checked_spacing, finite, to_numpy
from pellucid.errors import InputError

Float64 = NDArray[np.float64]

RADII = 50  # sampling of r and number of high-pass filters as published
FILTERS = 10
SIGNIFICANT_DROP = 1e-3  # a maximum counts when the curve falls by this much beyond it
SIGNIFICANT_HEIGHT = 0.05  # and is at least this high
TAPER = 20  # pixels of cosine edge, as published
MAX_PLANES = 16
MAX_AXIAL_VOXELS = 1 << 24


@dataclass(frozen=True)
class Decorrelation:
    """Cut-off of one image: the resolution (None with a reason where there is no signal), and
    contrast.

    `contrast` is the height A0 of the unfiltered curve's maximum, which grows with the
    signal-to-noise ratio; `cutoff` the cut-off in units of the Nyquist frequency.
    """

    resolution_um: float | None
    contrast: float
    cutoff: float
    reason: str = ""


@dataclass(frozen=True)
class VolumeDecorrelation:
    """Lateral and axial cut-off of a volume; `planes_um` is lateral, per analysed plane."""

    lateral: Decorrelation
    axial: Decorrelation | None
    planes_um: tuple[float | None, ...]


def decorrelation(image: Array, spacing_um: tuple[float, float]) -> Decorrelation:
    """Resolution of a (y, x) image in micrometres: the period at its cut-off frequency.

    Parameters
    ----------
    image : (y, x) or (1, y, x), at least 16 pixels along each axis
    spacing_um : (y, x) pixel size. Unequal pixels are analysed up to the smaller Nyquist frequency.
    """
    shape = checked_shape(image, "decorrelation")
    if shape[0] != 1:
        raise InputError(
            f"decorrelation: expected one (y, x) plane, got shape {shape}. "
            "Use volume_decorrelation for a volume."
        )
    plane = finite(to_numpy(image).reshape(shape[1:]), "decorrelation")
    return _analyse(*_ring_sums(plane, checked_spacing((1.0, *spacing_um))[1:]), min(shape[1:]))


def volume_decorrelation(
    volume: Array, spacing_um: tuple[float, float, float]
) -> VolumeDecorrelation:
    """Lateral and axial resolution of a (z, y, x) volume in micrometres.

    Lateral: each of up to 16 planes evenly spread through the depth; the median of those with
    signal. Axial: the same analysis with the radius replaced by |kz|, over all lateral frequencies
    inside the lateral cut-off. A cone about the kz axis, the usual choice, would look for the
    axial resolution of a widefield microscope inside its missing cone.
    """
    z = checked_shape(volume, "volume_decorrelation")[0]
    spacing = checked_spacing(spacing_um)
    if len(volume.shape) == 2:
        volume = volume[None]
    chosen = np.unique(np.linspace(0, z - 1, min(z, MAX_PLANES)).astype(int))
    planes = [decorrelation(volume[int(k)], spacing[1:]) for k in chosen]
    known = [p for p in planes if p.resolution_um is not None]
    found = tuple(p.resolution_um for p in planes)
    if not known:
        return VolumeDecorrelation(planes[0], None, found)
    middle = sorted(known, key=lambda p: p.cutoff)[len(known) // 2]
    return VolumeDecorrelation(middle, _axial(volume, spacing, middle), found)


def _tapered(values: NDArray[Any], widths: tuple[int, ...]) -> NDArray[Any]:
    """`values` less their mean, brought to zero at the edges by a cosine of `widths` samples."""
    out = np.asarray(values - values.mean())
    for axis, width in enumerate(widths):
        n = values.shape[axis]
        distance = np.minimum(np.arange(n), np.arange(n)[::-1]) + 0.5
        window = 0.5 - 0.5 * np.cos(np.pi * np.clip(distance / max(width, 1), 0, 1))
        out *= window.reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    return out


def _odd(plane: NDArray[Any]) -> NDArray[Any]:
    return plane[tuple(slice(0, n - (n + 1) % 2) for n in plane.shape)]


def _ring_sums(
    plane: NDArray[Any], spacing: tuple[float, ...]
) -> tuple[Float64, Float64, Float64, float]:
    """Per ring out to Nyquist: voxels, sum |I|, sum |I|^2; and the Nyquist frequency (1/um)."""
    plane = _odd(plane)
    if min(plane.shape) < 15:
        raise InputError(
            f"decorrelation: expected at least 16 pixels along y and x, got {plane.shape}."
        )
    widths = tuple(min(TAPER, n // 8) for n in plane.shape)
    spectrum = np.abs(scipy.fft.rfft2(_tapered(plane.astype(np.float64), widths)))
    nyquist = 0.5 / max(spacing)
    ky = scipy.fft.fftfreq(plane.shape[0], spacing[0]) / nyquist
    kx = scipy.fft.rfftfreq(plane.shape[1], spacing[1]) / nyquist
    # The half spectrum holds each frequency but those of kx = 0 for two.
    twice = np.where(kx > 0, 2.0, 1.0)[None, :]
    return *_binned(np.hypot(ky[:, None], kx[None, :]), spectrum, twice, max(plane.shape)), nyquist


def _binned(
    radius: Float64, amplitude: NDArray[Any], weight: Float64, samples: int
) -> tuple[Float64, Float64, Float64]:
    """(count, sum of amplitude, sum of its square) in bins finer than the frequency sampling."""
    bins = 4 * samples
    index = np.minimum((radius * bins).astype(np.int64), bins).ravel()
    weight = np.broadcast_to(weight, amplitude.shape)
    sums = [
        np.bincount(index, (weight * w).ravel(), bins + 1)[:bins].astype(np.float64)
        for w in (np.ones_like(amplitude), amplitude, amplitude.astype(np.float64) ** 2)
    ]
    return sums[0], sums[1], sums[2]


def _curve(
    sums: tuple[Float64, Float64, Float64], strength: float | None, radii: Float64
) -> Float64:
    """d(r) at `radii` after the high-pass 1 - exp(-2 strength^2 r^2); unfiltered for None."""
    count, amplitude, power = sums
    centres = (np.arange(count.size) + 0.5) / count.size
    gain = np.ones_like(centres)
    if strength is not None:
        gain = -np.expm1(-2.0 * strength**2 * centres**2)
    total = np.sqrt((gain**2 * power).sum())
    edge = np.clip(np.ceil(radii * count.size).astype(int), 0, count.size)
    inside = np.concatenate([[0.0], np.cumsum(gain * amplitude)])[edge]
    number = np.concatenate([[0.0], np.cumsum(count)])[edge]
    return np.asarray(inside / np.maximum(total * np.sqrt(number), 1e-300))


def _maximum(curve: Float64) -> tuple[int, float]:
    """(index, height) of the highest maximum that the curve falls from significantly; or 0."""
    end = curve.size
    while end > 1:
        top = int(np.argmax(curve[:end]))
        if top == 0:
            return 0, float(curve[0])
        if top < end - 1 and curve[top] - curve[top:end].min() >= SIGNIFICANT_DROP:
            return top, float(curve[top])
        end -= 1
    return 0, float(curve[0])


def _analyse(
    count: Float64, amplitude: Float64, power: Float64, nyquist: float, samples: int
) -> Decorrelation:
    """Two sweeps of high-pass filters, the second about the best of the first, as published."""
    sums = (count, amplitude, power)
    if power.sum() <= 0:
        return Decorrelation(None, 0.0, 0.0, "the image is constant")
    radii = np.linspace(0.0, 1.0, RADII)
    first, contrast = _maximum(_curve(sums, None, radii))
    peaks = [(float(radii[first]), contrast)]
    weakest = 2.0 / radii[first] if first else samples / 2
    strengths = np.array([samples / 4, *np.geomspace(weakest, 0.15, FILTERS)])
    coarse = [_peak(sums, s, radii) for s in strengths]
    far = max(r for r, _ in peaks + coarse)
    low, high = _bracket(strengths, [r for r, _ in coarse], far, float(samples))
    step = radii[1]
    fine_radii = np.linspace(max(0.0, far - step), min(1.0, far + 0.4), RADII)
    peaks += coarse + [_peak(sums, s, fine_radii) for s in np.geomspace(low, high, FILTERS)]
    cutoff = max((r for r, height in peaks if height >= SIGNIFICANT_HEIGHT), default=0.0)
    if cutoff <= 0:
        return Decorrelation(None, 0.0, 0.0, "no frequency stands out from the noise")
    return Decorrelation(1.0 / (cutoff * nyquist), contrast if first else 0.0, cutoff)


def _bracket(
    strengths: Float64, radii: list[float], far: float, weakest: float
) -> tuple[float, float]:
    """The pair of filters to refine between: the last that reached `far`, and the next one."""
    reached = [i for i, r in enumerate(radii) if r == far]
    if not reached:
        return weakest, float(strengths[0])
    best = reached[-1]
    first = best if best < len(strengths) - 2 else best - 1
    return float(strengths[first]), float(strengths[first + 1])


def _peak(
    sums: tuple[Float64, Float64, Float64], strength: float, radii: Float64
) -> tuple[float, float]:
    index, height = _maximum(_curve(sums, float(strength), radii))
    return (float(radii[index]), height) if index else (0.0, 0.0)


def _axial(
    volume: Array, spacing: tuple[float, float, float], lateral: Decorrelation
) -> Decorrelation:
    """The analysis along kz, over the lateral frequencies that carry signal."""
    z, y, x = checked_shape(volume, "volume_decorrelation")
    if z < 12:
        return Decorrelation(None, 0.0, 0.0, f"{z} planes are too few for an axial resolution")
    # The central part is enough, and keeps the spectrum small.
    side = max(16, int(np.sqrt(MAX_AXIAL_VOXELS / z)))
    rows = slice(max(0, (y - side) // 2), max(0, (y - side) // 2) + side)
    columns = slice(max(0, (x - side) // 2), max(0, (x - side) // 2) + side)
    block = finite(_odd(to_numpy(volume[:, rows, columns])), "volume_decorrelation")
    # All of z is tapered (Hann): what leaks from a shorter edge reaches across few frequencies.
    widths = (block.shape[0] // 2, *(min(TAPER, n // 8) for n in block.shape[1:]))
    spectrum = np.abs(scipy.fft.rfftn(_tapered(block.astype(np.float32), widths)))
    nyquist = 0.5 / spacing[0]
    kz = np.abs(scipy.fft.fftfreq(block.shape[0], spacing[0])) / nyquist
    ky = scipy.fft.fftfreq(block.shape[1], spacing[1])
    kx = scipy.fft.rfftfreq(block.shape[2], spacing[2])
    inside = np.hypot(ky[:, None], kx[None, :]) <= lateral.cutoff * 0.5 / max(spacing[1:])
    twice = np.broadcast_to(np.where(kx > 0, 2.0, 1.0), inside.shape)[inside]
    picked = spectrum[:, inside]
    radius = np.broadcast_to(kz[:, None], picked.shape)
    return _analyse(*_binned(radius, picked, twice, block.shape[0]), nyquist, block.shape[0])
