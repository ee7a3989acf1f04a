"""The plan of a fusion: all that is known before work starts."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from pellucid.core.geometry import Affine, Grid
from pellucid.core.psf import Psf, fwhm_px
from pellucid.core.psf_field import PsfField
from pellucid.core.transform_series import SeriesRegistration
from pellucid.data.finished_volumes import waiting_folder
from pellucid.data.output import stem
from pellucid.data.writer import ImageDescription
from pellucid.errors import InputError, PlanError
from pellucid.stages.fusion.parameters import FuseParameters
from pellucid.stages.fusion.views import PlacedSeries
from pellucid.stages.pieces.piece_choice import gib, is_begun, tiles_json
from pellucid.stages.pieces.tile_plan import TilePlan
from pellucid.stages.work.resources import describe_device


@dataclass(frozen=True)
class FusePlan:
    """A fusion that fits the machine, and has not started.

    `world` is that of the transforms that are nominal, or `given` by a file. PSFs are for each view
    and channel: `upright_psfs` at right angles, to register by, and `psfs` on the voxels as recorded.
    `blocks` says how a result is cut that does not fit in one piece. `fields` are of views whose PSF
    varies, and `psfs` then the mean ones.
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
    fields: tuple[PsfField | None, ...] = ()

    def psf_of(self, view: int, channel: int) -> Psf | PsfField | None:
        """What a view is deconvolved with, on the voxels as recorded."""
        field = self.fields[view] if self.fields else None
        return self.psfs[view][channel] if field is None else field

    @property
    def output(self) -> Path:
        """Where the fused series goes."""
        return self.parameters.output.expanduser()

    @property
    def replaces(self) -> bool:
        """Whether outputs that exist are replaced: on demand, or left by the run that is resumed."""
        return replaces(self.parameters)

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


def side_outputs(output: Path) -> list[Path]:
    """What an earlier fusion wrote beside `output`: views, projections, transforms."""
    beside = re.compile(
        re.escape(stem(output))
        + r"_(max_[zyx]\.ome\.tif|turning\.(ome\.tif|mp4)|view\d+\.(ome\.zarr|itk\.txt)|transforms\.json)"
    )
    folder = output.parent
    return [p for p in folder.iterdir() if beside.fullmatch(p.name)] if folder.is_dir() else []


def replaces(parameters: FuseParameters) -> bool:
    """Whether outputs that exist are replaced: on demand, or left by the run that is resumed."""
    output = parameters.output.expanduser()
    begun = waiting_folder(output).exists() or is_begun(output)
    return parameters.overwrite or (parameters.resume and begun)


def _words(parameters: FuseParameters) -> str:
    if parameters.transforms is not None:
        return f"transforms from {parameters.transforms.name}"
    if parameters.over_time == "none":
        return f"none, {parameters.start} is taken as it is"
    return f"{parameters.model}, over time: {parameters.over_time}"
