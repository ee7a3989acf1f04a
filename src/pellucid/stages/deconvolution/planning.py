"""The plan of a deconvolution: everything that can be known, and refused, before work starts."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pellucid.core.back_projectors import Figures
from pellucid.core.deconvolution import back_projector
from pellucid.core.psf import Psf, fwhm_px
from pellucid.core.psf_field import PsfField
from pellucid.data.output import check_not_input, stem
from pellucid.data.recording import Recording, open_recordings
from pellucid.data.resumable_zarr import listed_core
from pellucid.data.writer import check_free_space, check_output_path
from pellucid.errors import OutputError, ParameterError, PlanError
from pellucid.stages.deconvolution.memory import (
    is_masked,
    peak_bytes,
    shape_that_fits,
)
from pellucid.stages.parameters import SUFFIXES, DeconvolveParameters
from pellucid.stages.pieces.piece_choice import (
    gib,
    goes_on,
    room_words,
    shared_out,
    tiles_json,
    workplace_of,
)
from pellucid.stages.pieces.tile_plan import BESIDE_BYTES, TilePlan, plan_tiles
from pellucid.stages.pieces.volume_statistics import LazyVolume
from pellucid.stages.psf.choice import back_projector_figures, psfs_or_fields
from pellucid.stages.selection import chosen, time_step_s
from pellucid.stages.work.cluster_choice import Workplace
from pellucid.stages.work.resources import describe_device

IMAGE_SUFFIXES = (".zarr", ".tif", ".tiff")


@dataclass(frozen=True)
class FilePlan:
    """What will be done with one recording.

    Parameters
    ----------
    times, channels : indices that are taken, in the order of the output
    psfs, figures : one for each of `channels`, and what the back projector does to it
    peak_bytes : of the restoration of one volume, on the device
    host_bytes : of the volumes that wait to be restored or written, beside it
    tiles : how a volume is cut that does not fit in one piece; None where it does
    masked : whether voxels of the first volume were never recorded, which takes more memory
    """

    recording: Recording
    output: Path
    times: tuple[int, ...]
    channels: tuple[int, ...]
    voxel_um: tuple[float, float, float]
    psfs: tuple[Psf | PsfField, ...]
    figures: tuple[Figures, ...]
    peak_bytes: int
    host_bytes: int
    output_bytes: int
    tiles: TilePlan | None = None
    masked: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(t, c, z, y, x) of the output."""
        z, y, x = self.recording.shape[2:]
        return (len(self.times), len(self.channels), z, y, x)

    @property
    def time_step_s(self) -> float | None:
        """Seconds between the time points taken; None where they are not evenly spaced."""
        return time_step_s(self.recording, self.times)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels taken."""
        return tuple(self.recording.channels[c] for c in self.channels)

    def name(self, t: int, c: int) -> str:
        """File, time point and channel in words."""
        return f"{self.recording.path.name} t={t} c={c}"


@dataclass(frozen=True)
class Plan:
    """A deconvolution that fits the machine, and has not started."""

    parameters: DeconvolveParameters
    files: tuple[FilePlan, ...]
    device: str
    available_bytes: int | None

    @property
    def total(self) -> int:
        """Number of (z, y, x) volumes."""
        return sum(file.shape[0] * file.shape[1] for file in self.files)

    @property
    def steps(self) -> int:
        """Number of volumes, and of tiles of those that are cut."""
        return sum(
            file.shape[0] * file.shape[1] * (len(file.tiles.tiling) if file.tiles else 1)
            for file in self.files
        )

    def psf_notes(self) -> list[str]:
        """What was done to the PSFs, each sentence once."""
        notes = [note for file in self.files for psf in file.psfs for note in psf.notes]
        return list(dict.fromkeys(notes))

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON types, back projector figures included."""
        return {
            "method": self.parameters.method,
            "iterations": self.parameters.iterations or "auto",
            "device": describe_device(self.device),
            "available_bytes": self.available_bytes,
            "memory_bytes": self.parameters.memory,
            "volumes": self.total,
            "files": [self._file_json(file) for file in self.files],
        }

    def _file_json(self, file: FilePlan) -> dict[str, Any]:
        return {
            "input": str(file.recording.path),
            "output": str(file.output),
            "input_shape_tczyx": file.recording.shape,
            "input_dtype": file.recording.dtype.name,
            "output_shape_tczyx": file.shape,
            "output_dtype": self.parameters.dtype,
            "output_bytes": file.output_bytes,
            "voxel_um": file.voxel_um,
            "times": file.times,
            "channels": dict(zip(file.channel_names, file.channels, strict=True)),
            **tiles_json(file.tiles),
            "peak_bytes": file.peak_bytes,
            "host_bytes": file.host_bytes,
            "psfs": {
                name: {
                    "shape_zyx": psf.shape,
                    "voxel_um": psf.spacing_um,
                    "fwhm_px": fwhm_px(psf.typical),
                    "notes": list(psf.notes),
                    "back_projector": {"name": self.parameters.method, **vars(figures)},
                }
                for name, psf, figures in zip(
                    file.channel_names, file.psfs, file.figures, strict=True
                )
            },
        }


