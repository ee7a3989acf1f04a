"""Fusion block by block, for views and results larger than memory.

    known = measured_views(views, world)                       # once: levels, cameras, brightness, start
    block = fused_block(known, world, core, halo=halo_of_views(views, world), iterations=10)

A block of the result is fused on itself and a halo, from the parts of the views that its light reaches:
what is seen through the affine, and the reach of the PSF around it. What is a property of the whole
(levels, cameras, brightness, the start) is measured once and handed to every block, so that blocks meet.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.core.back_projectors import BackProjector, Matched
from pellucid.core.deconvolution import in_photons, unknown_gain, usable_psf
from pellucid.core.fourier import Shape
from pellucid.core.fusion import covered, joint_problem
from pellucid.core.geometry import Affine, Grid, as_triple
from pellucid.core.joint_operators import reached_box
from pellucid.core.noise import Noise, check_background, estimate_background, estimate_noise
from pellucid.core.psf import Psf
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.core.rotated_psf import rotated_psf
from pellucid.core.sampling import Array, blocks_of, finite, to_numpy
from pellucid.core.tiling import Box, halo_of
from pellucid.core.views import LitView, brightened
from pellucid.errors import InputError, ParameterError

LATTICE = 96
"""Voxels along each axis to which views are averaged to compare their brightness."""

SLAB_VOXELS = 32_000_000
"""Voxels read at once while a view is averaged."""


@dataclass(frozen=True)
class StoredView:
    """A view whose counts are read where they are sliced; else as `View`.

    Parameters
    ----------
    volume : (z, y, x) counts, anything that slices lazily like an array
    psf : on the voxels of this view, in its orientation
    """

    volume: Array
    grid: Grid
    world_to_view: Affine
    psf: Psf
    background: float | None = None
    noise: Noise | None = None
    brightness: float | None = None


@dataclass(frozen=True)
class KnownView:
    """A view, and what was measured of the whole of it.

    Parameters
    ----------
    camera : as used: gain above 0
    level : counts of the background
    background : expected photons per voxel that are not the object's
    brightness : photons collected relative to the first view
    """

    stored: StoredView
    camera: Noise
    level: float
    background: float
    brightness: float

    @property
    def voxel_um3(self) -> float:
        """Volume of a voxel in the world."""
        linear = self.stored.world_to_view.linear
        return float(np.prod(self.stored.grid.spacing_um) / abs(np.linalg.det(linear)))

    def part(self, box: Box, device: str | torch.device | None) -> LitView:
        """Read a box of the view, in photons."""
        stored = self.stored
        counts = finite(to_numpy(stored.volume[box]), f"fuse: the view {stored.grid.frame!r}")
        image = torch.from_numpy(np.ascontiguousarray(counts, dtype=np.float32)).to(device)
        photons, _, gain = in_photons(image, self.level, self.camera)
        grid = stored.grid.crop([part.start for part in box], [part.stop for part in box])
        return LitView(
            photons, grid, stored.world_to_view, stored.psf, self.background, gain, self.level,
            self.voxel_um3, self.brightness,
        )  # fmt: skip


@dataclass(frozen=True)
class KnownViews:
    """All views, and the flat start that all blocks share (photons per voxel of the first view)."""

    views: tuple[KnownView, ...]
    start: float


def measured_views(views: Sequence[StoredView], world: Grid) -> KnownViews:
    """Measure what all blocks share: noise and levels from samples, the rest in one pass.

    Raises
    ------
    InputError : a view without light above its background, or with voxels that are not finite
    """
    averages, known = [], []
    for given in views:
        view = replace(given, psf=usable_psf(given.psf, given.grid.shape))
        noise = view.noise or estimate_noise(view.volume)
        level = view.background
        if level is None:
            level = float(estimate_background(view.volume))
        camera = _camera(view.volume, noise, level)
        mean, grid = _averaged(view)
        photons, expected, gain = in_photons(mean, level, camera)
        expected = max(expected, 1e-3 * float(photons.mean(dtype=torch.float64)))
        one = KnownView(view, camera, level, expected, view.brightness or 1.0)
        lit = LitView(
            photons, grid, view.world_to_view, None, expected, gain, level, one.voxel_um3,
            view.brightness,
        )  # fmt: skip
        check_background(view.background, float(mean.min()), float(mean.max()))
        if lit.dark:
            raise InputError(
                f"fuse: the view {view.grid.frame!r} shows no light above its background of "
                f"{level:.4g} counts. Check the recording and the background, or leave it out."
            )
        averages.append(lit)
        known.append(one)
    lit_views = brightened(averages, world)
    known = [
        replace(one, brightness=float(lit.brightness or 1))
        for one, lit in zip(known, lit_views, strict=True)
    ]
    light = sum(float(lit.light.mean(dtype=torch.float64)) for lit in lit_views)
    least = 1e-3 * sum(float(lit.photons.mean(dtype=torch.float64)) for lit in lit_views)
    return KnownViews(tuple(known), max(light, least) / len(known))


def fused_block(
    known: KnownViews,
    world: Grid,
    core: Box,
    *,
    halo: Shape,
    iterations: int,
    back_projector: BackProjector = Matched(),
    update: Literal["additive", "alternating"] = "additive",
    device: str | torch.device | None = None,
) -> Tensor:
    """Return one block of the joint deconvolution on `world`, in counts of the first view.

    Parameters
    ----------
    core : voxels of `world` that the block holds
    halo : voxels of `world` around it that are fused with it and thrown away; `halo_of_views`
    iterations, back_projector, update : of plain Richardson-Lucy, as in `fuse`
    """
    if iterations < 1:
        raise ParameterError(f"fused_block: expected 1 iteration or more, got {iterations}.")
    low = [max(c.start - h, 0) for c, h in zip(core, halo, strict=True)]
    high = [min(c.stop + h, n) for c, h, n in zip(core, halo, world.shape, strict=True)]
    part = world.crop(low, high)
    inner = tuple(slice(c.start - a, c.stop - a) for c, a in zip(core, low, strict=True))
    seen = _parts(known, part, device)
    if not seen:
        return torch.zeros([c.stop - c.start for c in core], device=device)
    matched = back_projector == Matched()
    restorer = RichardsonLucy(
        iterations, back_projector, start=known.start if matched else "low-passed", update=update
    )
    image = restorer(joint_problem(seen, part)).image.mul_(covered(seen, part))
    return image[inner].mul(known.views[0].camera.gain)


def halo_of_views(views: Sequence[StoredView], world: Grid) -> Shape:
    """Return the voxels of `world` around a block that decide it: of the widest of the turned PSFs."""
    turned = [
        rotated_psf(v.psf, v.grid.spacing_um, v.world_to_view.linear, world.spacing_um) for v in views
    ]
    z, y, x = np.max([halo_of(psf.values) for psf in turned], axis=0).tolist()
    return z, y, x


def _parts(known: KnownViews, part: Grid, device: str | torch.device | None) -> list[LitView]:
    """Read what light from `part` reaches of every view; in units of the first that it reaches."""
    seen = []
    for view in known.views:
        stored = view.stored
        box = reached_box(stored.grid, stored.world_to_view, stored.psf.shape, part)
        if box is not None:
            seen.append(view.part(box, device))
    # objects are photons per voxel of the first of all views, even where it does not see the block
    unit = seen[0].voxel_um3 / known.views[0].voxel_um3 if seen else 1.0
    return [replace(lit, brightness=float(lit.brightness or 1) * unit) for lit in seen]


def _camera(volume: Array, noise: Noise, level: float) -> Noise:
    """The camera as used; where it is not known, its gain by the brightest samples of the whole."""
    if noise.reliable and noise.gain > 0:
        return Noise(noise.gain, min(noise.offset, level), noise.read_noise)
    samples = np.concatenate([block.ravel() for block in blocks_of(volume, "fuse")])
    gain = unknown_gain(torch.from_numpy(samples.astype(np.float32))[None], level)
    return Noise(gain, level, 0.0)


def _averaged(view: StoredView) -> tuple[Tensor, Grid]:
    """Means over blocks of a view, few enough for memory, and where they are."""
    shape = view.grid.shape
    factors = [max(1, -(-n // LATTICE)) for n in shape]
    planes = max(1, SLAB_VOXELS // (factors[0] * shape[1] * shape[2])) * factors[0]
    slabs = []
    for z in range(0, shape[0], planes):
        slab = to_numpy(view.volume[z : z + planes, :, :])
        slabs.append(_means(finite(slab, f"fuse: the view {view.grid.frame!r}"), factors))
    mean = np.concatenate(slabs).astype(np.float32)
    # a block that the border cuts has its centre a little inside: too little to matter here
    origin = view.grid.index_to_um.apply((np.array(factors) - 1) / 2)
    spacing = as_triple(np.multiply(view.grid.spacing_um, factors), "spacing_um")
    z, y, x = mean.shape
    return torch.from_numpy(mean), Grid((z, y, x), spacing, as_triple(origin, "origin"), view.grid.frame)


def _means(slab: NDArray[np.generic], factors: Sequence[int]) -> NDArray[np.float64]:
    values = slab.astype(np.float64)
    for axis, f in enumerate(factors):
        starts = np.arange(0, values.shape[axis], f)
        counts = np.diff([*starts, values.shape[axis]])
        shape = [-1 if a == axis else 1 for a in range(3)]
        values = np.add.reduceat(values, starts, axis) / counts.reshape(shape)
    return values
