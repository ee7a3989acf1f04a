"""One linear Wiener step, of blur that may differ from place to place: what a network starts from.

Where blur varies, the recording is filtered once for each of a few places and the results are blended,
so that every voxel is sharpened by about the inverse of its own PSF. That costs one FFT and one more
for each place, less than one iteration of any solver.
"""

import itertools
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as nn
from torch import Tensor

from pellucid.core.fourier import Shape, fast_shape, transfer_function
from pellucid.core.mixing import unmixed
from pellucid.core.operators import Blur, LinearOperator, Windowed
from pellucid.core.problem import Window
from pellucid.core.sheet_scan import SheetScan
from pellucid.core.varying_blur import VaryingBlur

ALPHA = 0.01
"""Strength of the Wiener step, relative to the operator's gain: one for all images, so it is linear."""

PLACES = 3
"""Places on every axis along which the blur varies: of a PSF field, wherever in it an image lies."""

FLAT = 0.15
"""Share of the way between opposite faces, at either end, in which border voxels are repeated."""

CHEBYSHEV_STEPS = 5
"""Steps that stand for the Wiener filter where the operator has no PSF."""


@dataclass(frozen=True)
class Place:
    """A PSF (z, y, x), and the share (z, y, x) that its inverse has in every object voxel."""

    psf: Tensor
    share: Tensor


def wiener_step(signal: Tensor, operator: LinearOperator, part: Window | None = None) -> Tensor:
    """Return (A* A + alpha) ^ -1 A* of the signal, on a part of the object's grid; None: on all of it."""
    if not isinstance(operator, Windowed):
        x = _polynomial(signal, operator)
        return x if part is None else x[part]
    filters = _filters(operator, part)
    wide = closed(signal, *closed_grid(operator)).permute(filters.order)
    out = unmixed(
        wide.contiguous(), filters.shares, filters.transfers, filters.grid, filters.out_shape
    )
    return out.permute(filters.order)


@dataclass(frozen=True)
class Filters:
    """The Wiener filters of an operator's places, for one part of its object.

    Parameters
    ----------
    order : of the axes in which all is kept, its own inverse: where the blur varies along one axis alone,
        this comes first, so that the transforms along the others are shared
    """

    order: tuple[int, int, int]
    grid: Shape
    out_shape: Shape
    shares: list[Tensor]
    transfers: list[Tensor]


_kept: WeakKeyDictionary[Windowed, dict[tuple[int, ...], Filters]] = WeakKeyDictionary()
"""Filters of operators in use: they cost as much as the step, and serve every recording."""


def _filters(operator: Windowed, part: Window | None) -> Filters:
    whole = tuple(slice(0, n) for n in operator.domain_shape)
    z, y, x = whole if part is None else part
    key = (z.start, z.stop, y.start, y.stop, x.start, x.stop)
    of_parts = _kept.setdefault(operator, {})
    if key not in of_parts:
        of_parts[key] = _made(operator, (z, y, x))
    return of_parts[key]


def _made(operator: Windowed, part: Window) -> Filters:
    sites = places_of(operator)
    varying = [a for a in range(3) if any(s.share.shape[a] > 1 for s in sites)]
    order = ((0, 1, 2), (1, 0, 2), (2, 1, 0))[varying[0] if len(varying) == 1 else 0]
    before, wide = closed_grid(operator)
    depth, height, width = (wide[a] for a in order)
    grid = (depth, height, width)
    z, y, x = (part[a].stop - part[a].start for a in order)
    otfs, shares = [], []
    for site in sites:
        psf = site.psf.permute(order).contiguous()
        # the part's first voxel becomes the first of the result
        a, b, c = (
            n // 2 - part[axis].start - (before[axis] - operator.margin[axis])
            for n, axis in zip(psf.shape, order, strict=True)
        )
        otfs.append(transfer_function(psf, grid, (a, b, c)))
        seen = [p if n > 1 else slice(None) for p, n in zip(part, site.share.shape, strict=True)]
        shares.append(site.share[tuple(seen)].permute(order).contiguous())
    # powers are computed twice: of many places they would take half as much as the filters
    level = ALPHA * _gain(operator, sites) ** 2
    transfers = [otf.div_(otf.abs().square_().add_(level)) for otf in otfs]
    return Filters(order, grid, (z, y, x), shares, transfers)


