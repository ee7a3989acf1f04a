"""Deskewing of files: stage scans stood up at right angles, every time point and channel, once."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pellucid.core.deskew import PLANES_AT_ONCE, StageScan, deskew, deskewed_grid
from pellucid.core.geometry import Grid
from pellucid.data.output import check_not_input, create_output
from pellucid.data.pixels import check_exact
from pellucid.data.record import RunRecord, fingerprint, write_record
from pellucid.data.recording import Recording, open_recordings
from pellucid.data.writer import ImageDescription, ImageWriter, check_free_space
from pellucid.errors import InputError, PlanError
from pellucid.stages.deskewing.parameters import DeskewParameters
from pellucid.stages.pieces.piece_choice import gib
from pellucid.stages.selection import chosen
from pellucid.stages.work.events import FileDone, OnEvent, VolumeDone, Warned, ignore
from pellucid.stages.work.lanes import ReadAhead, WriteBehind
from pellucid.stages.work.resources import available_bytes, describe_device, resolve_device

Volume = npt.NDArray[Any]

COORDINATE_BYTES = 96
"""For each voxel of the planes that are sampled together: places in both planes, float64."""


@dataclass(frozen=True)
class DeskewPlan:
    """A deskewing that fits the machine, and has not started."""

    parameters: DeskewParameters
    recording: Recording
    scan: StageScan
    grid: Grid
    times: tuple[int, ...]
    channels: tuple[int, ...]
    device: str
    peak_bytes: int
    available_bytes: int | None

    @property
    def image(self) -> ImageDescription:
        """What the output will hold."""
        wanted = self.parameters.dtype
        return ImageDescription(
            (len(self.times), len(self.channels), *self.grid.shape),
            self.recording.dtype.name if wanted == "as-input" else wanted,
            self.grid.spacing_um,
            tuple(self.recording.channels[c] for c in self.channels),
            self.recording.time_step_s if len(self.times) == self.recording.shape[0] else None,
        )

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON types."""
        return {
            "input": str(self.recording.path),
            "input_shape_tczyx": self.recording.shape,
            "output": str(self.parameters.output),
            "output_shape_tczyx": self.image.shape,
            "output_bytes": self.image.size_bytes,
            "voxel_um": self.grid.spacing_um,
            "frame": self.grid.frame,
            "plane_distance_um": self.scan.plane_distance_um,
            "slide_px": self.scan.slide_um / self.scan.spacing_um[2],
            "device": describe_device(self.device),
            "peak_bytes": self.peak_bytes,
            "available_bytes": self.available_bytes,
        }


def plan_deskew(parameters: DeskewParameters) -> DeskewPlan:
    """The plan of a run: the input opened, memory and disk checked; nothing computed.

    Raises
    ------
    InputError : an input that cannot be used, or states no camera pixel
    PlanError : too little memory or disk
    """
    device = resolve_device(parameters.device)
    found = open_recordings(
        parameters.input, voxel_um=parameters.voxel_um, axes=parameters.axes, image=parameters.image
    )
    if len(found) > 1:
        raise InputError(
            f"{parameters.input}: {len(found)} recordings. Deskew them one by one, or fuse them "
            "as they are with --stage-scan."
        )
    (recording,) = found
    check_not_input(parameters.output, (recording.path, *recording.files))
    if parameters.dtype == "as-input":
        check_exact(recording.dtype, recording.path.name)
    scan = parameters.scan(_pixel_um(parameters, recording))
    planes, height, width = recording.shape[2:]
    if planes < 2:
        raise InputError(f"{recording.path.name}: one plane, and a stage scan has many.")
    grid = deskewed_grid(
        scan, (planes, height, width), frame=parameters.frame, spacing_um=parameters.spacing_um
    )
    plan = DeskewPlan(
        parameters, recording, scan, grid,
        chosen(parameters.time, recording.shape[0], "time", recording),
        chosen(parameters.channel, recording.shape[1], "channel", recording),
        device, _peak_bytes(recording, grid), available_bytes(device),
    )  # fmt: skip
    if plan.available_bytes is not None and plan.peak_bytes > plan.available_bytes:
        raise PlanError(
            f"{recording.path.name}: deskewing {recording.shape[2:]} to {grid.shape} needs "
            f"{gib(plan.peak_bytes)} and {device} has {gib(plan.available_bytes)} free. Give "
            "coarser voxels with --spacing-um, or --frame view, whose box is smaller."
        )
    _writer(plan)
    check_free_space(parameters.output.expanduser().parent, plan.image.size_bytes)
    return plan


