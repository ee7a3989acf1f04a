"""Fuse views of one object: averaged, or deconvolved together in the voxels they were recorded in.

    fuse([View(a, grid_a, world_to_a, psf_a), View(b, grid_b, world_to_b, psf_b)]).image

The joint problem of `joint_problem` has one operator `Blur @ SlabSample` per view: the object is
looked at from the view's angle, blurred by the view's PSF, and compared with the counts as recorded.
Nothing is interpolated before the likelihood, so the noise stays what it was.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pellucid.core.accelerated import Accelerated
from pellucid.core.averaging import Weighting, averaged, on_other_grid
from pellucid.core.back_projectors import BackProjector, Matched, WienerButterworth
from pellucid.core.deconvolution import FIELD_ACCURACY, image_shape
from pellucid.core.field_resampling import sampled
from pellucid.core.geometry import Grid
from pellucid.core.joint_operators import extended_grid, reached_box, sharpened, widened
from pellucid.core.operators import Blur, Composed, Extended
from pellucid.core.problem import Observation, Problem, Restored
from pellucid.core.psf import Psf
from pellucid.core.richardson_lucy import RichardsonLucy
from pellucid.core.rotated_psf import rotated_psf
from pellucid.core.slab_sampling import SlabSample, sampling_variance_px
from pellucid.core.varying_blur import VaryingBlur
from pellucid.core.views import (
    LitView,
    View,
    brightened,
    on_equal_terms,
    prepared,
    proposed_world,
)
from pellucid.core.virtual_views import VirtualViews, virtual_views
from pellucid.errors import FrameError, InputError, ParameterError

Method = Literal["joint", "resample-then-joint", "average", "content-average"]
METHODS = ("joint", "resample-then-joint", "average", "content-average")


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
    kept. Voxels that lie in no view's image are 0.

    Parameters
    ----------
    views : one or more, of one object
    world : grid of the result; None: `proposed_world(views)`
    how : "joint" deconvolves in the voxels of the views; "resample-then-joint" resamples them first;
        "average" blends at borders, "content-average" also prefers the sharper view
    back_projector : None: Wiener-Butterworth with its cutoff at the FWHM / sqrt(2); `VirtualViews()`
        is Preibisch's, made here for these views
    iterations : None for the guarded, automatically stopped restorer; or exactly that many of
        plain Richardson-Lucy
    update : "additive" takes all views at once; "alternating" one after the other (with a number of
        iterations)
    device : None: that of the first image
    seed : of the photon thinning

    Raises
    ------
    InputError : views that are not finite volumes, do not overlap `world`, are dark beside others
        that are not, or lack a PSF
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
    seen = [prepared(view, device) for view in views]
    if all(view.dark for view in seen):
        dark = torch.zeros(world.shape, device=seen[0].photons.device)
        return Restored(dark, {"how": how, "stopped_by": "no light above background"})
    lit = brightened(all_lit(seen), world)
    shares = [1.0 if v.recorded is None else float(v.recorded.double().mean()) for v in lit]
    stats: dict[str, Any] = {
        "how": how,
        "world": world.to_dict(),
        "recorded_share": shares,
        "background": [view.level for view in lit],
        "brightness": [view.brightness for view in lit],
    }
    if how in ("average", "content-average"):
        return Restored(averaged_light(lit, world, how).mul_(lit[0].gain), stats)
    if any(view.psf_field is not None for view in lit):
        _check_field(how, back_projector)
    problem = (joint_problem if how == "joint" else resampled_problem)(lit, world)
    projector = back_projector or WienerButterworth(cutoff_fwhm=2**-0.5)
    if isinstance(projector, VirtualViews):
        projector = _virtual_views(problem, lit, world if how == "resample-then-joint" else None)
    restored = _restorer(projector, iterations, update, seed)(problem)
    image = restored.image.mul_(lit[0].gain).mul_(covered(lit, world))
    return Restored(image, {**stats, **restored.stats})


def joint_problem(views: Sequence[LitView], world: Grid) -> Problem:
    """Return the problem of finding one object on `world` from the views as recorded.

    The object's grid is `world`, widened so that it covers all that sends light into any view: what
    lies beyond the borders is estimated and cut off. Views are cropped to what `world` reaches.
    """
    cropped = [_cropped(view, world) for view in views]
    blurs = [_blur(view, views[0], world) for view in cropped]
    behind = [extended_grid(v.grid, blur) for v, blur in zip(cropped, blurs, strict=True)]
    transforms = [view.world_to_view for view in cropped]
    displaced_um = max(view.displaced_um for view in views)
    domain, window = widened(world, transforms, behind, blurs, displaced_um)
    observations = [
        Observation(
            v.photons,
            blur @ SlabSample(domain, grid, v.world_to_view, v.field),
            v.background,
            v.recorded,
        )
        for v, blur, grid in zip(cropped, blurs, behind, strict=True)
    ]
    return Problem(tuple(observations), window)


def resampled_problem(views: Sequence[LitView], world: Grid) -> Problem:
    """Return the classic problem: views resampled to `world` first, PSFs turned to match.

    Voxels that a view does not reach take the average of the views that do. Interpolated counts are
    no longer Poisson, and voxels of equal noise are counted several times.
    """
    fields = [view.field for view in views]
    masks = [view.recorded for view in views]
    filler, _ = averaged(*on_equal_terms(views), world, fields=fields, recorded=masks)
    images = []
    for view in views:
        assert view.brightness is not None
        scale = view.brightness * view.voxel_um3 / views[0].voxel_um3
        sample = sampled(view.grid, world, view.world_to_view, view.field)
        image, inside = on_other_grid(view.photons, sample, recorded=view.recorded)
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


def covered(views: Sequence[LitView], world: Grid) -> Tensor:
    """Return 1 where a voxel of `world` lies in some view's image, else 0.

    Beside an image the restorer has to account for the light that falls in, but what it finds there
    is a guess.
    """
    seen = torch.zeros(world.shape, device=views[0].photons.device)
    for view in views:
        sample = sampled(view.grid, world, view.world_to_view, view.field)
        seen = torch.maximum(seen, sample.forward(view.coverage))
    return (seen > 0.5).to(seen)


def averaged_light(views: Sequence[LitView], world: Grid, weighting: Weighting) -> Tensor:
    """Return the weighted average in photons per voxel of the first view, not negative."""
    fields = [view.field for view in views]
    masks = [view.recorded for view in views]
    return averaged(*on_equal_terms(views), world, weighting, fields, masks)[0].clamp_min_(0)


def _check_field(how: Method, back_projector: BackProjector | None) -> None:
    if how != "joint" or isinstance(back_projector, VirtualViews):
        raise InputError(
            "fuse: a PSF that varies needs how='joint' without virtual views. Choose these, or give each "
            "view one PSF."
        )


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


def all_lit(views: list[LitView]) -> list[LitView]:
    """Return the views; InputError for one that is dark beside others that are not."""
    for number, view in enumerate(views):
        if view.dark:
            raise InputError(
                f"fuse: view {number} ({view.grid.frame!r}) shows no light above its background of "
                f"{view.level:.4g} counts. Check the recording and the background, or leave it out."
            )
    return views


def _virtual_views(problem: Problem, views: Sequence[LitView], world: Grid | None) -> VirtualViews:
    """Return the compound kernels of the views, in their own frames or, if given, the world's."""
    blurs = [o.operator for o in problem.observations]
    blurs = [b.outer if isinstance(b, Composed) else b for b in blurs]
    linears = [view.world_to_view.linear for view in views]
    spacings = [view.grid.spacing_um for view in views]
    psfs = [_psf(view) for view in views]
    if world is not None:
        turned = zip(psfs, spacings, linears, strict=True)
        psfs = [rotated_psf(p, s, linear, world.spacing_um) for p, s, linear in turned]
        linears, spacings = [np.eye(3)] * len(views), [world.spacing_um] * len(views)
    known = [blur for blur in blurs if isinstance(blur, Blur)]
    return virtual_views(known, psfs, linears, spacings)


