"""The plan of a fusion: all that can be known, and refused, before work starts."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pellucid.core.geometry import Affine, Grid
from pellucid.core.psf import Psf, fwhm_px
from pellucid.core.transform_series import SeriesRegistration
from pellucid.core.views import proposed_world
from pellucid.data.finished_volumes import waiting_folder
from pellucid.data.output import check_not_input, stem
from pellucid.data.recording import open_recording
from pellucid.data.writer import ImageDescription, check_free_space, check_output_path
from pellucid.errors import InputError, OutputError, ParameterError, PlanError
from pellucid.stages.cluster_choice import Workplace
from pellucid.stages.fuse_block_plan import (
    is_in_one,
    planned_blocks,
    registration_bytes,
    without_blocks,
)
from pellucid.stages.fuse_memory import peak_bytes
from pellucid.stages.fuse_parameters import FuseParameters
from pellucid.stages.fuse_registration import given_transforms
from pellucid.stages.fuse_views import (
    PlacedSeries,
    nominal,
    placed_series,
    view_psfs,
)
from pellucid.stages.fuse_world import cropped, hollow, world_grid
from pellucid.stages.pair_registration import STARTS, check_stated
from pellucid.stages.piece_choice import gib, is_begun, tiles_json, workplace_of
from pellucid.stages.registering import reference_channels
from pellucid.stages.resources import available_bytes, describe_device
from pellucid.stages.tile_plan import TilePlan
from pellucid.stages.view_series import open_views


@dataclass(frozen=True)
class FusePlan:
    """A fusion that fits the machine, and has not started.

    `world` is that of the transforms that are nominal, or `given` by a file. PSFs are for each view
    and channel: `upright_psfs` at right angles, to register by, and `psfs` on the voxels as recorded.
    `blocks` says how a result is cut that does not fit in one piece.
    """

    parameters: FuseParameters
    views: tuple[PlacedSeries, ...]
    upright_psfs: list[tuple[Psf | None, ...]]
    psfs: list[tuple[Psf | None, ...]]
    given: SeriesRegistration | None
    backgrounds: list[npt.NDArray[Any] | None]
    world: Grid
    device: str
    peak_bytes: int
    available_bytes: int | None
    blocks: TilePlan | None = None

    @property
    def output(self) -> Path:
        """Where the fused series goes."""
        return self.parameters.output.expanduser()

    @property
    def replaces(self) -> bool:
        """Whether outputs that exist are replaced: on demand, or left by the run that is resumed."""
        return _replaces(self.parameters)

    @property
    def shape(self) -> tuple[int, int]:
        """Time points and channels."""
        series = self.views[0].series
        return len(series.times), len(series.channels)

    @property
    def steps(self) -> int:
        """Number of volumes, or of blocks of volumes that are cut."""
        return math.prod(self.shape) * (1 if self.blocks is None else len(self.blocks.tiling))

    def image(self, world: Grid) -> ImageDescription:
        """What the output will hold on `world`."""
        series = self.views[0].series
        shape = (*self.shape, *world.shape)
        return ImageDescription(
            shape, self.parameters.dtype, world.spacing_um, series.channels, series.time_step_s
        )

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON types."""
        image = self.image(self.world)
        return {
            "views": [
                {"name": view.series.name, "shape_zyx": view.series.shape,
                 "voxel_um": view.recorded.spacing_um, "skewed": view.scan is not None,
                 "psfs": dict(zip(view.series.channels, map(_psf_json, upright, used), strict=True))}
                for view, upright, used in zip(
                    self.views, self.upright_psfs, self.psfs, strict=True
                )
            ],
            "times": self.views[0].series.times,
            "channels": self.views[0].series.channels,
            "method": self.parameters.method,
            "iterations": self.parameters.iterations or "auto",
            "registration": _words(self.parameters),
            "output": str(self.output),
            "output_shape_tczyx": image.shape,
            "output_bytes": image.size_bytes,
            "voxel_um": self.world.spacing_um,
            **tiles_json(self.blocks),
            "device": describe_device(self.device),
            "peak_bytes": self.peak_bytes,
            "available_bytes": self.available_bytes,
        }  # fmt: skip


def _psf_json(upright: Psf | None, used: Psf | None) -> dict[str, Any] | None:
    """What a PSF is at right angles, and what was done to it up to its use."""
    if upright is None or used is None:
        return None
    widths = zip(fwhm_px(upright), upright.spacing_um or (math.nan,) * 3, strict=True)
    return {
        "shape_zyx": upright.shape,
        "fwhm_px": fwhm_px(upright),
        "fwhm_um": [pixels * um for pixels, um in widths],
        "notes": list(used.notes),
    }


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
    proposed_world(hollow(views, over_time[0]), cover="overlap")
    world = cropped(parameters, world_grid(parameters, views, over_time))
    upright_psfs = view_psfs(parameters, views)
    psfs = [
        tuple(view.recorded_psf(psf) for psf in own)
        for view, own in zip(views, upright_psfs, strict=True)
    ]
    plan = FusePlan(
        parameters, views, upright_psfs, psfs, given, _background_images(parameters, views), world,
        place.device, peak_bytes(views, psfs, over_time[0], world, parameters.iterations),
        _room(parameters, place),
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


def believed_places(plan: FusePlan, found: SeriesRegistration) -> dict[int, list[Affine]]:
    """The transforms of all views by the index of the time point, where all are believed.

    Raises InputError where that is nowhere.
    """
    numbers = range(len(plan.views))
    places = {
        index: [found.world_to_view(t, v) for v in numbers]
        for index, t in enumerate(found.times)
        if all(found.at(t, v).believed for v in numbers)
    }
    if not places:
        raise InputError(
            f"{plan.output.name}: no time point could be registered. {found.failures[0].reason}"
        )
    return places


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


def check_memory(plan: FusePlan, needed: int, world: Grid, why: str = "") -> None:
    """Raise PlanError where the fusion of one volume to `world` does not fit, with what would."""
    room = plan.available_bytes
    if room is not None and needed > room:
        coarser = world.spacing_um[0] * (needed / room) ** (1 / 3) * 1.05
        raise PlanError(
            f"{plan.output.name}: fusing to {world.shape} needs {gib(needed)} and {plan.device} has "
            f"{gib(room)} free. Voxels of {coarser:.2g} um would fit (--spacing-um), "
            "or a crop of the result (--crop)." + (f" {why}." if why else "")
        )


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
        check_output_path(path, _replaces(parameters))


def side_outputs(output: Path) -> list[Path]:
    """What an earlier fusion wrote beside `output`: views, projections, transforms."""
    beside = re.compile(
        re.escape(stem(output))
        + r"_(max_[zyx]\.ome\.tif|turning\.(ome\.tif|mp4)|view\d+\.(ome\.zarr|itk\.txt)|transforms\.json)"
    )
    folder = output.parent
    return [p for p in folder.iterdir() if beside.fullmatch(p.name)] if folder.is_dir() else []


def _replaces(parameters: FuseParameters) -> bool:
    output = parameters.output.expanduser()
    begun = waiting_folder(output).exists() or is_begun(output)
    return parameters.overwrite or (parameters.resume and begun)


def _words(parameters: FuseParameters) -> str:
    if parameters.transforms is not None:
        return f"transforms from {parameters.transforms.name}"
    if parameters.over_time == "none":
        return f"none, {parameters.start} is taken as it is"
    return f"{parameters.model}, over time: {parameters.over_time}"
