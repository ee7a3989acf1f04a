"""Views of one object: what was recorded, where, through what; and in photons of equal brightness."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pellucid.core.coverage import FillChoice, recorded
from pellucid.core.deconvolution import Array, as_volume, in_photons, usable_psf
from pellucid.core.geometry import Affine, Grid, as_triple
from pellucid.core.noise import Noise, check_background, estimate_background, estimate_noise
from pellucid.core.psf import Psf
from pellucid.core.psf_field import PsfField
from pellucid.core.slab_sampling import SlabSample, plane_distances_um
from pellucid.core.transform_field import TransformField
from pellucid.errors import FrameError, InputError

BRIGHTNESS_LATTICE = 48
"""Voxels along each axis at which the brightness of views is compared: sums need no more."""


@dataclass(frozen=True)
class View:
    """One recording of the object, and where and how it was made.

    Parameters
    ----------
    image : (z, y, x) counts as recorded, finite; an array or a tensor
    grid : where its voxels are, in a frame of its own
    world_to_view : maps micrometres of the world to micrometres of `grid.frame`; for registered
        views `Registration.fixed_to_moving`, and the identity for the fixed one
    psf : on the voxels of this view, in its orientation; a `Psf` or an array, or a `PsfField` where it
        varies (positions from the image's first voxel). None: only averages
    background : counts where there is no object, camera offset included; None: measured
    noise : the camera; None: measured
    brightness : photons collected relative to the first view; None: measured where views overlap
    field : the same as `world_to_view` where it varies, for a specimen that was registered in chunks;
        light is then sampled through it, and all else goes by `world_to_view`
    fill : what stands in voxels that were never recorded: a value, "none", or "auto" to find it
    """

    image: Array
    grid: Grid
    world_to_view: Affine
    psf: Psf | PsfField | Array | None = None
    background: float | None = None
    noise: Noise | None = None
    brightness: float | None = None
    field: TransformField | None = None
    fill: FillChoice = "auto"

    def __post_init__(self) -> None:
        if tuple(self.image.shape) != self.grid.shape:
            raise InputError(
                f"View: expected an image of the grid's shape {self.grid.shape}, got "
                f"{tuple(self.image.shape)}. Give a 2D image a leading axis."
            )
        if self.world_to_view.target != self.grid.frame:
            raise FrameError(
                f"View: expected world_to_view to reach the grid's frame {self.grid.frame!r}, it "
                f"reaches {self.world_to_view.target!r}. Invert it, or rename with with_frames()."
            )
        frames = (self.world_to_view.source, self.world_to_view.target)
        if self.field is not None and (self.field.source, self.field.target) != frames:
            raise FrameError(
                f"View: expected a field that leads from {frames[0]!r} to {frames[1]!r} as world_to_view "
                f"does, got {self.field.source!r} -> {self.field.target!r}."
            )

    @property
    def voxel_um3(self) -> float:
        """Volume of a voxel in the world: the transform may stretch."""
        volume = math.prod(self.grid.spacing_um) / abs(np.linalg.det(self.world_to_view.linear))
        return float(volume)


def hollow(grid: Grid, world_to_view: Affine, psf: Psf | PsfField | None = None) -> View:
    """Return a view without pixels, to speak of where it is."""
    return View(np.broadcast_to(np.float32(0), grid.shape), grid, world_to_view, psf)


def proposed_world(
    views: Sequence[View], *, cover: Literal["all", "overlap"] = "all", spacing_um: Any = None
) -> Grid:
    """Return an isotropic grid over the views, in the frame that their transforms start from.

    Parameters
    ----------
    cover : "all" that any view shows, or the box of the "overlap" of all
    spacing_um : None: the smallest distance between planes of any view, isotropic
    """
    boxes, finest = [], []
    for view in views:
        corners = view.world_to_view.inverse().apply(view.grid.corners_um())
        boxes.append((corners.min(0), corners.max(0)))
        spacing = np.asarray(view.grid.spacing_um)
        finest.append(
            plane_distances_um(spacing, view.world_to_view)[np.array(view.grid.shape) > 1]
        )
    lows, highs = (np.array(ends) for ends in zip(*boxes, strict=True))
    low = lows.min(0) if cover == "all" else lows.max(0)
    high = highs.max(0) if cover == "all" else highs.min(0)
    if (high < low).any():
        raise InputError(
            "fuse: the views do not overlap in the world. Check the registration, and that "
            "world_to_view is not its inverse."
        )
    spacing = np.asarray(
        as_triple(np.concatenate(finest).min() if spacing_um is None else spacing_um, "spacing_um")
    )
    # voxels of the first view that are voxels of the world need no interpolation
    first = views[0].world_to_view.inverse().apply(views[0].grid.origin_um)
    outward = 1 if cover == "all" else -1
    start = outward * np.floor(outward * (low - first) / spacing + 1e-6)
    end = outward * np.ceil(outward * (high - first) / spacing - 1e-6)
    z, y, x = (int(n) for n in (end - start).astype(int) + 1)
    origin = first + start * spacing
    frame = views[0].world_to_view.source
    return Grid((z, y, x), as_triple(spacing, "spacing_um"), as_triple(origin, "origin"), frame)


@dataclass(frozen=True)
class LitView:
    """A view in photons: image ~ Poisson(brightness * blurred object + background).

    Parameters
    ----------
    photons : (z, y, x) on the device
    background : expected photons per voxel that are not the object's
    gain : counts per photon; level : counts of the background
    recorded : (z, y, x) booleans, False where the camera never looked; None: it looked everywhere
    psf_field : where the PSF varies, by positions in the view's frame; `psf` is then the mean one
    """

    photons: Tensor
    grid: Grid
    world_to_view: Affine
    psf: Psf | None
    background: float
    gain: float
    level: float
    voxel_um3: float
    brightness: float | None
    field: TransformField | None = None
    recorded: Tensor | None = None
    psf_field: PsfField | None = None

    @property
    def coverage(self) -> Tensor:
        """1 where the camera looked, else 0."""
        if self.recorded is None:
            return torch.ones_like(self.photons)
        return self.recorded.to(self.photons)

    @property
    def displaced_um(self) -> float:
        """How far the field takes a point from where `world_to_view` has it, at most."""
        return 0.0 if self.field is None else self.field.largest_um

    @property
    def dark(self) -> bool:
        """Whether no voxel stands above the background."""
        return float(self.light.max()) <= 0

    @property
    def light(self) -> Tensor:
        """Photons above background; may be negative, and are 0 where nothing was recorded."""
        light = self.photons - self.background
        return light if self.recorded is None else light.mul_(self.recorded)


def prepared(view: View, device: str | torch.device | None) -> LitView:
    """Return the view in photons, read noise added to both image and background (Snyder 1993)."""
    image = as_volume(view.image, device)
    counts = image.cpu().numpy()
    check_background(view.background, float(counts.min()), float(counts.max()))
    mask, found = recorded(counts, view.fill)
    camera = view.noise or estimate_noise(counts, fill=found or "none")
    level = view.background
    if level is None:
        level = float(estimate_background(counts, fill=found or "none"))
    seen = None if mask is None else torch.from_numpy(mask).to(image.device)
    photons, expected, gain = in_photons(image, level, camera, seen)
    psf, psf_field = psfs_of(view)
    # floors as in the single-view restorer: a background of zero would forbid a single stray photon
    expected = max(expected, 1e-3 * float((photons if seen is None else photons[seen]).mean()))
    return LitView(
        photons, view.grid, view.world_to_view, psf, expected, gain, level, view.voxel_um3,
        view.brightness, view.field, seen, psf_field,
    )  # fmt: skip


def psfs_of(view: View) -> tuple[Psf | None, PsfField | None]:
    """Return the PSF of a view and, where it varies, its field in the view's frame, of mean flux 1."""
    shape = view.grid.shape
    if not isinstance(view.psf, PsfField):
        return None if view.psf is None else usable_psf(view.psf, shape), None
    field = usable_psf(view.psf, shape)
    flux = float(field.psfs.sum(axis=(1, 2, 3)).mean())
    positions = field.positions_um + np.asarray(view.grid.origin_um)
    return field.typical, replace(field, psfs=field.psfs / flux, positions_um=positions)


def brightened(views: Sequence[LitView], world: Grid) -> list[LitView]:
    """Return the views with their brightness, measured against the first where it is not given.

    The ratio of the summed light where both views see; 1 where they share nothing.
    """
    lattice = brightness_lattice(world)
    first, first_seen = light_on(lattice, views[0])
    lit = [replace(views[0], brightness=1.0)]
    for view in views[1:]:
        if view.brightness is None:
            other, seen = light_on(lattice, view)
            both = seen & first_seen
            sums = float(other[both].sum()), float(first[both].sum())
            view = replace(view, brightness=sums[0] / sums[1] if min(sums) > 0 else 1.0)
        lit.append(view)
    return lit


def brightness_lattice(world: Grid) -> Grid:
    """Return the coarse voxels on which the light of views is compared."""
    factors = [max(1, -(-n // BRIGHTNESS_LATTICE)) for n in world.shape]
    return world.with_spacing(np.asarray(world.spacing_um) * factors)


def light_on(lattice: Grid, view: LitView) -> tuple[Tensor, Tensor]:
    """Return the light of a view on coarse voxels, per volume, and where the view holds all of it."""
    sample = SlabSample(view.grid, lattice, view.world_to_view.inverse())
    support = sample.forward(view.coverage)
    return sample.forward(view.light) / view.voxel_um3, support > 0.99


def on_equal_terms(
    views: Sequence[LitView],
) -> tuple[list[Tensor], list[Grid], list[Affine]]:
    """Return light per voxel of the first view, as bright as the first view; grids; transforms."""
    images = [
        v.light * (views[0].voxel_um3 / (v.voxel_um3 * float(v.brightness or 1))) for v in views
    ]
    return images, [v.grid for v in views], [v.world_to_view for v in views]