def _psf(view: LitView) -> Psf:
    if view.psf is None:
        raise InputError(
            f"fuse: expected a PSF for the view {view.grid.frame!r}, got none. Give View(psf=...), "
            "or how='average'."
        )
    return view.psf


def _blur(view: LitView, first: LitView, world: Grid) -> Extended:
    """Return the blur whose flux turns the first view's brightness into this view's photons."""
    flux = float(view.brightness or 1) * view.voxel_um3 / first.voxel_um3
    variance = sampling_variance_px(world, view.grid, view.world_to_view)
    shape, device = image_shape(view.photons), view.photons.device
    if view.psf_field is not None:
        psfs = np.stack([sharpened(psf, variance) * flux for psf in view.psf_field.psfs])
        known = replace(view.psf_field, psfs=psfs).expanded(FIELD_ACCURACY)
        return VaryingBlur(known, shape, origin_um=view.grid.origin_um, device=device)
    kernel = sharpened(_psf(view).values, variance) * flux
    return Blur(torch.from_numpy(kernel).to(view.photons), shape)


def _cropped(view: LitView, world: Grid) -> LitView:
    """Return the part of a view that the light of `world` reaches."""
    box = reached_box(view.grid, view.world_to_view, _psf(view).shape, world, view.displaced_um)
    if box is None:
        raise InputError(
            f"fuse: the view {view.grid.frame!r} does not reach the world of the result. Check its "
            "transform, or leave the view out."
        )
    grid = view.grid.crop([part.start for part in box], [part.stop for part in box])
    mask = None if view.recorded is None else view.recorded[box].contiguous()
    return replace(view, photons=view.photons[box].contiguous(), grid=grid, recorded=mask)


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
