"""The passband of a blur: widths, cutoffs, and the low-passes that back projectors are made of."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from pellucid.core.fourier import Shape, frequencies, in_parallel, transfer_function
from pellucid.core.operators import Blur
from pellucid.core.psf import Psf, fwhm_px
from pellucid.errors import ParameterError

Lengths = tuple[float, float, float]

PIECE = 2**14
"""Voxels that torch computes on one thread always (it divides from 2^15 on)."""


def widths_of(blur: Blur) -> Lengths:
    """Return the FWHM of the blur's PSF in voxels (z, y, x), NaN where it never falls to half."""
    widths = fwhm_px(Psf.normalised(blur.psf.double().clamp_min(0).cpu().numpy()))
    z, y, x = (1.0 if n == 1 else w for w, n in zip(widths, blur.grid, strict=True))
    return z, y, x


def fwhm_of(blur: Blur) -> Lengths:
    """Return the FWHM of the blur's PSF in voxels (z, y, x); refuse a PSF that has none."""
    widths = widths_of(blur)
    if not all(np.isfinite(widths)):
        raise ParameterError(
            f"The PSF never falls to half its peak on every axis (FWHM {widths} voxels, z y x), so "
            "there is no Gaussian as wide. Use a larger PSF, or another back projector."
        )
    return widths


def band_edge_px(blur: Blur, level: float = 1e-3) -> Lengths:
    """Return 1 / (largest frequency on each axis where |H| exceeds `level`), in voxels (z, y, x).

    The cutoff that the OTF itself states, for PSFs whose FWHM says nothing.
    """
    above = magnitude(blur) > level
    edges = []
    for axis, f in enumerate(frequencies(blur.grid)):
        others = [d for d in range(3) if d != axis]
        reached = above.any(dim=others[1]).any(dim=others[0])
        edges.append(1 / max(float(f.flatten().abs()[reached].max()), 1 / blur.grid[axis]))
    return edges[0], edges[1], edges[2]


def gain_at_cutoff(gain: Tensor, blur: Blur, cutoff_px: Lengths) -> float:
    """Return the mean over the axes of `gain`'s projected maximum at the cutoff frequency.

    Linear interpolation between frequencies; the released program rounds to the nearest.
    """
    values: list[float] = []
    for axis, (n, length) in enumerate(zip(blur.grid, cutoff_px, strict=True)):
        if n == 1:
            continue
        others = tuple(d for d in range(3) if d != axis)
        profile = gain.amax(dim=others)[: n // 2 + 1].numpy()
        values.append(float(np.interp(n / length, np.arange(len(profile)), profile)))
    return float(np.mean(values))


def magnitude(blur: Blur) -> Tensor:
    """Return |H| on the half spectrum, on the CPU, in the blur's precision; 1 at zero frequency."""
    absolute: Tensor = blur.transfer.abs().cpu()
    return absolute.div_(float(absolute[0, 0, 0]))


def radius_squared(blur: Blur, length_px: Lengths) -> Tensor:
    """Return sum_d (f_d length_d)^2 on the half spectrum."""
    f_z, f_y, f_x = (f.to(blur.transfer.real.dtype) for f in frequencies(blur.grid))
    return (f_z * length_px[0]) ** 2 + (f_y * length_px[1]) ** 2 + (f_x * length_px[2]) ** 2


def butterworth(blur: Blur, cutoff_px: Lengths, steepness: float, order: float) -> Tensor:
    """Return 1 / sqrt(1 + steepness w^order) with w = radius_squared(blur, cutoff_px)."""
    # in logarithms, so that w^order cannot overflow: 1 / sqrt(1 + exp(t)) = exp(-softplus(t) / 2)
    offset = np.log(max(steepness, 1e-30))

    def gain(w: Tensor) -> None:
        exponent = w.log_().mul_(order).add_(offset)
        w.copy_(torch.nn.functional.softplus(exponent)).mul_(-0.5).exp_()

    return in_pieces(gain, radius_squared(blur, cutoff_px))


def in_pieces(change: Callable[[Tensor], object], spectrum: Tensor) -> Tensor:
    """Change a spectrum in place, voxel by voxel, to the same bits on any number of threads.

    Vectorised exponentials differ in the last bit from those of the few voxels left at the end of a
    thread's share; pieces of a plane that torch never divides end in the same places always.
    """

    def planes_at(planes: slice) -> None:
        for plane in spectrum[planes]:
            for piece in plane.view(-1).split(PIECE):
                change(piece)

    in_parallel(planes_at, len(spectrum))
    return spectrum


def centred(blur: Blur, gain: Tensor) -> Tensor:
    """Give a real transfer function the shift between image and object, and the matched flux."""
    point = torch.zeros(blur.psf.shape, dtype=torch.float64)
    point[tuple(n // 2 for n in point.shape)] = 1
    origin = tuple(n // 2 + m for n, m in zip(point.shape, blur.margin, strict=True))
    shift = transfer_function(point, blur.grid, origin).conj()  # type: ignore[arg-type]
    flux = float(blur.transfer[0, 0, 0].abs())
    return (flux * gain * shift).to(blur.transfer.dtype).to(blur.transfer.device).resolve_conj()


def apodised_support(blur: Blur, energy: float, apodised_from: float) -> Tensor:
    """Return 1 inside the support of the OTF, falling to 0 at its edge; see `OtfMaskedWiener`."""
    absolute = np.fft.fftshift(_whole_spectrum(magnitude(blur).numpy(), blur.grid))
    ranked = np.sort(absolute, axis=None)[::-1]
    level = ranked[np.searchsorted(np.cumsum(ranked), energy * ranked.sum())]
    support = absolute > max(level, 1e-3)
    ball = ndimage.generate_binary_structure(3, 1)
    rounded = ndimage.binary_opening(ndimage.binary_closing(support, ball, 2), ball, 1)
    labels, _ = ndimage.label(rounded | (absolute >= 0.5))
    centre = tuple(n // 2 for n in absolute.shape)
    support = labels == labels[centre]
    # rho = distance / distance of the edge in that direction = r_in / (r_in + r_out)
    inside = ndimage.distance_transform_edt(np.pad(support, 1))[1:-1, 1:-1, 1:-1]
    axes = np.ogrid[tuple(slice(-c, n - c) for c, n in zip(centre, absolute.shape, strict=True))]
    radius = np.sqrt(sum(a.astype(float) ** 2 for a in axes))
    rho = radius / np.maximum(radius + inside, 1e-9)
    fall = np.clip((rho - apodised_from) / (1 - apodised_from), 0, 1)
    mask = np.where(support, np.cos(0.5 * np.pi * fall) ** 2, 0.0)
    mask[centre] = 1.0
    return torch.from_numpy(np.fft.ifftshift(mask)[:, :, : blur.grid[2] // 2 + 1].copy())


def _whole_spectrum(half: NDArray[np.float64], grid: Shape) -> NDArray[np.float64]:
    """Return the whole spectrum of a magnitude given on the half spectrum."""
    whole = np.empty(grid)
    n = half.shape[2]
    whole[:, :, :n] = half
    mirrored = np.roll(half[::-1, ::-1], (1, 1), axis=(0, 1))
    whole[:, :, n:] = mirrored[:, :, 1 : grid[2] - n + 1][:, :, ::-1]
    return whole
