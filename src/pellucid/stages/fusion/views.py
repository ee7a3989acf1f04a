"""The views of a fusion: opened, placed at their nominal angles, stage scans as sheared frames."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pellucid.core.deskew import StageScan, deskew, deskewed_grid
from pellucid.core.geometry import Affine, Grid, as_triple
from pellucid.core.psf import Psf
from pellucid.core.psf_field import PsfField
from pellucid.core.transform_field import TransformField
from pellucid.data.recording import Recording
from pellucid.errors import InputError, ParameterError
from pellucid.stages.deskewing.parameters import ScanParameters
from pellucid.stages.fusion.parameters import FuseParameters
from pellucid.stages.parameters import DeconvolveParameters
from pellucid.stages.psf.choice import psfs_or_fields
from pellucid.stages.registration.pair_registration import nominal_transforms
from pellucid.stages.registration.view_series import Sliced, ViewSeries

Volume = npt.NDArray[Any]


@dataclass(frozen=True)
class PlacedSeries:
    """One view of a fusion: its series, and how its voxels lie at right angles.

    A stage scan stays as recorded; `upright` is where a deskewed copy of it would have its voxels,
    and the frame that registration speaks of. Its first voxel is the origin.
    """

    series: ViewSeries
    scan: StageScan | None

    @property
    def frame(self) -> str:
        """Name of the right-angled frame, "view <number>"."""
        return f"view {self.series.number}"

    @property
    def upright(self) -> Grid:
        """Voxels at right angles: the view's own, or those of a deskewed copy."""
        if self.scan is None:
            return self.series.grid
        grid = deskewed_grid(self.scan, self.series.shape, frame="view")
        return Grid(grid.shape, grid.spacing_um, frame=self.frame)

    @property
    def recorded(self) -> Grid:
        """Voxels as recorded, in a frame of their own where they are skewed."""
        if self.scan is None:
            return self.series.grid
        return dataclasses.replace(self.scan.grid(self.series.shape), frame=f"scan {self.series.number}")

    def to_recorded(self, world_to_view: Affine) -> Affine:
        """Continue a map into the right-angled view to the voxels as recorded."""
        if self.scan is None:
            return world_to_view
        origin = deskewed_grid(self.scan, self.series.shape, frame="view").origin_um
        shift = Affine.translation(-np.asarray(origin), source="view", target=self.frame)
        to_view = shift @ self.scan.scan_to_view
        to_scan = to_view.inverse().with_frames(source=self.frame, target=self.recorded.frame)
        return to_scan @ world_to_view

    def field_to_recorded(self, field: TransformField | None) -> TransformField | None:
        """Continue a field into the right-angled view to the voxels as recorded."""
        if field is None:
            return None
        same = Affine.identity(source=self.frame, target=self.frame)
        return field.followed_by(self.to_recorded(same))

    def recorded_psf(self, psf: Psf | None) -> Psf | None:
        """A PSF at right angles, on the voxels as recorded."""
        return psf if psf is None or self.scan is None else self.scan.skewed_psf(psf)

    def read(self, t: int, c: int) -> Volume:
        """Pixels as recorded."""
        return self.series.read(t, c)

    @property
    def upright_series(self) -> ViewSeries:
        """The series at right angles, to register by: deskewed as it is read."""
        grid = self.upright
        changed = {"shape": grid.shape, "voxel_um": grid.spacing_um}
        return self.series if self.scan is None else _Deskewed.of(self.series, self.scan, changed)


@dataclass(frozen=True)
class _Deskewed(ViewSeries):
    """A stage scan that is read at right angles; what its corners do not hold is background."""

    skewed: ViewSeries | None = None
    scan: StageScan | None = None

    @classmethod
    def of(cls, series: ViewSeries, scan: StageScan, changed: dict[str, Any]) -> "_Deskewed":
        own = {field.name: getattr(series, field.name) for field in dataclasses.fields(series)}
        return cls(**{**own, **changed}, skewed=series, scan=scan)

    def lazily(self, t: int, c: int) -> Sliced:
        """The same; stood up as a whole, when it is first sliced."""
        return _WhenSliced(self, t, c)

    def read(self, t: int, c: int) -> Volume:
        assert self.skewed is not None
        assert self.scan is not None
        volume = self.skewed.read(t, c)
        level = float(np.median(volume))
        counts = torch.from_numpy(np.ascontiguousarray(volume, np.float32)) - level
        upright: Volume = (deskew(counts, self.scan, frame="view")[0] + level).numpy()
        return upright


