"""A fusion planned: all that can be known, and refused, before work starts."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pellucid.core.geometry import Affine
from pellucid.core.psf import Psf
from pellucid.core.psf_field import PsfField
from pellucid.core.transform_series import SeriesRegistration
from pellucid.core.views import proposed_world
from pellucid.data.output import check_not_input
from pellucid.data.recording import open_recording
from pellucid.data.writer import check_free_space, check_output_path
from pellucid.errors import InputError, OutputError, ParameterError, PlanError
from pellucid.stages.fusion.block_plan import (
    is_in_one,
    planned_blocks,
    registration_bytes,
    without_blocks,
)
from pellucid.stages.fusion.memory import peak_bytes
from pellucid.stages.fusion.parameters import FuseParameters
from pellucid.stages.fusion.plan import FusePlan, check_memory, replaces, side_outputs
from pellucid.stages.fusion.registration import given_transforms
from pellucid.stages.fusion.views import (
    PlacedSeries,
    checked_fields,
    nominal,
    placed_series,
    view_psfs,
)
from pellucid.stages.fusion.world import cropped, hollow_views, world_grid
from pellucid.stages.pieces.piece_choice import gib, workplace_of
from pellucid.stages.registration.pair_registration import STARTS, check_stated
from pellucid.stages.registration.registering import reference_channels
from pellucid.stages.registration.view_series import open_views
from pellucid.stages.work.cluster_choice import Workplace
from pellucid.stages.work.resources import available_bytes


def plan_fusion(parameters: FuseParameters) -> FusePlan:
    """The plan of a run: views opened, PSFs made, memory and disk checked; nothing computed.

    Raises
    ------
    InputError : views that do not overlap or do not fit together, PSFs that cannot be used
    ParameterError : choices that do not fit together
    PlanError : too little memory or disk, with what would fit
    OutputError : an output that exists or cannot be written
    """
    place = workplace_of(parameters)
    opened = open_views(
        parameters.inputs, voxel_um=parameters.voxel_um, axes=parameters.axes,
        time=parameters.time, channel=parameters.channel,
    )  # fmt: skip
    views = placed_series(parameters, opened)
    _check_output(parameters)
    read = [path for view in views for path in view.series.files]
    check_not_input(parameters.output, [*parameters.psf, *read])
    file_given = parameters.transforms is not None or parameters.start not in STARTS
    check_stated(parameters.angles, "--transforms FILE", transforms=file_given)
    reference_channels(parameters.reference, views[0].series.channels)
    given = given_transforms(parameters, views)
    over_time = _known_transforms(parameters, views, given)
    proposed_world(hollow_views(views, over_time[0]), cover="overlap")
    world = cropped(parameters, world_grid(parameters, views, over_time))
    known = view_psfs(parameters, views)
    fields = checked_fields(parameters, views, known)
    upright_psfs: list[tuple[Psf | None, ...]] = [
        tuple(psf.typical if isinstance(psf, PsfField) else psf for psf in own) for own in known
    ]
    psfs = [
        tuple(view.recorded_psf(psf) for psf in own)
        for view, own in zip(views, upright_psfs, strict=True)
    ]
    plan = FusePlan(
        parameters, views, upright_psfs, psfs, given, _background_images(parameters, views), world,
        place.device, peak_bytes(views, psfs, over_time[0], world, parameters.iterations, fields),
        _room(parameters, place), fields=fields,
    )  # fmt: skip
    if not is_in_one(plan):
        plan = _in_blocks(plan, over_time, place)
    # what is finished waits beside the output until all is there
    waiting = 0 if plan.blocks else math.prod(plan.image(world).shape) * 4
    check_free_space(plan.output.parent, plan.image(world).size_bytes + waiting)
    return plan


def _room(parameters: FuseParameters, place: Workplace) -> int | None:
    """Memory that may be used; what is free now where nobody says."""
    return available_bytes(place.device) if parameters.memory is None else place.room_bytes


def _in_blocks(
    plan: FusePlan, over_time: Sequence[Sequence[Affine]], place: Workplace
) -> FusePlan:
    """The plan by blocks; PlanError or ParameterError where that cannot be."""
    if why := without_blocks(plan):
        check_memory(plan, plan.peak_bytes, plan.world, why)
        raise ParameterError(f"{plan.output.name}: {why}.")
    blocks, registering = planned_blocks(plan, over_time, place), registration_bytes(plan)
    if place.room_bytes is not None and registering > place.room_bytes:
        raise PlanError(
            f"{plan.output.name}: registering its views takes {gib(registering)}, and {place.device} has "
            f"{gib(place.room_bytes)}. Register them where there is more, and give --transforms FILE."
        )
    return replace(plan, blocks=blocks, peak_bytes=max(blocks.tiling.peak_bytes, registering))


def _known_transforms(
    parameters: FuseParameters, views: Sequence[PlacedSeries], given: SeriesRegistration | None
) -> list[list[Affine]]:
    """Transforms of all views, at each time point that a file knows of; else the nominal ones."""
    angled = nominal(parameters, views)
    if given is None:
        return [angled]
    known = [
        [given.nearest(t, n) for n in range(1, len(views))] for t in views[0].series.times
    ]
    believed = [some for some in known if all(one.believed for one in some)] or known[:1]
    return [[angled[0], *(one.world_to_view for one in some)] for some in believed]


def _background_images(
    parameters: FuseParameters, views: Sequence[PlacedSeries]
) -> list[npt.NDArray[Any] | None]:
    files = parameters.background_image
    if not files:
        return [None] * len(views)
    if parameters.background is not None:
        raise ParameterError("background: a number and an image are given. Choose one of the two.")
    if len(files) not in (1, len(views)):
        raise ParameterError(
            f"background_image: {len(files)} for {len(views)} views. Give one for all, or one each."
        )
    images = []
    for number, view in enumerate(views):
        path = files[number % len(files)]
        image = open_recording(path).read().astype(np.float32)
        if image.shape not in (view.series.shape, (1, *view.series.shape[1:])):
            raise InputError(
                f"{path.name}: expected {view.series.shape} or one plane of it, as "
                f"{view.series.name} is, got {image.shape}."
            )
        images.append(image)
    return list(images)


def _check_output(parameters: FuseParameters) -> None:
    output = parameters.output.expanduser()
    if not output.name.lower().endswith((".zarr", ".tif", ".tiff")):
        raise OutputError(
            f"{output.name}: the suffix chooses the format. Use .ome.zarr, .ome.tif or .tif."
        )
    for path in (output, *side_outputs(output)):
        check_output_path(path, replaces(parameters))
