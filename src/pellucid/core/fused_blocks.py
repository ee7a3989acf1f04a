"""Fusion block by block, for views and results larger than memory.

    known = measured_views(views, world)                       # once: levels, cameras, brightness, start
    block = fused_block(known, world, core, halo=halo_of_views(views, world), iterations=10)

Reading and arithmetic come apart: `fused_block` is `read_part` and `fused_part`, and cuts the halo off.

A block of the result is fused on itself and a halo, from the parts of the views that its light reaches:
what is seen through the affine, and the reach of the PSF around it. What is a property of the whole
(levels, cameras, brightness, the start) is measured once and handed to every block, so that blocks meet.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.core.averaging import (
    WIDE_SIGMA_VOXELS,
    Weighting,
    averaged,
    border_weights,
)
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
from pellucid.core.transform_field import TransformField
from pellucid.core.views import LitView, brightened, on_equal_terms
from pellucid.errors import InputError, ParameterError

LATTICE = 96
"""Voxels along each axis to which views are averaged to compare their brightness."""

SLAB_PLANES, SLAB_ROWS = 64, 128
"""Planes and rows read at once while a view is averaged, or a little less: chunks, where there are any."""

CONTENT_REACH_VOXELS = 6 * WIDE_SIGMA_VOXELS
"""Voxels around a block that decide its content weights."""


@dataclass(frozen=True)
class StoredView:
    """A view whose counts are read where they are sliced; else as `View`.

    Parameters
    ----------
    volume : (z, y, x) counts, anything that slices lazily like an array
    psf : on the voxels of this view, in its orientation; None: only averages
    """

    volume: Array
    grid: Grid
    world_to_view: Affine
    psf: Psf | None
    background: float | None = None
    noise: Noise | None = None
    brightness: float | None = None
    field: TransformField | None = None

    def reached_from(self, part: Grid) -> Box | None:
        """Return the voxels that light from a part of the world reaches; None where none is."""
        reach = (1, 1, 1) if self.psf is None else self.psf.shape
        displaced_um = 0.0 if self.field is None else self.field.largest_um
        return reached_box(self.grid, self.world_to_view, reach, part, displaced_um)


@dataclass(frozen=True)
class KnownView:
    """A view, and what was measured of the whole of it.

    Parameters
    ----------
    camera : as used: gain above 0
    level : counts of the background
    background : expected photons per voxel that are not the object's
    brightness : photons collected relative to the first view
    light : mean photons per voxel above background
    """

    stored: StoredView
    camera: Noise
    level: float
    background: float
    brightness: float
    light: float

    @property
    def voxel_um3(self) -> float:
        """Volume of a voxel in the world."""
        linear = self.stored.world_to_view.linear
        return float(np.prod(self.stored.grid.spacing_um) / abs(np.linalg.det(linear)))

    def lit(self, counts: NDArray[Any], box: Box, device: str | torch.device | None) -> LitView:
        """Return a box of the view in photons."""
        stored = self.stored
        image = torch.from_numpy(np.ascontiguousarray(counts, dtype=np.float32)).to(device)
        photons, _, gain = in_photons(image, self.level, self.camera)
        grid = stored.grid.crop([part.start for part in box], [part.stop for part in box])
        return LitView(
            photons, grid, stored.world_to_view, stored.psf, self.background, gain, self.level,
            self.voxel_um3, self.brightness, stored.field,
        )  # fmt: skip


@dataclass(frozen=True)
class KnownViews:
    """All views, and the flat start that all blocks share (photons per voxel of the first view)."""

    views: tuple[KnownView, ...]
    start: float

    def to_dict(self) -> dict[str, Any]:
        """Return what was measured, without the views, as JSON types."""
        known = [{k: v for k, v in vars(one).items() if k != "stored"} for one in self.views]
        for one in known:
            one["camera"] = asdict(one["camera"])
        return {"start": self.start, "views": known}

    @classmethod
    def from_dict(cls, views: Sequence[StoredView], record: dict[str, Any]) -> "KnownViews":
        """Return what `to_dict` wrote, for the same views."""
        known = [
            KnownView(_usable(view), **{**one, "camera": Noise(**one["camera"])})
            for view, one in zip(views, record["views"], strict=True)
        ]
        return cls(tuple(known), record["start"])


def measured_views(views: Sequence[StoredView], world: Grid) -> KnownViews:
    """Measure what all blocks share: noise and levels from samples, the rest in one pass.

    Raises
    ------
    InputError : a view without light above its background, or with voxels that are not finite
    """
    averages, known = [], []
    for view in map(_usable, views):
        noise = view.noise or estimate_noise(view.volume)
        level = view.background
        if level is None:
            level = float(estimate_background(view.volume))
        camera = _camera(view.volume, noise, level)
        mean, grid = _averaged(view)
        photons, expected, gain = in_photons(mean, level, camera)
        expected = max(expected, 1e-3 * float(photons.mean(dtype=torch.float64)))
        light = float((photons - expected).mean(dtype=torch.float64))
        one = KnownView(view, camera, level, expected, view.brightness or 1.0, light)
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
    light = sum(one.light for one in known)
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
    low = [max(c.start - h, 0) for c, h in zip(core, halo, strict=True)]
    high = [min(c.stop + h, n) for c, h, n in zip(core, halo, world.shape, strict=True)]
    part = world.crop(low, high)
    inner = tuple(slice(c.start - a, c.stop - a) for c, a in zip(core, low, strict=True))
    restorer = block_restorer(known, iterations, back_projector, update)
    return fused_part(known, part, read_part(known, part), restorer, device=device)[inner]


def block_restorer(
    known: KnownViews,
    iterations: int,
    back_projector: BackProjector = Matched(),
    update: Literal["additive", "alternating"] = "additive",
) -> RichardsonLucy:
    """Return the restorer that all blocks share: none of them starts from what it alone holds."""
    if iterations < 1:
        raise ParameterError(f"fused_block: expected 1 iteration or more, got {iterations}.")
    matched = back_projector == Matched()
    return RichardsonLucy(
        iterations, back_projector, start=known.start if matched else "low-passed", update=update
    )


def read_part(known: KnownViews, part: Grid) -> list[NDArray[Any] | None]:
    """Read of each view what light from a part of the world reaches; None where nothing is."""
    read: list[NDArray[Any] | None] = []
    for view in known.views:
        box = view.stored.reached_from(part)
        if box is None:
            read.append(None)
            continue
        counts = to_numpy(view.stored.volume[box])
        read.append(finite(counts, f"fuse: the view {view.stored.grid.frame!r}"))
    return read


def fused_part(
    known: KnownViews,
    part: Grid,
    read: Sequence[NDArray[Any] | None],
    how: RichardsonLucy | Weighting,
    *,
    device: str | torch.device | None = None,
) -> Tensor:
    """Return a part of the world, its halo included, in counts of the first view.

    Parameters
    ----------
    read : of each view, by `read_part`
    how : the restorer of the joint problem, or how an average is weighted
    """
    seen, numbers = [], []
    for number, (view, counts) in enumerate(zip(known.views, read, strict=True)):
        box = view.stored.reached_from(part)
        if box is not None and counts is not None:
            seen.append(view.lit(counts, box, device))
            numbers.append(number)
    if not seen:
        return torch.zeros(part.shape, device=device)
    # objects are photons per voxel of the first of all views, even where it does not see the block
    unit = seen[0].voxel_um3 / known.views[0].voxel_um3
    seen = [replace(lit, brightness=float(lit.brightness or 1) * unit) for lit in seen]
    if isinstance(how, RichardsonLucy):
        image = how(joint_problem(seen, part)).image.mul_(covered(seen, part))
    else:
        image = _averaged_part([known.views[n] for n in numbers], seen, part, how)
    return image.mul_(known.views[0].camera.gain)


def halo_of_views(views: Sequence[StoredView], world: Grid) -> Shape:
    """Return the voxels of `world` around a block that decide it: of the widest of the turned PSFs."""
    turned = [
        rotated_psf(v.psf, v.grid.spacing_um, v.world_to_view.linear, world.spacing_um)
        for v in views
        if v.psf is not None
    ]
    z, y, x = np.max([halo_of(psf.values) for psf in turned], axis=0).tolist()
    return z, y, x


def halo_of_average(weighting: Weighting, world: Grid) -> Shape:
    """Return the voxels of `world` around a block that decide its average."""
    wide = 0 if weighting == "average" else int(CONTENT_REACH_VOXELS)
    z, y, x = (wide if n > 1 else 0 for n in world.shape)
    return z, y, x


def _averaged_part(
    views: Sequence[KnownView], seen: Sequence[LitView], part: Grid, weighting: Weighting
) -> Tensor:
    """The weighted average of boxes of views, weighted and filled as the whole views would be."""
    images, grids, transforms = on_equal_terms(seen)
    borders, fills = [], []
    for view, lit in zip(views, seen, strict=True):
        box = view.stored.reached_from(part)
        borders.append(border_weights(view.stored.grid.shape, part=box))
        fills.append(
            view.light * seen[0].voxel_um3 / (lit.voxel_um3 * float(lit.brightness or 1))
        )
    fields = [lit.field for lit in seen]
    image, _ = averaged(
        images, grids, transforms, part, weighting, fields, borders=borders, fills=fills
    )
    return image.clamp_min_(0)


def _usable(view: StoredView) -> StoredView:
    """The view with its PSF fit for it."""
    return view if view.psf is None else replace(view, psf=usable_psf(view.psf, view.grid.shape))


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
    planes, rows = (
        max(size // f, 1) * f for size, f in zip((SLAB_PLANES, SLAB_ROWS), factors, strict=False)
    )
    mean = np.empty([-(-n // f) for n, f in zip(shape, factors, strict=True)], np.float32)
    for z in range(0, shape[0], planes):
        for y in range(0, shape[1], rows):
            slab = to_numpy(view.volume[z : z + planes, y : y + rows, :])
            means = _means(finite(slab, f"fuse: the view {view.grid.frame!r}"), factors)
            first = z // factors[0], y // factors[1]
            mean[first[0] :, first[1] :][: len(means), : means.shape[1]] = means
    # a block that the border cuts has its centre a little inside: too little to matter here
    origin = view.grid.index_to_um.apply((np.array(factors) - 1) / 2)
    spacing = as_triple(np.multiply(view.grid.spacing_um, factors), "spacing_um")
    size = mean.shape
    where = Grid((size[0], size[1], size[2]), spacing, as_triple(origin, "origin"), view.grid.frame)
    return torch.from_numpy(mean), where


def _means(slab: NDArray[np.generic], factors: Sequence[int]) -> NDArray[np.float64]:
    values = slab.astype(np.float64)
    for axis, f in enumerate(factors):
        starts = np.arange(0, values.shape[axis], f)
        counts = np.diff([*starts, values.shape[axis]])
        shape = [-1 if a == axis else 1 for a in range(3)]
        values = np.add.reduceat(values, starts, axis) / counts.reshape(shape)
    return values
