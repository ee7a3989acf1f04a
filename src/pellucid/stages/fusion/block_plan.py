"""Blocks of a fusion whose views and result are larger than the memory that may be used."""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from pellucid.core.averaging import Weighting
from pellucid.core.fourier import Shape
from pellucid.core.fused_blocks import StoredView, halo_of_average, halo_of_views
from pellucid.core.geometry import Affine, Grid
from pellucid.data.pyramid import chunk_and_shard
from pellucid.data.resumable_zarr import listed_core
from pellucid.stages.fusion.memory import block_peak_bytes
from pellucid.stages.fusion.parameters import FuseParameters
from pellucid.stages.fusion.plan import FusePlan
from pellucid.stages.pieces.piece_choice import fits_in_one, goes_on, is_begun, shared_out
from pellucid.stages.pieces.tile_plan import (
    BESIDE_BYTES,
    TilePlan,
    fitted_tiling,
    planning_room,
    shard_chunks,
)
from pellucid.stages.registration.coarse_views import coarse_peak_bytes, coarsened
from pellucid.stages.work.cluster_choice import Workplace


def is_in_one(plan: FusePlan) -> bool:
    """Whether the fusion fits in one piece, and nothing asks for blocks."""
    asked = plan.parameters
    begun = goes_on(plan.output, resume=asked.resume, overwrite=asked.overwrite)
    fits = fits_in_one(plan.peak_bytes, plan.available_bytes, asked)
    by_choice = asked.tile is not None or asked.cluster is not None or begun
    return fits and not by_choice


def without_blocks(plan: FusePlan) -> str:
    """Why a fusion cannot be made by blocks, and what would let it; empty where it can."""
    asked = plan.parameters
    if not plan.output.name.lower().endswith(".zarr") or asked.dtype != "float32":
        return "Blocks are written as float32 OME-Zarr: name a .ome.zarr output"
    if asked.method == "resample-then-joint":
        return "Blocks are for the methods joint, average and content-average"
    if any(field is not None for field in plan.fields):
        return "Blocks take one PSF for each view, and here it varies"
    unfit = {
        "--crop auto": asked.crop == "auto",
        "--background-image": bool(asked.background_image),
        "--registered-views": asked.registered_views,
    }
    named = " and ".join(name for name, is_asked in unfit.items() if is_asked)
    return f"Blocks do without {named}: leave it out" if named else ""


def registration_bytes(plan: FusePlan) -> int:
    """Memory of registering the views before the blocks; none where their places are known.

    Views are registered on few voxels; a stage scan is stood up as a whole for that.
    """
    asked = plan.parameters
    if asked.transforms is not None or asked.over_time == "none":
        return 0
    upright = [view.upright_series for view in plan.views]
    whole = [12 * math.prod(view.upright.shape) for view in plan.views if view.scan is not None]
    return coarse_peak_bytes(coarsened(upright)) + max(whole, default=0) + BESIDE_BYTES


def planned_blocks(
    plan: FusePlan, over_time: Sequence[Sequence[Affine]], place: Workplace
) -> TilePlan:
    """Return the blocks that cost least of those that fit.

    Parameters
    ----------
    over_time : the transforms of the views, at each time point

    Raises
    ------
    PlanError : not even the smallest block fits
    ParameterError : a tile that is not made of whole chunks of the output
    """
    world, asked = plan.world, plan.parameters
    views = placed_views(plan, over_time)
    halo = block_halo(views, world, asked)
    itemsize = max(view.series.dtype.itemsize for view in plan.views)
    z, y, x = np.max([(1, 1, 1) if v.psf is None else v.psf.shape for v in views], 0).tolist()

    @cache
    def needed(read: Shape) -> int:
        core = math.prod(min(max(n - 2 * h, 1), n) for n, h in zip(read, halo, strict=True))
        return block_peak_bytes(views, world, read, asked, itemsize) + 8 * core + BESIDE_BYTES

    def within(room_bytes: int | None) -> TilePlan:
        room = planning_room(room_bytes)
        tiling = fitted_tiling(
            world.shape, core, halo=halo, reach=(z, y, x), needed=needed, room_bytes=room
        )
        return TilePlan(tiling, shard_chunks(tiling, room), tiling.core_shape)

    core = asked.tile
    if core is None and asked.resume and is_begun(plan.output):
        listed = listed_core(plan.output)  # of the result as it was registered
        core = None if listed is None else whole_chunks(listed, world.shape)
    tiles = within(place.room_bytes)
    return tiles if core else shared_out(tiles, math.prod(plan.shape), place, within)


def whole_chunks(tile: Shape, shape: Shape) -> Shape:
    """A block that was asked for, in whole chunks of the result as registration made it, no smaller."""
    chunk, _ = chunk_and_shard(shape)
    z, y, x = (-(-t // c) * c for t, c in zip(tile, chunk, strict=True))
    return z, y, x


def placed_views(
    plan: FusePlan, over_time: Sequence[Sequence[Affine]]
) -> list[StoredView]:
    """Views without pixels, with the largest PSF of any channel."""
    found = plan.given
    views = []
    for number, (placed, psfs) in enumerate(zip(plan.views, plan.psfs, strict=True)):
        field = None
        if found is not None:
            field = placed.field_to_recorded(found.at(found.times[0], number).field)
        pixels = np.broadcast_to(np.float32(0), placed.recorded.shape)
        widest = max(psfs, key=lambda psf: 0 if psf is None else psf.values.size)
        transform = placed.to_recorded(over_time[0][number])
        views.append(StoredView(pixels, placed.recorded, transform, widest, field=field))
    return views


def block_halo(
    views: Sequence[StoredView], world: Grid, parameters: FuseParameters
) -> Shape:
    """Voxels of the world around a block that decide it."""
    weighting = weighting_of(parameters)
    return halo_of_average(weighting, world) if weighting else halo_of_views(views, world)


def weighting_of(parameters: FuseParameters) -> Weighting | None:
    """How an average is weighted; None for the joint problem."""
    if parameters.method == "joint":
        return None
    return "average" if parameters.method == "average" else "content-average"
