"""Fusion block by block, for views and results larger than memory.

    known = measured_views(views, world)                       # once: levels, cameras, brightness, start
    block = fused_block(known, world, core, halo=halo_of_views(views, world), iterations=10)

Reading and arithmetic come apart: `fused_block` is `read_part` and `fused_part`, and cuts the halo off.

A block of the result is fused on itself and a halo, from the parts of the views that its light reaches:
what is seen through the affine, and the reach of the PSF around it. What is a property of the whole
(levels, cameras, brightness, the start) is measured once and handed to every block, so that blocks meet.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
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
from pellucid.core.coverage import Fill, FillChoice, fill_of
from pellucid.core.deconvolution import camera_as_used, in_photons, usable_psf
from pellucid.core.fourier import Shape
from pellucid.core.fusion import covered, joint_problem
from pellucid.core.geometry import Affine, Grid
from pellucid.core.joint_operators import reached_box
from pellucid.core.noise import Noise, check_background, estimate_background, estimate_noise
from pellucid.core.psf import Psf
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.core.rotated_psf import rotated_psf
from pellucid.core.sampling import Array, Sampled, finite, to_numpy
from pellucid.core.tiling import Box, halo_of
from pellucid.core.transform_field import TransformField
from pellucid.core.views import LitView, brightness_lattice, light_on, on_equal_terms
from pellucid.errors import InputError, ParameterError

SLAB_PLANES, SLAB_ROWS = 64, 128
"""Planes and rows that are measured at once: whole chunks of what Pellucid writes."""

COMPARED = 12
"""Voxels, along each axis, of the coarse lattice on which brightness is compared at once."""

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
    fill: FillChoice = "auto"

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
    light : mean photons per recorded voxel above background
    fill : of voxels that were never recorded, where there are any
    """

    stored: StoredView
    camera: Noise
    level: float
    background: float
    brightness: float
    light: float
    fill: Fill | None = None

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
        seen = None if self.fill is None else torch.from_numpy(self.fill.recorded(counts)).to(device)
        grid = stored.grid.crop([part.start for part in box], [part.stop for part in box])
        return LitView(
            photons, grid, stored.world_to_view, stored.psf, self.background, gain, self.level,
            self.voxel_um3, self.brightness, stored.field, seen,
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
            one["fill"] = None if one["fill"] is None else asdict(one["fill"])
        return {"start": self.start, "views": known}

    @classmethod
    def from_dict(cls, views: Sequence[StoredView], record: dict[str, Any]) -> "KnownViews":
        """Return what `to_dict` wrote, for the same views."""
        known = [
            KnownView(
                _usable(view),
                **{
                    **one,
                    "camera": Noise(**one["camera"]),
                    "fill": None if one["fill"] is None else Fill(**one["fill"]),
                },
            )
            for view, one in zip(views, record["views"], strict=True)
        ]
        return cls(tuple(known), record["start"])


def measured_views(views: Sequence[StoredView], world: Grid) -> KnownViews:
    """Measure what all blocks share: noise and levels from samples, light in one pass, brightness in
    another.

    Raises
    ------
    InputError : a view without light above its background, or with voxels that are not finite
    """
    measured = [_alone(_usable(view)) for view in views]
    known = [one for one, _ in measured]
    sums = _shared_light(known, world)
    for number, view in enumerate(views[1:], 1):
        if view.brightness is None:
            brightness = sums[number][1] / sums[number][0] if min(sums[number]) > 0 else 1.0
            known[number] = replace(known[number], brightness=brightness)
    light = sum(one.light for one in known)
    least = 1e-3 * sum(mean for _, mean in measured)
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
    found = seen_of(known, part, read, device)
    if not found:
        return torch.zeros(part.shape, device=device)
    seen = list(found.values())
    if isinstance(how, RichardsonLucy):
        image = how(joint_problem(seen, part)).image.mul_(covered(seen, part))
    else:
        image = _averaged_part([known.views[n] for n in found], seen, part, how)
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
        images, grids, transforms, part, weighting, fields, [lit.recorded for lit in seen],
        borders=borders, fills=fills,
    )
    return image.clamp_min_(0)


