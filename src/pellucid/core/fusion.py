"""Fuse views of one object: averaged, or deconvolved together in the voxels they were recorded in.

    fuse([View(a, grid_a, world_to_a, psf_a), View(b, grid_b, world_to_b, psf_b)]).image

The joint problem of `joint_problem` has one operator `Blur @ SlabSample` per view: the object is
looked at from the view's angle, blurred by the view's PSF, and compared with the counts as recorded.
Nothing is interpolated before the likelihood, so the noise stays what it was.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.core.accelerated import Accelerated
from pellucid.core.averaging import Weighting, averaged, on_other_grid
from pellucid.core.back_projectors import BackProjector, Matched, WienerButterworth
from pellucid.core.deconvolution import Array, as_volume, image_shape, usable_psf
from pellucid.core.geometry import Affine, Grid, as_triple
from pellucid.core.noise import Noise, estimate_background, estimate_noise
from pellucid.core.operators import Blur
from pellucid.core.problem import Observation, Problem, Restored, Window
from pellucid.core.psf import Psf
from pellucid.core.resampling import Resample
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.core.rotated_psf import rotated_psf
from pellucid.core.slab_sampling import SlabSample, plane_distances_um
from pellucid.errors import FrameError, InputError, ParameterError

Method = Literal["joint", "resample-then-joint", "average", "content-average"]
METHODS = ("joint", "resample-then-joint", "average", "content-average")

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
    psf : on the voxels of this view, in its orientation; a `Psf` or an array. None: only averages
    background : counts where there is no object, camera offset included; None: measured
    noise : the camera; None: measured
    brightness : light collected relative to the first view; None: measured where views overlap
    """

    image: Array
    grid: Grid
    world_to_view: Affine
    psf: Psf | Array | None = None
    background: float | None = None
    noise: Noise | None = None
    brightness: float | None = None

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

    @property
    def voxel_um3(self) -> float:
        """Volume of a voxel in the world: the transform may stretch."""
        volume = math.prod(self.grid.spacing_um) / abs(np.linalg.det(self.world_to_view.linear))
        return float(volume)


def fuse(
    views: Sequence[View],
    world: Grid | None = None,
    *,
    how: Method = "joint",
    back_projector: BackProjector | None = None,
    iterations: int | None = None,
    update: Literal["additive", "alternating"] = "additive",
    device: str | torch.device | None = None,
    seed: int = 0,
) -> Restored:
    """Return one volume of all views on `world`, in counts of the first view above background.

    Values are densities: counts per voxel *of the first view*, so that a fused volume is as bright
    as the first view whatever the voxels of `world`, and the light (values times voxel volume) is
    kept.

    Parameters
    ----------
    views : one or more, of one object
    world : grid of the result; None: `proposed_world(views)`
    how : "joint" deconvolves in the voxels of the views; "resample-then-joint" resamples them first;
        "average" blends at borders, "content-average" also prefers the sharper view
    back_projector : None: Wiener-Butterworth with its cutoff at the FWHM / sqrt(2)
    iterations : None for the guarded, automatically stopped restorer; or exactly that many of
        plain Richardson-Lucy
    update : "additive" takes all views at once; "alternating" one after the other (with a number of
        iterations)
    device : None: that of the first image
    seed : of the photon thinning

    Raises
    ------
    InputError : views that are not finite volumes, do not overlap `world`, or lack a PSF
    FrameError : views whose transforms do not start in the frame of `world`
    ParameterError : unknown `how`, or an `update` that needs a number of iterations
    """
    if how not in METHODS:
        raise ParameterError(f"fuse: expected how to be one of {METHODS}, got {how!r}.")
    if update == "alternating" and iterations is None:
        raise ParameterError(
            "fuse: the guarded restorer takes all views at once; give a number of iterations with "
            "update='alternating'."
        )
    world = _checked_world(views, world)
    device = (
        views[0].image.device if device is None and isinstance(views[0].image, Tensor) else device
    )
    lit = brightened([prepared(view, device) for view in views], world)
    stats: dict[str, Any] = {
        "how": how,
        "world": world.to_dict(),
        "background": [view.level for view in lit],
        "brightness": [view.brightness for view in lit],
    }
    if how in ("average", "content-average"):
        return Restored(averaged_light(lit, world, how).mul_(lit[0].gain), stats)
    build = joint_problem if how == "joint" else resampled_problem
    projector = back_projector or WienerButterworth(cutoff_fwhm=2**-0.5)
    restored = _restorer(projector, iterations, update, seed)(build(lit, world))
    return Restored(restored.image.mul_(lit[0].gain), {**stats, **restored.stats})


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

    @property
    def light(self) -> Tensor:
        """Photons above background; may be negative."""
        return self.photons - self.background