def run_deskew(plan: DeskewPlan, on_event: OnEvent = ignore) -> Path:
    """Carry out `plan` and write a record beside the output; returns the record's path."""
    record = RunRecord("deskew", plan.parameters.plain())
    record.inputs = [fingerprint(path) for path in plan.recording.files]
    places = list(np.ndindex(len(plan.times), len(plan.channels)))

    def read(place: tuple[int, ...]) -> Volume:
        return plan.recording.read(plan.times[place[0]], plan.channels[place[1]])

    with _writer(plan) as out, WriteBehind() as writing, ReadAhead(places, read) as volumes:
        for number, ((t, c), reading) in enumerate(volumes):
            with record.timed("wait for reading"):
                volume = reading.result()
            begin = time.perf_counter()
            name = f"{plan.recording.path.name} t={plan.times[t]} c={plan.channels[c]}"
            if bad := volume.size - int(np.isfinite(volume).sum()):
                on_event(Warned(f"{name}: {bad} voxels are NaN or infinite, and spread to neighbours."))
            image = _deskewed(plan, volume)
            seconds = time.perf_counter() - begin
            record.timings_s["deskew"] = record.timings_s.get("deskew", 0.0) + seconds
            _put(writing, out, t, c, image)
            on_event(VolumeDone(number, len(places), seconds, name))
    record.statistics.update(
        grid=plan.grid.to_dict(), scan_to_frame=plan.scan.to(plan.parameters.frame).to_dict()
    )
    path = write_record(record, plan.parameters.output.expanduser())
    on_event(FileDone(plan.parameters.output, path))
    return path


def _put(writing: WriteBehind, out: ImageWriter, t: int, c: int, image: Volume) -> None:
    writing.put(lambda: out.write(t, c, image))


def _deskewed(plan: DeskewPlan, volume: Volume) -> Volume:
    counts = torch.from_numpy(np.ascontiguousarray(volume, np.float32)).to(plan.device)
    image: Volume = deskew(counts, plan.scan, grid=plan.grid)[0].cpu().numpy()
    wanted = np.dtype(plan.image.dtype)
    # interpolated values lie between recorded ones, so rounding is all that integers need
    return (np.rint(image) if wanted.kind in "ui" else image).astype(wanted, copy=False)


def _pixel_um(parameters: DeskewParameters, recording: Recording) -> tuple[float, float]:
    if parameters.pixel_um is not None:
        return parameters.pixel_um, parameters.pixel_um
    _, y, x = recording.stated_um
    if y is None or x is None:
        raise InputError(
            f"{recording.path.name}: the camera pixel is not in the file. State it with --pixel-um."
        )
    return y, x


def _peak_bytes(recording: Recording, grid: Grid) -> int:
    voxels, result = math.prod(recording.shape[2:]), math.prod(grid.shape)
    planes = PLANES_AT_ONCE * math.prod(grid.shape[1:])
    waiting = voxels * 2 * recording.dtype.itemsize + result * 2 * recording.dtype.itemsize
    return 4 * voxels + 4 * result + COORDINATE_BYTES * planes + waiting


def _writer(plan: DeskewPlan) -> ImageWriter:
    asked = plan.parameters
    return create_output(
        asked.output,
        plan.image,
        attributes={"command": "deskew", "config": asked.plain()},
        ome_zarr_version=asked.ome_zarr,
        overwrite=asked.overwrite,
    )
