"""Where the result of a fusion lies: the world of its views, and what is cut out of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from pellucid.core.coverage import recorded
from pellucid.core.geometry import Affine, Grid
from pellucid.core.noise import estimate_background
from pellucid.core.views import View, hollow, proposed_world
from pellucid.errors import InputError, ParameterError, PellucidError
from pellucid.stages.fusion.parameters import FuseParameters
from pellucid.stages.fusion.plan import FusePlan
from pellucid.stages.fusion.views import PlacedSeries

CROP_MARGIN = 8
"""Voxels around what is above background: light that blur carried out of the object."""

CROP_TIMES = 5
"""Time points, evenly spread, that a proposed crop looks at."""


def world_grid(
    parameters: FuseParameters,
    views: Sequence[PlacedSeries],
    over_time: Sequence[Sequence[Affine]],
) -> Grid:
    """The isotropic grid of the result, not cropped: over all, or what is shared at all, times.

    Parameters
    ----------
    over_time : the transforms of the views, at each time point
    """
    spacing = parameters.spacing_um or min(min(view.upright.spacing_um) for view in views)
    places = [place for transforms in over_time for place in hollow_views(views, transforms)]
    try:
        return proposed_world(places, cover=parameters.cover, spacing_um=spacing)
    except InputError:
        if len(over_time) == 1:
            raise
        raise InputError(
            f"{parameters.output.name}: no place is in all views at all {len(over_time)} time points. "
            "Take fewer of them (--time), or --cover all."
        ) from None


def hollow_views(views: Sequence[PlacedSeries], transforms: Sequence[Affine]) -> list[View]:
    """Views without pixels, to speak of where they are."""
    return [
        hollow(v.recorded, v.to_recorded(transform))
        for v, transform in zip(views, transforms, strict=True)
    ]


def cropped(parameters: FuseParameters, world: Grid) -> Grid:
    """`world` cut to z0:z1,y0:y1,x0:x1 where that was asked; "auto" needs the pixels."""
    if parameters.crop in (None, "auto"):
        return world
    assert parameters.crop is not None
    parts = [part.split(":") for part in parameters.crop.split(",")]
    if len(parts) != 3 or any(len(p) != 2 for p in parts):
        raise ParameterError(
            f"crop: expected auto or z0:z1,y0:y1,x0:x1 in voxels, got {parameters.crop!r}."
        )
    try:
        ends = [
            range(n)[slice(*(int(number) if number.strip() else None for number in part))]
            for part, n in zip(parts, world.shape, strict=True)
        ]
    except ValueError:
        raise ParameterError(f"crop: expected whole numbers, got {parameters.crop!r}.") from None
    if not all(ends):
        raise ParameterError(f"crop: {parameters.crop!r} leaves nothing of {world.shape}.")
    return world.crop([e.start for e in ends], [e.stop for e in ends])


def proposed_crop(
    plan: FusePlan, world: Grid, over_time: Mapping[int, Sequence[Affine]]
) -> Grid:
    """The box of what is above background in any view at any of a few time points, with a margin.

    Parameters
    ----------
    over_time : the transforms of the views by the index of the time point
    """
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    known = sorted(over_time)
    few = np.linspace(0, len(known) - 1, min(len(known), CROP_TIMES)).round().astype(int)
    for t, c in ((known[i], c) for i in np.unique(few) for c in range(plan.shape[1])):
        for view, seen in zip(plan.views, hollow_views(plan.views, over_time[t]), strict=True):
            try:
                box = lit_box(view.read(t, c))
            except PellucidError:
                continue  # a broken volume is told of when its turn comes
            if box is None:
                continue
            ends = np.array(list(np.ndindex(2, 2, 2))) * (box[1] - box[0]) + box[0]
            to_index = world.um_to_index @ seen.world_to_view.inverse() @ seen.grid.index_to_um
            places = to_index.apply(ends)
            low, high = np.minimum(low, places.min(0)), np.maximum(high, places.max(0))
    if not np.isfinite(low).all():
        return world
    shape = np.asarray(world.shape)
    start = np.clip(np.floor(low) - CROP_MARGIN, 0, shape - 1).astype(int)
    stop = np.clip(np.ceil(high) + 1 + CROP_MARGIN, start + 1, shape).astype(int)
    return world.crop(start.tolist(), stop.tolist())


def lit_box(volume: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
    """First and last voxel (z, y, x) of what stands above background; None where nothing does."""
    image = np.asarray(volume, np.float32)
    mask, fill = recorded(image, "auto")
    if mask is not None:
        image = np.where(mask, image, np.float32(estimate_background(image, fill=fill or "none")))
    image = gaussian_filter(image, 1.0)
    level = float(estimate_background(image))
    below = image[image < level]
    noise = float(np.sqrt(np.mean((below - level) ** 2))) if below.size else 0.0
    top = float(np.percentile(image, 99.9))
    bright = image > max(level + 6 * noise, level + 0.05 * (top - level))
    if not bright.any():
        return None
    sides = [np.flatnonzero(bright.any(tuple({0, 1, 2} - {a}))) for a in range(3)]
    return np.array([s[0] for s in sides]), np.array([s[-1] for s in sides])
