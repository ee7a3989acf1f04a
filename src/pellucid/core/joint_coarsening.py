"""The joint problem of several views on coarser grids: where the finer ones start.

Every view is binned by itself, as a coarser camera at the same place would record it, and the object's
grid becomes as coarse. Binned photons are Poisson photons still, so the coarse problem is solved by
the same restorer for a fraction of the FFTs.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.core.coarsening import SMALLEST, binned_recording
from pellucid.core.fourier import Shape
from pellucid.core.geometry import Grid, as_triple
from pellucid.core.joint_operators import extended_grid, sharpened, widened
from pellucid.core.operators import Blur, Composed, Extended, LinearOperator, binned_psf
from pellucid.core.passband import widths_of
from pellucid.core.problem import Observation, Problem
from pellucid.core.slab_sampling import SlabSample, sampling_variance_px
from pellucid.core.varying_blur import VaryingBlur

FACTORS = (1, 2, 4)
"""Binnings of the object, from none to the coarsest."""

LEAST_WIDTH = 0.75
"""Voxels that a PSF is still wide when its view is binned: what one view does not resolve any more,
another must."""


def is_joint(problem: Problem) -> bool:
    """Say whether the object is sampled at each view's own angle, as `joint_problem` has it."""
    return all(is_view(o.operator) for o in problem.observations)


def is_view(operator: LinearOperator) -> bool:
    """Say whether an operator samples the object at a view's own angle, and blurs it."""
    return (
        isinstance(operator, Composed)
        and isinstance(operator.outer, Extended)
        and isinstance(operator.inner, SlabSample)
    )


def joint_binnings(problem: Problem) -> list[Shape]:
    """Return the binnings of the object's grid, from none to coarse, alike on all axes."""
    shape = problem.windowed(torch.empty(problem.shape, device="meta")).shape
    binnings = []
    for f in FACTORS:
        z, y, x = (f if n > 1 else 1 for n in shape)
        if f == 1 or all(n // f >= SMALLEST for n in shape if n > 1):
            binnings.append((z, y, x))
    return binnings


def joint_binned_images(problem: Problem, factors: Shape) -> list[Tensor]:
    """Return the images of the views, summed over their blocks."""
    return [image for image, _ in _binned_recordings(problem, factors)]


def _binned_recordings(problem: Problem, factors: Shape) -> list[tuple[Tensor, Tensor | None]]:
    return [binned_recording(o, _view_factors(_parts(o)[0], factors)) for o in problem.observations]


def joint_binned(problem: Problem, factors: Shape) -> Problem:
    """Return the problem that cameras of coarser voxels would have recorded, on a coarser object.

    Object values are photons per voxel of the first view, binned as it is.
    """
    if factors == (1, 1, 1):
        return problem
    recordings = _binned_recordings(problem, factors)
    world = _world(problem)
    coarse = world.with_spacing(np.multiply(world.spacing_um, factors))
    blurs, behind, samples, backgrounds = [], [], [], []
    first = math.prod(_view_factors(_parts(problem.observations[0])[0], factors))
    for o in problem.observations:
        blur, sample = _parts(o)
        binning = _view_factors(blur, factors)
        fine = sample.view.crop(blur.margin, np.add(blur.margin, blur.range_shape).tolist())
        grid = _binned_grid(fine, binning)
        # what sampling the coarse object blurs more than sampling the fine one did
        more = sampling_variance_px(coarse, grid, sample.world_to_view) - sampling_variance_px(
            world, fine, sample.world_to_view
        ) / np.square(binning)
        blurs.append(_binned_blur(blur, binning, grid.shape, more, math.prod(binning) / first))
        behind.append(extended_grid(grid, blurs[-1]))
        samples.append(sample)
        backgrounds.append(o.background * math.prod(binning))
    transforms = [sample.world_to_view for sample in samples]
    displaced_um = max(s.field.largest_um if s.field is not None else 0.0 for s in samples)
    domain, window = widened(coarse, transforms, behind, blurs, displaced_um)
    observations = [
        Observation(
            image,
            blur @ SlabSample(domain, grid, sample.world_to_view, sample.field),
            background,
            recorded,
        )
        for (image, recorded), blur, grid, sample, background in zip(
            recordings, blurs, behind, samples, backgrounds, strict=True
        )
    ]
    return Problem(tuple(observations), window)


def _binned_blur(
    blur: Extended, binning: Shape, shape: Shape, more: NDArray[np.float64], flux: float
) -> Extended:
    if isinstance(blur, VaryingBlur):
        # kernels that are not PSFs cannot be sharpened: a coarse start does without
        return blur.binned(binning, shape).times(flux)
    kernel = binned_psf(blur.psf, binning).cpu().numpy().astype(np.float64)
    kernel = sharpened(np.maximum(kernel, 0), np.maximum(more, 0)) * flux
    return Blur(torch.from_numpy(kernel).to(blur.psf), shape)


def joint_refined(x: Tensor, coarse: Problem, fine: Problem) -> Tensor:
    """Return the object `x` of `coarse` on the grid of `fine`, trilinear, in photons of its voxels."""
    (_, here), (_, there) = (_parts(problem.observations[0]) for problem in (coarse, fine))
    light = math.prod(np.divide(here.view.spacing_um, there.view.spacing_um).tolist())
    to_index = here.world.um_to_index @ there.world.index_to_um
    for axis in range(3):
        place = to_index.matrix[axis, axis] * np.arange(there.world.shape[axis])
        place = np.clip(place + to_index.matrix[axis, 3], 0, x.shape[axis] - 1)
        low = np.minimum(np.floor(place).astype(int), max(x.shape[axis] - 2, 0))
        shape = [-1 if a == axis else 1 for a in range(3)]
        part = torch.from_numpy((place - low).reshape(shape)).to(x)
        index = torch.from_numpy(low).to(x.device)
        above = (index + 1).clamp_max(x.shape[axis] - 1)
        x = torch.lerp(x.index_select(axis, index), x.index_select(axis, above), part)
    return x.div_(light)


def _parts(o: Observation) -> tuple[Extended, SlabSample]:
    assert isinstance(o.operator, Composed)
    blur, sample = o.operator.outer, o.operator.inner
    assert isinstance(blur, Extended)
    assert isinstance(sample, SlabSample)
    return blur, sample


def _world(problem: Problem) -> Grid:
    """The part of the object's grid that is asked for."""
    domain = _parts(problem.observations[0])[1].world
    window = problem.window or tuple(slice(0, n) for n in domain.shape)
    return domain.crop([part.start for part in window], [part.stop for part in window])


def _view_factors(blur: Extended, factors: Shape) -> Shape:
    """How a view is binned where the object is by `factors`: less along axes that it samples coarsely."""
    most = max(factors)
    chosen = []
    for width, n in zip(widths_of(blur.typical), blur.range_shape, strict=True):
        f = most
        while f > 1 and (n // f < SMALLEST or (math.isfinite(width) and width / f < LEAST_WIDTH)):
            f //= 2
        chosen.append(f)
    return chosen[0], chosen[1], chosen[2]


def _binned_grid(grid: Grid, factors: Shape) -> Grid:
    z, y, x = (-(-n // f) for n, f in zip(grid.shape, factors, strict=True))
    origin = grid.index_to_um.apply((np.asarray(factors) - 1) / 2)
    spacing = as_triple(np.multiply(grid.spacing_um, factors), "spacing_um")
    return Grid((z, y, x), spacing, as_triple(origin, "origin"), grid.frame)