def _gain(operator: Windowed, sites: list[Place]) -> float:
    """Return the largest share of its light that an emitter sends, anywhere in a field."""
    if isinstance(operator, VaryingBlur):
        flux = operator.expansion.kernels.sum(axis=(1, 2, 3))
        return float(np.tensordot(flux, operator.expansion.table, axes=1).max())
    return max(float(site.psf.sum()) for site in sites)


def closed_grid(operator: Windowed) -> tuple[Shape, Shape]:
    """Return voxels before the image, and the FFT grid on which its opposite faces are neighbours.

    Half a margin more than the operator's: what lies between two faces is theirs alike.
    """
    z, y, x = (n + m // 2 for n, m in zip(operator.domain_shape, operator.margin, strict=True))
    depth, height, width = grid = fast_shape((z, y, x))
    z, y, x = operator.range_shape
    return ((depth - z) // 2, (height - y) // 2, (width - x) // 2), grid


def closed(image: Tensor, before: Shape, grid: Shape) -> Tensor:
    """Return the image on a larger grid, its border voxels repeated, then led over to the opposite face.

    FFTs make opposite faces neighbours: a step between them rings into the image by 0.01 to 0.03 of its
    range, a smooth passage by 0.0002 to 0.004.
    """
    for axis, (start, n) in enumerate(zip(before, grid, strict=True)):
        size = image.shape[axis]
        gap = n - size
        if gap == 0:
            continue
        way = (torch.arange(1, gap + 1, device=image.device) / (gap + 1) - FLAT) / (1 - 2 * FLAT)
        way = way.clamp(0, 1)
        part = (way - torch.sin(2 * torch.pi * way) / (2 * torch.pi)).to(image)
        part = part.reshape([-1 if a == axis else 1 for a in range(3)])
        over = torch.lerp(image.narrow(axis, size - 1, 1), image.narrow(axis, 0, 1), part)
        behind = gap - start
        pieces = (over.narrow(axis, behind, start), image, over.narrow(axis, 0, behind))
        image = torch.cat(pieces, axis)
    return image


def places_of(operator: Windowed) -> list[Place]:
    """Return the PSFs at a few places of the operator, and hat functions between them that sum to 1.

    Of a PSF field the places are its own, and those are left out that have no share in this image: the
    step of a part is that of the whole.
    """
    if isinstance(operator, VaryingBlur):
        steps, start = operator.expansion.spacing_um, operator.origin_um
        varies = [n > 1 for n in operator.expansion.table.shape[1:]]
        knots = zip(operator.expansion.knots, start, steps, strict=True)
        ends = [((float(k[0]) - s) / d, (float(k[-1]) - s) / d) for k, s, d in knots]

        def psf_at(place: tuple[float, ...]) -> Tensor:
            z, y, x = (s + i * d for s, i, d in zip(start, place, steps, strict=True))
            return torch.from_numpy(operator.expansion.psf_at((z, y, x))).to(operator.psf)

    elif isinstance(operator, SheetScan):
        light = operator.illumination
        ends = [(0.0, n - 1.0) for n in operator.range_shape]
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
    axes = [hats(*a) for a in zip(varies, ends, sizes, margin, domain, strict=True)]
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


def hats(
    varies: bool, ends: tuple[float, float], size: int, margin: int, domain: int
) -> list[tuple[float, Tensor]]:
    """Return places in voxels of the image, and their hat functions over the object's voxels."""
    if not varies or size == 1:
        return [((size - 1) / 2, torch.ones(1))]
    centres = np.linspace(*ends, PLACES)
    voxels = np.arange(domain) - margin
    each = (np.interp(voxels, centres, unit) for unit in np.eye(PLACES))
    return [
        (float(c), torch.from_numpy(hat)) for c, hat in zip(centres, each, strict=True) if hat.any()
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