@dataclass(frozen=True)
class _Optics:
    """What files of one shape, voxel size and number of channels share."""

    psfs: tuple[Psf | PsfField, ...]
    figures: tuple[Figures, ...]
    peak_bytes: int
    masked: bool


def plan_deconvolution(parameters: DeconvolveParameters) -> Plan:
    """The plan of a run: inputs opened, PSFs made, memory and disk checked; nothing computed.

    Raises
    ------
    InputError : inputs or PSFs that cannot be used
    ParameterError : choices that do not fit together, or a device that is not there
    OutputError : an output that exists or cannot be written
    PlanError : too little memory or disk, with what would fit
    """
    place = workplace_of(parameters)  # what cannot be had is refused before files are opened
    recordings = [
        recording
        for spec in parameters.inputs
        for recording in open_recordings(
            spec, voxel_um=parameters.voxel_um, axes=parameters.axes, image=parameters.image
        )
    ]
    return plan_recordings(parameters, recordings, place)


def plan_recordings(
    parameters: DeconvolveParameters, recordings: list[Recording], place: Workplace | None = None
) -> Plan:
    """The plan for recordings that are open already, in place of `parameters.inputs`."""
    place = place or workplace_of(parameters)
    outputs = _outputs(parameters, recordings)
    files: list[FilePlan] = []
    shared: dict[object, _Optics] = {}
    for recording, output in zip(recordings, outputs, strict=True):
        file = _plan_file(parameters, recording, output, shared)
        files.append(_fitted(file, parameters, place))
    for folder in {file.output.parent for file in files}:
        mine = [file.output_bytes for file in files if file.output.parent == folder]
        # Integers wait as float32 until their range is known.
        waiting = 2 * max(mine) if parameters.dtype == "uint16" else 0
        check_free_space(_existing(folder), sum(mine) + waiting)
    return Plan(parameters, tuple(files), place.device, place.room_bytes)


def _plan_file(
    parameters: DeconvolveParameters,
    recording: Recording,
    output: Path,
    shared: dict[object, _Optics],
) -> FilePlan:
    times = chosen(parameters.time, recording.shape[0], "time", recording)
    channels = chosen(parameters.channel, recording.shape[1], "channel", recording)
    voxel_um = recording.require_voxel_um()
    key = (channels, recording.shape[1:], voxel_um)
    if key not in shared:
        # files of one kind are taken to be alike: a series is not read twice
        masked = is_masked(LazyVolume(recording, times[0], channels[0]), parameters.fill)
        shared[key] = _optics(parameters, recording, channels, masked)
    optics = shared[key]
    voxels = math.prod(recording.shape[2:])
    return FilePlan(
        recording, output, times, channels, voxel_um, optics.psfs, optics.figures,
        optics.peak_bytes,
        # One volume waits on either side of the work, and one is being turned into float32.
        host_bytes=voxels * (2 * recording.dtype.itemsize + 4 + 4),
        output_bytes=len(times) * len(channels) * voxels * np.dtype(parameters.dtype).itemsize,
        masked=optics.masked,
    )  # fmt: skip


