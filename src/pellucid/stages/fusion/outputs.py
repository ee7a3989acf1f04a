"""Everything that a fusion writes: the series, and beside it views, projections and transforms."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pellucid.core.field_resampling import sampled
from pellucid.core.geometry import Grid
from pellucid.core.transform_series import SeriesRegistration, ViewTransform
from pellucid.data.finished_volumes import FinishedVolumes
from pellucid.data.output import create_output, stem
from pellucid.data.pixels import IntegerScale
from pellucid.data.record import RunRecord
from pellucid.data.writer import remove
from pellucid.errors import InputError, PellucidError
from pellucid.stages.deskewing import projecting
from pellucid.stages.fusion import registration as registering
from pellucid.stages.fusion.plan import FusePlan, side_outputs
from pellucid.stages.fusion.views import PlacedSeries

Float32 = npt.NDArray[np.float32]
Place = tuple[int, int]


def write_everything(
    plan: FusePlan,
    waiting: FinishedVolumes,
    found: SeriesRegistration,
    world: Grid,
    record: RunRecord,
) -> list[Path]:
    """Write what waits under its final name, with everything that belongs to it."""
    asked, image = plan.parameters, plan.image(world)
    scale = IntegerScale()
    if asked.dtype != "float32":
        tops = [float(np.nanmax(waiting.get(*place))) for place in waiting.statistics]
        scale = IntegerScale.from_range(0.0, max(tops, default=0.0), asked.dtype)
    with record.timed("write"), create_output(
        plan.output, image, attributes={"command": "fuse", "config": asked.plain()}, scale=scale,
        ome_zarr_version=asked.ome_zarr, overwrite=plan.replaces,
    ) as out:  # fmt: skip
        for t, c in np.ndindex(plan.shape):
            out.write(t, c, _volume(plan, waiting, world, (t, c)))
    record.statistics["integer_scale"] = scale.factor
    inputs = {path.resolve() for view in plan.views for path in view.series.files}
    inputs |= {path.resolve() for path in (asked.transforms,) if path is not None}
    for path in side_outputs(plan.output):
        if path.resolve() not in inputs:
            remove(path)  # of an earlier run, and not of this one
    outputs = [plan.output]
    if asked.registered_views:
        with record.timed("registered views"):
            outputs += _write_views(plan, found, world)
    if asked.projections:
        with record.timed("projections"):
            outputs += _write_projections(plan, waiting, world)
    beside = plan.output.with_name(stem(plan.output))
    return outputs + registering.write_all(found, plan.views, asked, beside)


def _volume(plan: FusePlan, waiting: FinishedVolumes, world: Grid, place: Place) -> Float32:
    if place in waiting.statistics:
        return waiting.get(*place)
    value = np.nan if plan.parameters.dtype == "float32" else 0.0
    return np.full(world.shape, value, np.float32)


def _write_views(plan: FusePlan, found: SeriesRegistration, world: Grid) -> list[Path]:
    """Write each view as recorded counts on the voxels of the result, zero where it does not see."""
    paths = []
    for number, placed in enumerate(plan.views):
        path = plan.output.with_name(f"{stem(plan.output)}_view{number}.ome.zarr")
        image = dataclasses.replace(plan.image(world), dtype="float32")
        with create_output(
            path, image, ome_zarr_version=plan.parameters.ome_zarr, overwrite=plan.replaces
        ) as out:
            for t, c in np.ndindex(plan.shape):
                out.write(t, c, _on_world(placed, found.at(found.times[t], number), t, c, world))
        paths.append(path)
    return paths


def _on_world(
    placed: PlacedSeries, transform: ViewTransform, t: int, c: int, world: Grid
) -> Float32:
    """One view's counts on `world`; NaN where they cannot be read or their place is not believed."""
    try:
        if not transform.believed:
            raise InputError(transform.reason)
        counts = torch.from_numpy(placed.read(t, c).astype(np.float32))
    except PellucidError:
        return np.full(world.shape, np.nan, np.float32)
    to_recorded = placed.to_recorded(transform.world_to_view)
    field = placed.field_to_recorded(transform.field)
    seen: Float32 = sampled(placed.recorded, world, to_recorded, field).forward(counts).numpy()
    return seen


def _write_projections(plan: FusePlan, waiting: FinishedVolumes, world: Grid) -> list[Path]:
    """Write maxima along z, y and x, and while turning: over one turn, or over the time points."""
    times, channels = plan.shape
    names = plan.views[0].series.channels
    spacing = dict(zip("zyx", world.spacing_um, strict=True))
    sides: dict[str, list[list[npt.NDArray[Any]]]] = {"z": [], "y": [], "x": []}
    turns: list[list[npt.NDArray[Any]]] = []
    angles = projecting.full_turn()
    for t in range(times):
        volumes = [np.nan_to_num(_volume(plan, waiting, world, (t, c))) for c in range(channels)]
        seen = [projecting.along_axes(volume) for volume in volumes]
        for axis, pictures in sides.items():
            pictures.append([one[axis] for one in seen])
        now = angles if times == 1 else [angles[t % len(angles)]]
        turned = [projecting.turning(volume, world.spacing_um, now) for volume in volumes]
        turns += [[picture[i] for picture in turned] for i in range(len(now))]
    name = stem(plan.output)
    paths = []
    for axis, pictures in sides.items():
        pixel = [spacing[a] for a in "zyx" if a != axis]
        path = plan.output.with_name(f"{name}_max_{axis}.ome.tif")
        paths.append(projecting.write_pictures(path, np.array(pictures), pixel, names))
    turning = np.array(turns)
    pixel = [min(world.spacing_um) * -(-max(world.shape) // projecting.LARGEST_SIDE)] * 2
    path = plan.output.with_name(f"{name}_turning.ome.tif")
    paths.append(projecting.write_pictures(path, turning, pixel, names))
    if projecting.movie_is_possible():
        paths.append(projecting.write_movie(path.with_name(f"{name}_turning.mp4"), turning))
    return paths