def joint_problem(views: Sequence[LitView], world: Grid) -> Problem:
    """Return the problem of finding one object on `world` from the views as recorded.

    The object's grid is `world`, widened so that it covers all that sends light into any view: what
    lies beyond the borders is estimated and cut off. Views are cropped to what `world` reaches.
    """
    cropped = [_cropped(view, world) for view in views]
    blurs = [_blur(view, views[0]) for view in cropped]
    behind = [extended_grid(v.grid, blur) for v, blur in zip(cropped, blurs, strict=True)]
    domain, window = _widened(world, cropped, behind, blurs)
    observations = [
        Observation(v.photons, blur @ SlabSample(domain, grid, v.world_to_view), v.background)
        for v, blur, grid in zip(cropped, blurs, behind, strict=True)
    ]
    return Problem(tuple(observations), window)


def resampled_problem(views: Sequence[LitView], world: Grid) -> Problem:
    """Return the classic problem: views resampled to `world` first, PSFs turned to match.

    Voxels that a view does not reach take the average of the views that do. Interpolated counts are
    no longer Poisson, and voxels of equal noise are counted several times.
    """
    filler, _ = averaged(*_on_equal_terms(views), world)
    images = []
    for view in views:
        assert view.brightness is not None
        scale = view.brightness * view.voxel_um3 / views[0].voxel_um3
        image, inside = on_other_grid(view.photons, Resample(view.grid, world, view.world_to_view))
        images.append(torch.where(inside, image, filler * scale + view.background).clamp_min_(0))
    psfs = [
        rotated_psf(_psf(view), view.grid.spacing_um, view.world_to_view.linear, world.spacing_um)
        for view in views
    ]
    size = np.max([psf.shape for psf in psfs], axis=0)
    observations = []
    for view, image, psf in zip(views, images, psfs, strict=True):
        # sizes are odd: padding alike on both sides keeps the centre, and gives all one domain
        padding = [(int(n - m) // 2,) * 2 for n, m in zip(size, psf.shape, strict=True)]
        scale = float(view.brightness or 1) * view.voxel_um3 / views[0].voxel_um3
        kernel = torch.from_numpy(np.pad(psf.values, padding) * scale).to(image)
        observations.append(Observation(image, Blur(kernel, world.shape), view.background))
    blur = observations[0].operator
    assert isinstance(blur, Blur)
    return Problem(tuple(observations), blur.window)


def averaged_light(views: Sequence[LitView], world: Grid, weighting: Weighting) -> Tensor:
    """Return the weighted average in photons per voxel of the first view, not negative."""
    return averaged(*_on_equal_terms(views), world, weighting)[0].clamp_min_(0)


def brightened(views: Sequence[LitView], world: Grid) -> list[LitView]:
    """Return the views with their brightness, measured against the first where it is not given.

    The ratio of the summed light where both views see; 1 where they share nothing.
    """
    factors = [max(1, -(-n // BRIGHTNESS_LATTICE)) for n in world.shape]
    lattice = world.with_spacing(np.asarray(world.spacing_um) * factors)

    def light(view: LitView) -> tuple[Tensor, Tensor]:
        sample = SlabSample(view.grid, lattice, view.world_to_view.inverse())
        support = sample.forward(torch.ones_like(view.photons))
        return sample.forward(view.light) / view.voxel_um3, support > 0.99

    first, first_seen = light(views[0])
    lit = [replace(views[0], brightness=1.0)]
    for view in views[1:]:
        if view.brightness is None:
            other, seen = light(view)
            both = seen & first_seen
            sums = float(other[both].sum()), float(first[both].sum())
            view = replace(view, brightness=sums[0] / sums[1] if min(sums) > 0 else 1.0)
        lit.append(view)
    return lit


def extended_grid(grid: Grid, blur: Blur) -> Grid:
    """Return the grid of the object behind a blurred image: object voxel = image voxel + margin."""
    origin = grid.index_to_um.apply(-np.asarray(blur.margin, dtype=np.float64))
    return Grid(blur.domain_shape, grid.spacing_um, as_triple(origin, "origin"), grid.frame)


def _checked_world(views: Sequence[View], world: Grid | None) -> Grid:
    if not views:
        raise InputError("fuse: expected one view or more, got none.")
    frames = {view.world_to_view.source for view in views}
    if world is not None:
        frames.add(world.frame)
    if len(frames) > 1:
        raise FrameError(
            f"fuse: expected all views in one world, got the frames {sorted(frames)}. Compose the "
            "transforms so that all start in the frame of the result."
        )
    return proposed_world(views) if world is None else world


def prepared(view: View, device: str | torch.device | None) -> LitView:
    """Return the view in photons, read noise added to both image and background (Snyder 1993)."""
    image = as_volume(view.image, device)
    counts = image.cpu().numpy()
    camera = view.noise or estimate_noise(counts)
    level = float(estimate_background(counts)) if view.background is None else view.background
    known = camera.reliable and camera.gain > 0
    gain = camera.gain if known else 1.0
    offset = min(camera.offset, level) if known else level
    read_photons = (camera.read_noise / gain) ** 2 if known else 0.0
    photons = ((image - offset) / gain).add_(read_photons).clamp_min_(0)
    expected = (level - offset) / gain + read_photons
    psf = None if view.psf is None else usable_psf(view.psf, image_shape(image))
    # floors as in the single-view restorer: a background of zero would forbid a single stray photon
    expected = max(expected, 1e-3 * float(photons.mean()))
    # brightness is told in counts, and used in photons
    return LitView(
        photons, view.grid, view.world_to_view, psf, expected, gain, level, view.voxel_um3,
        view.brightness,
    )  # fmt: skip


def _on_equal_terms(
    views: Sequence[LitView],
) -> tuple[list[Tensor], list[Grid], list[Affine]]:
    """Return light per voxel of the first view, as bright as the first view; grids; transforms."""
    images = [
        v.light * (views[0].voxel_um3 / (v.voxel_um3 * float(v.brightness or 1))) for v in views
    ]
    return images, [v.grid for v in views], [v.world_to_view for v in views]


def _psf(view: LitView) -> Psf:
    if view.psf is None:
        raise InputError(
            f"fuse: expected a PSF for the view {view.grid.frame!r}, got none. Give View(psf=...), "
            "or how='average'."
        )
    return view.psf


def _blur(view: LitView, first: LitView) -> Blur:
    """Return the blur whose flux turns the first view's brightness into this view's photons."""
    flux = float(view.brightness or 1) * view.voxel_um3 / first.voxel_um3
    kernel = torch.from_numpy((_psf(view).values * flux).astype(np.float32))
    return Blur(kernel.to(view.photons), image_shape(view.photons))


def _cropped(view: LitView, world: Grid) -> LitView:
    """Return the part of a view that the light of `world` reaches."""
    corners = view.grid.um_to_index.apply(view.world_to_view.apply(world.corners_um()))
    reach = [n // 2 + 1 for n in _psf(view).shape]
    start = np.maximum(np.floor(corners.min(0)).astype(int) - reach, 0)
    stop = np.minimum(np.ceil(corners.max(0)).astype(int) + reach + 1, view.grid.shape)
    if (start >= stop).any():
        raise InputError(
            f"fuse: the view {view.grid.frame!r} does not reach the world of the result. Check its "
            "transform, or leave the view out."
        )
    box = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    grid = view.grid.crop(start.tolist(), stop.tolist())
    return replace(view, photons=view.photons[box].contiguous(), grid=grid)


def _widened(
    world: Grid, views: Sequence[LitView], behind: Sequence[Grid], blurs: Sequence[Blur]
) -> tuple[Grid, Window]:
    """Return `world` grown over all that sends light into the views, and where `world` lies in it."""
    low, high = np.zeros(3), np.asarray(world.shape) - 1.0
    for view, grid, blur in zip(views, behind, blurs, strict=True):
        corners = np.array(list(np.ndindex(2, 2, 2))) * (_reached(blur) - 1)
        view_to_index = world.um_to_index @ view.world_to_view.inverse() @ grid.index_to_um
        places: NDArray[np.float64] = view_to_index.apply(corners)
        low, high = np.minimum(low, places.min(0)), np.maximum(high, places.max(0))
    before = -np.floor(low + 1e-6).astype(int)
    z, y, x = (int(n) for n in np.ceil(high - 1e-6).astype(int) + before + 1)
    origin = as_triple(world.index_to_um.apply(-before.astype(float)), "origin")
    inside = [slice(int(b), int(b) + n) for b, n in zip(before, world.shape, strict=True)]
    return Grid((z, y, x), world.spacing_um, origin, world.frame), (inside[0], inside[1], inside[2])


def _reached(blur: Blur) -> NDArray[np.int64]:
    """Return the shape of the object that the image sees; the blur's domain is an FFT size larger."""
    return np.add(blur.range_shape, blur.psf.shape) - 1


def _restorer(
    projector: BackProjector,
    iterations: int | None,
    update: Literal["additive", "alternating"],
    seed: int,
) -> Accelerated | RichardsonLucy:
    if iterations is None:
        return Accelerated(projector, seed=seed)
    start: Literal["flat", "low-passed"] = "flat" if projector == Matched() else "low-passed"
    return RichardsonLucy(iterations, projector, start=start, update=update)