@dataclass
class _WhenSliced:
    """A volume that is read as a whole by the first slice of it."""

    view: ViewSeries
    t: int
    c: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.view.shape

    @cached_property
    def _volume(self) -> Volume:
        return self.view.read(self.t, self.c)

    def __getitem__(self, box: Any) -> Volume:
        part: Volume = self._volume[box]
        return part


def placed_series(
    parameters: FuseParameters, opened: Sequence[ViewSeries]
) -> tuple[PlacedSeries, ...]:
    """The views with the geometry of their stage scans, where they are such."""
    scans = parameters.stage_scan
    if scans and len(scans) not in (1, len(opened)):
        raise ParameterError(
            f"stage_scan: {len(scans)} given for {len(opened)} views. Give one for all, or one each."
        )
    turned = parameters.axis != "z" and len(set(parameters.angles)) > 1
    for view in opened if turned else ():
        if view.shape[0] == 1:
            raise InputError(
                f"{view.name}: holds one plane, and views that are turned need stacks. Check the file, "
                "and that its planes are not taken for time points or channels (--axes)."
            )
    return tuple(
        PlacedSeries(view, _scan(scans[number % len(scans)], view) if scans else None)
        for number, view in enumerate(opened)
    )


def nominal(parameters: FuseParameters, views: Sequence[PlacedSeries]) -> list[Affine]:
    """Maps from "world", the first view at right angles, to each view, by their angles."""
    upright = [view.upright_series for view in views]
    return nominal_transforms(upright, parameters.angles, parameters.axis)


def view_psfs(
    parameters: FuseParameters, views: Sequence[PlacedSeries]
) -> list[tuple[Psf | PsfField | None, ...]]:
    """A PSF or a PSF field for each view and channel, at right angles; None for averages without one."""
    channels = range(len(views[0].series.channels))
    averaged = parameters.method in ("average", "content-average")
    if averaged and not parameters.psf and not parameters.stated():
        return [(None,) * len(channels)] * len(views)
    if len(parameters.psf) not in (0, 1, len(views)):
        raise ParameterError(
            f"psf: {len(parameters.psf)} files for {len(views)} views. Give one that every view "
            "has in its own frame, or one for each view."
        )
    optics = {name: getattr(parameters, name) for name in parameters.stated()}
    found: list[tuple[Psf | PsfField | None, ...]] = []
    for number, view in enumerate(views):
        file = parameters.psf[number % len(parameters.psf)] if parameters.psf else None
        asked = DeconvolveParameters.checked(
            {**optics, "inputs": ("view",), "output": parameters.output,
             "psf": () if file is None else (file,), "psf_voxel_um": parameters.psf_voxel_um}
        )  # fmt: skip
        found.append(psfs_or_fields(asked, _as_recording(view), list(channels)))
    return found


def checked_fields(
    parameters: FuseParameters, views: Sequence[PlacedSeries],
    psfs: Sequence[tuple[Psf | PsfField | None, ...]],
) -> tuple[PsfField | None, ...]:  # fmt: skip
    """The PSF field of each view that has one; ParameterError where none can be used."""
    fields = tuple(own[0] if isinstance(own[0], PsfField) else None for own in psfs)
    for view, field in zip(views, fields, strict=True):
        if field is not None and (view.scan is not None or parameters.method != "joint"):
            raise ParameterError(
                f"psf: a PSF field for {view.series.name}, which the method joint takes, of views that are "
                "no raw stage scans. Deskew the scan first, or give one PSF."
            )
    return fields


def _as_recording(view: PlacedSeries) -> Recording:
    """What the choice of a PSF asks of a recording: its voxels at right angles, its channels."""
    series = view.series
    sample = series.sample
    spacing = view.upright.spacing_um
    shape = (1, len(series.channels), *series.shape)
    return dataclasses.replace(sample, shape=shape, stated_um=spacing, channels=series.channels)


def _scan(text: str, view: ViewSeries) -> StageScan:
    parts = text.replace(" ", "").split(",")
    if not 2 <= len(parts) <= 3:
        raise ParameterError(f"stage_scan: expected step,angle[,direction], got {text!r}.")
    names = ("step_um", "angle_deg", "direction")
    said = ScanParameters.checked(dict(zip(names, parts, strict=False)))
    _, y, x = as_triple(view.voxel_um, "voxel_um")
    return said.scan((y, x))