def seen_of(
    known: KnownViews,
    part: Grid,
    read: Sequence[NDArray[Any] | None],
    device: str | torch.device | None,
) -> dict[int, LitView]:
    """Return what the views that see a part have of it, by number; bright as the first of all views is."""
    seen: dict[int, LitView] = {}
    for number, (view, counts) in enumerate(zip(known.views, read, strict=True)):
        box = view.stored.reached_from(part)
        if box is None or counts is None:
            continue
        lit = view.lit(counts, box, device)
        # of a view that is met at one plane, rounding may leave nothing
        if replace(view.stored, grid=lit.grid).reached_from(part) is not None:
            seen[number] = lit
    if not seen:
        return seen
    # objects are photons per voxel of the first of all views, even where it does not see the block
    unit = next(iter(seen.values())).voxel_um3 / known.views[0].voxel_um3
    return {n: replace(v, brightness=float(v.brightness or 1) * unit) for n, v in seen.items()}


def _usable(view: StoredView) -> StoredView:
    """The view with its PSF fit for it."""
    return view if view.psf is None else replace(view, psf=usable_psf(view.psf, view.grid.shape))


def _alone(view: StoredView) -> tuple[KnownView, float]:
    """What is measured of one view, and its mean photons per voxel."""
    sampled = Sampled(view.volume)
    fill = fill_of(sampled, view.fill)
    noise = view.noise or estimate_noise(sampled, fill=fill or "none")
    level = view.background
    if level is None:
        level = float(estimate_background(sampled, fill=fill or "none"))
    camera = camera_as_used(sampled, noise, level, fill)
    del sampled
    total, voxels, brightest, lowest, highest, expected = 0.0, 0, 0.0, math.inf, -math.inf, 0.0
    for slab in _slabs(view):
        if fill is not None:
            slab = slab[fill.recorded(slab)]  # a line of the recorded voxels from here on
            if slab.size == 0:
                continue
        voxels += slab.size
        photons, expected, _ = in_photons(torch.from_numpy(slab.astype(np.float32)), level, camera)
        total += float(photons.sum(dtype=torch.float64))
        brightest = max(brightest, float(photons.max()))
        lowest, highest = min(lowest, float(slab.min())), max(highest, float(slab.max()))
    check_background(view.background, lowest, highest)
    mean = total / max(voxels, 1)
    expected = max(expected, 1e-3 * mean)
    if brightest <= expected:
        raise InputError(
            f"fuse: the view {view.grid.frame!r} shows no light above its background of "
            f"{level:.4g} counts. Check the recording and the background, or leave it out."
        )
    return KnownView(view, camera, level, expected, view.brightness or 1.0, mean - expected, fill), mean


def _slabs(view: StoredView) -> Iterator[NDArray[Any]]:
    planes, rows, _ = view.grid.shape
    for z in range(0, planes, SLAB_PLANES):
        for y in range(0, rows, SLAB_ROWS):
            slab = to_numpy(view.volume[z : z + SLAB_PLANES, y : y + SLAB_ROWS, :])
            yield finite(slab, f"fuse: the view {view.grid.frame!r}")


def _shared_light(known: Sequence[KnownView], world: Grid) -> list[tuple[float, float]]:
    """Light of the first view and of each where both see, as `brightened` compares it, part by part."""
    lattice = brightness_lattice(world)
    sums = np.zeros((len(known), 2))
    starts = [range(0, n, COMPARED) for n in lattice.shape]
    asked = [number for number, one in enumerate(known) if number and one.stored.brightness is None]
    for low in itertools.product(*starts) if asked else ():
        part = lattice.crop(low, np.minimum(np.add(low, COMPARED), lattice.shape).tolist())
        first = _light_on(part, known[0])
        for number in asked if first is not None else ():
            other = _light_on(part, known[number])
            if first is not None and other is not None:
                both = first[1] & other[1]
                sums[number] += [float(light[both].sum()) for light, _ in (first, other)]
    return [(float(a), float(b)) for a, b in sums]


def _light_on(part: Grid, view: KnownView) -> tuple[Tensor, Tensor] | None:
    """Light of a view on a part of the lattice, and where it is seen whole; None where nowhere."""
    stored = view.stored
    to_index = stored.grid.um_to_index.linear @ stored.world_to_view.linear
    z, y, x = (2 * np.ceil(np.abs(to_index) @ np.asarray(part.spacing_um)).astype(int) + 1).tolist()
    box = reached_box(stored.grid, stored.world_to_view, (z, y, x), part)
    if box is None:
        return None
    return light_on(part, view.lit(to_numpy(stored.volume[box]), box, None))