def _optics(
    parameters: DeconvolveParameters, recording: Recording, channels: tuple[int, ...], masked: bool
) -> _Optics:
    psfs = psfs_or_fields(parameters, recording, channels)
    projector = {"": back_projector(parameters.method)}
    figures: dict[Psf | PsfField, Figures] = {}
    for psf in psfs:
        if psf not in figures:
            figures[psf] = back_projector_figures(psf.typical, projector)[""]
    peaks = [peak_bytes(recording.shape[2:], psf, parameters, masked=masked) for psf in figures]
    return _Optics(psfs, tuple(figures[psf] for psf in psfs), max(peaks), masked)


def _fitted(file: FilePlan, parameters: DeconvolveParameters, place: Workplace) -> FilePlan:
    """The file in one piece where that fits, else by tiles; always by tiles on a cluster."""
    device, room = place.device, place.room_bytes
    z, y, x = file.shape[2:]
    begun = goes_on(file.output, resume=parameters.resume, overwrite=parameters.overwrite)
    beside = file.host_bytes + BESIDE_BYTES if device == "cpu" else 0
    needed = file.peak_bytes + beside
    fits = room is None or needed <= room
    in_one = fits and parameters.tile is None and parameters.cluster is None
    if in_one and not begun:
        return file
    if file.output.name.lower().endswith(".zarr") and parameters.dtype == "float32":
        core = listed_core(file.output) if parameters.resume else None
        asked = parameters.model_copy(update={"tile": parameters.tile or core})
        itemsize = file.recording.dtype.itemsize

        def within(room: int | None) -> TilePlan:
            return plan_tiles((z, y, x), file.psfs, asked, itemsize, room, masked=file.masked)

        tiles = within(room)
        if asked.tile is None:
            tiles = shared_out(tiles, math.prod(file.shape[:2]), place, within)
        return replace(file, tiles=tiles, peak_bytes=tiles.tiling.peak_bytes, host_bytes=0)
    if fits:
        raise ParameterError(
            f"{'tile' if parameters.tile else 'cluster'}: tiles are written as float32 OME-Zarr. Name a "
            f".ome.zarr output, or leave the {'tile' if parameters.tile else 'cluster'} out."
        )
    assert room is not None
    left = room - beside
    widest = max(file.psfs, key=lambda psf: math.prod(psf.shape))
    crop = shape_that_fits((z, y, x), widest, parameters, left, masked=file.masked)
    raise PlanError(
        f"{file.recording.path.name}: a volume of {(z, y, x)} needs {gib(needed)} and "
        f"{room_words(room, parameters, device)}. Write float32 OME-Zarr (.ome.zarr), which is made by "
        "tiles" + (f", or take a crop: {crop} would fit." if crop else ".")
    )


def _outputs(parameters: DeconvolveParameters, recordings: list[Recording]) -> list[Path]:
    """Where each recording goes: the named file, or a file of its own in the named folder."""
    target = parameters.output.expanduser()
    if target.name.lower().endswith(IMAGE_SUFFIXES):
        if len(recordings) > 1:
            raise OutputError(
                f"{target.name}: one file for {len(recordings)} inputs. Name a folder instead."
            )
        outputs = [target]
    elif target.suffix and not target.is_dir() and len(recordings) == 1:
        raise OutputError(
            f"{target.name}: the suffix chooses the format, and {target.suffix!r} is none. "
            "Use .ome.zarr, .ome.tif or .tif, or name a folder."
        )
    else:
        suffix = SUFFIXES[parameters.format]
        names = [stem(r.path) + ("" if r.image is None else f"_{r.image}") for r in recordings]
        outputs = [target / f"{name}{suffix}" for name in names]
    if len(set(outputs)) < len(outputs):
        twice = next(path for path in outputs if outputs.count(path) > 1)
        raise OutputError(f"{twice.name}: two inputs would both be written there. Run them apart.")
    inputs = [file for recording in recordings for file in (recording.path, *recording.files)]
    inputs += parameters.psf
    for path in outputs:
        check_not_input(path, inputs)
        if path.parent.is_dir():
            check_output_path(path, parameters.overwrite)
        elif path is target or not path.parent.parent.is_dir():
            raise OutputError(f"{path}: its folder does not exist. Create it first.")
    return outputs


def _existing(folder: Path) -> Path:
    return folder if folder.is_dir() else folder.parent

