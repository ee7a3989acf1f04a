"""One linear Wiener step, of blur that may differ from place to place: what a network starts from.

Where blur varies, the recording is filtered once for each of a few places and the results are blended,
so that every voxel is sharpened by about the inverse of its own PSF. That costs one FFT and one more
for each place, less than one iteration of any solver.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as nn
from torch import Tensor

from pellucid.core.fourier import Shape, fast_shape, filtered, transfer_function
from pellucid.core.operators import Blur, LinearOperator, Windowed
from pellucid.core.sheet_scan import SheetScan
from pellucid.core.varying_blur import VaryingBlur

ALPHA = 0.01
"""Strength of the Wiener step, relative to the operator's gain: one for all images, so it is linear."""

PLACES = 3
"""Places on every axis along which the blur varies."""

CHEBYSHEV_STEPS = 5
"""Steps that stand for the Wiener filter where the operator has no PSF."""


@dataclass(frozen=True)
class Place:
    """A PSF (z, y, x), and the share (z, y, x) that its inverse has in every object voxel."""

    psf: Tensor
    share: Tensor


def wiener_step(signal: Tensor, operator: LinearOperator) -> Tensor:
    """Return (A* A + alpha) ^ -1 A* of the signal, on the object's grid."""
    if not isinstance(operator, Windowed):
        return _polynomial(signal, operator)
    sites = places_of(operator)
    margin, grid = apart(operator)
    wide = continued(signal, margin, grid)
    otfs = [transfer_function(s.psf.contiguous(), grid, _centre(s.psf)) for s in sites]
    level = ALPHA * max(float(otf.abs().square().max()) for otf in otfs)
    inner = tuple(slice(m, m + n) for m, n in zip(operator.margin, operator.domain_shape, strict=True))
    out = torch.zeros_like(wide[inner])
    for site, otf in zip(sites, otfs, strict=True):
        inverse = otf.conj() / (otf.abs().square() + level)
        sharp = filtered(wide, inverse.resolve_conj(), grid, grid)
        out += site.share * sharp[inner]
    return out


def apart(operator: Windowed) -> tuple[Shape, Shape]:
    """Return margin and FFT grid on which an image does not ring into its opposite faces.

    FFTs make these neighbours: they left 0.01 of the range there, and leave 1e-6 with another margin
    before and behind the object.
    """
    (z, y, x), (depth, height, width) = operator.margin, operator.domain_shape
    return (2 * z, 2 * y, 2 * x), fast_shape((depth + 2 * z, height + 2 * y, width + 2 * x))


def places_of(operator: Windowed) -> list[Place]:
    """Return the PSFs at a few places of the operator, and hat functions between them that sum to 1."""
    if isinstance(operator, VaryingBlur):
        steps, start = operator.expansion.spacing_um, operator.origin_um
        varies = [n > 1 for n in operator.expansion.table.shape[1:]]

        def psf_at(place: tuple[float, ...]) -> Tensor:
            z, y, x = (s + i * d for s, i, d in zip(start, place, steps, strict=True))
            return torch.from_numpy(operator.expansion.psf_at((z, y, x))).to(operator.psf)

    elif isinstance(operator, SheetScan):
        light = operator.illumination
        varies = [bool((light != light[:1]).any()), False, True]

        def psf_at(place: tuple[float, ...]) -> Tensor:
            # An emitter at z is lit, at a distance d, by the sheet at position z + d.
            offsets = torch.arange(len(operator.psf)) - len(operator.psf) // 2
            seen = (round(place[0]) + offsets).clamp(0, len(light) - 1)
            column = light[seen, torch.arange(len(offsets)), round(place[2]) + operator.margin[2]]
            return operator.psf * column[:, None, None]

    else:
        assert isinstance(operator, Blur)
        return [Place(operator.psf, torch.ones(1, 1, 1).to(operator.psf))]
    sizes, margin, domain = operator.range_shape, operator.margin, operator.domain_shape
    axes = [_hats(*a) for a in zip(varies, sizes, margin, domain, strict=True)]
    sites = []
    for (z, hz), (y, hy), (x, hx) in itertools.product(*axes):
        psf = psf_at((z, y, x))
        share = hz[:, None, None] * hy[:, None] * hx
        sites.append(Place(psf, share.to(psf)))
    return sites


def continued(image: Tensor, margin: Shape, shape: Shape) -> Tensor:
    """Return the image on the object's grid, its border voxels repeated outwards."""
    pads = [(m, n - m - s) for m, n, s in zip(margin, shape, image.shape, strict=True)]
    flat = [p for pair in reversed(pads) for p in pair]
    return nn.pad(image[None, None], flat, mode="replicate")[0, 0]


def _hats(varies: bool, size: int, margin: int, domain: int) -> list[tuple[float, Tensor]]:
    """Return places in voxels of the image, and their hat functions over the object's voxels."""
    if not varies or size == 1:
        return [((size - 1) / 2, torch.ones(1))]
    centres = np.linspace(0, size - 1, min(PLACES, size))
    voxels = np.clip(np.arange(domain) - margin, 0, size - 1)
    return [
        (float(c), torch.from_numpy(np.interp(voxels, centres, unit)))
        for c, unit in zip(centres, np.eye(len(centres)), strict=True)
    ]


def _polynomial(signal: Tensor, operator: LinearOperator) -> Tensor:
    """Chebyshev's polynomial (Golub & Varga 1961) for the inverse on [alpha, 1 + alpha] times |A|^2.

    Of fixed degree: linear in the signal, and as deterministic as the operator.
    """
    back = operator.adjoint(signal)
    ones = operator.forward(torch.ones_like(back))
    gain = float(operator.adjoint(ones).max())
    shift = ALPHA * gain
    middle, half = shift + gain / 2, gain / 2
    x, step, rate = torch.zeros_like(back), torch.zeros_like(back), 0.0
    for k in range(CHEBYSHEV_STEPS):
        residual = back - operator.adjoint(operator.forward(x)) - shift * x if k else back
        beta = 0.0 if k == 0 else (0.5 if k == 1 else 0.25) * (half * rate) ** 2
        rate = 1 / middle if k == 0 else 1 / (middle - beta / rate)
        step = rate * residual + beta * step
        x = x + step
    return x


def _centre(psf: Tensor) -> Shape:
    z, y, x = (n // 2 for n in psf.shape)
    return z, y, x
