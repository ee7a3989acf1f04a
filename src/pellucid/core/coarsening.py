"""The same problem on coarser grids: binned photons are Poisson photons still.

Summing blocks of voxels of a recording gives the recording of a coarser camera, whose PSF is the fine
one seen through one more box. So the coarse problem is solved by the same restorer, for a fraction of
the FFTs, and its solution is where the finer one starts.
"""

import math

import numpy as np
import torch
from torch import Tensor

from pellucid.core.fourier import Shape, empty
from pellucid.core.operators import Extended
from pellucid.core.passband import Lengths
from pellucid.core.problem import Observation, Problem

REFINED_PLANES = 16
"""Planes of the finer grid interpolated at a time."""

SMALLEST = 8
"""Voxels per axis below which a grid is not binned further."""


def bin_factors(fwhm_px: Lengths, shape: Shape, levels: int = 4) -> list[Shape]:
    """Return binnings from none to coarse: first equal blur on all axes, then every axis by two.

    Parameters
    ----------
    fwhm_px : of the PSF on the finest grid (z, y, x); the axes that it blurs most are binned first
    shape : of the finest image
    """
    factors: list[Shape] = [(1, 1, 1)]
    while len(factors) < levels:
        last = factors[-1]
        widths = [w / f for w, f in zip(fwhm_px, last, strict=True)]
        large = [
            w > max(widths) / 1.5 and n // f >= 2 * SMALLEST
            for w, f, n in zip(widths, last, shape, strict=True)
        ]
        z, y, x = (2 * f if big else f for f, big in zip(last, large, strict=True))
        if (z, y, x) == last:
            break
        factors.append((z, y, x))
    return factors


def binned(problem: Problem, factors: Shape) -> Problem:
    """Return the problem that a camera with voxels `factors` times larger would have recorded."""
    if factors == (1, 1, 1):
        return problem
    observations = []
    for o in problem.observations:
        assert isinstance(o.operator, Extended)
        image, recorded = binned_recording(o, factors)
        z, y, x = image.shape
        blur = o.operator.binned(factors, (z, y, x))
        observations.append(Observation(image, blur, o.background * math.prod(factors), recorded))
    return Problem(tuple(observations))


def binned_recording(o: Observation, factors: Shape) -> tuple[Tensor, Tensor | None]:
    """Return the sums over blocks, background where nothing was recorded, and the recorded shares."""
    if o.recorded is None or factors == (1, 1, 1):
        return binned_image(o.image, factors), o.recorded
    image = o.image.masked_fill(o.recorded == 0, o.background)
    share = binned_image(o.recorded.to(image.dtype), factors).div_(math.prod(factors))
    return binned_image(image, factors), share


def binned_image(image: Tensor, factors: Shape) -> Tensor:
    """Return sums over blocks; a block cut by the border counts its last voxel for the missing ones."""
    padding: list[int] = []
    for n, f in zip(reversed(image.shape), reversed(factors), strict=True):
        padding += [0, -n % f]
    if any(padding):
        image = torch.nn.functional.pad(image[None, None], padding, mode="replicate")[0, 0]
    return torch.nn.functional.avg_pool3d(image[None, None], factors)[0, 0] * math.prod(factors)


def refined(x: Tensor, coarse: Extended, fine: Extended, factors: Shape) -> Tensor:
    """Return the object `x` of `coarse` on the grid of `fine`, trilinear, with its light shared out.

    Parameters
    ----------
    factors : coarse voxels per fine voxel on each axis
    """
    places = []
    for axis, f in enumerate(factors):
        centre = (np.arange(fine.domain_shape[axis]) - fine.margin[axis] + 0.5) / f - 0.5
        place = np.clip(centre + coarse.margin[axis], 0, x.shape[axis] - 1)
        low = np.minimum(np.floor(place).astype(int), max(x.shape[axis] - 2, 0))
        part = torch.from_numpy(place - low).to(x)
        below = torch.from_numpy(low).to(x.device)
        places.append((part, below, (below + 1).clamp_max(x.shape[axis] - 1)))
    out = empty(fine.domain_shape, x)
    for start in range(0, len(out), REFINED_PLANES):  # the passes need three times their planes
        planes, slab = slice(start, start + REFINED_PLANES), x
        for axis, (part, below, above) in enumerate(places):
            if axis == 0:
                part, below, above = part[planes], below[planes], above[planes]
            weights = part.reshape([-1 if a == axis else 1 for a in range(3)])
            slab = torch.lerp(slab.index_select(axis, below), slab.index_select(axis, above), weights)
        out[planes] = slab.div_(math.prod(factors))
    return out
