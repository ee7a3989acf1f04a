"""What a file holds, and what its images say about themselves."""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pellucid.data.output import check_not_input
from pellucid.data.plain_json import plain_json
from pellucid.data.record import RunRecord, fingerprint, read_record, write_record
from pellucid.data.recording import Recording, open_recording
from pellucid.data.writer import check_output_path, plain_errors, write_atomically
from pellucid.errors import InputError
from pellucid.stages.parameters import InputParameters, MeasureParameters
from pellucid.stages.selection import chosen
from pellucid.stages.work.events import FileDone, OnEvent, VolumeDone, ignore

MEASURED_BYTES = 24
"""For each voxel: its float32, and what spectra and correlations take of them."""


def describe(path: str | Path, parameters: InputParameters) -> dict[str, Any]:
    """Shape, voxel size, channels and history of a file, as JSON types; nothing is read of it."""
    recording = opened(path, parameters)
    return {
        "path": str(recording.path),
        "files": len(recording.files),
        "shape_tczyx": recording.shape,
        "dtype": recording.dtype.name,
        "voxel_um": recording.voxel_um,
        "stated_um": recording.stated_um,
        "channels": recording.channels,
        "time_step_s": recording.time_step_s,
        "made_by": _history(recording.path),
    }


@dataclass(frozen=True)
class MeasurePlan:
    """Measurements of a file that can be made, and have not started."""

    parameters: MeasureParameters
    recording: Recording
    spacing_um: tuple[float, float, float]
    places: tuple[tuple[int, int], ...]

    @property
    def peak_bytes(self) -> int:
        """Memory that one volume takes while it is measured."""
        voxels = math.prod(self.recording.shape[2:])
        return voxels * (self.recording.dtype.itemsize + MEASURED_BYTES)


def plan_measuring(parameters: MeasureParameters) -> MeasurePlan:
    """The recording opened, and the output checked; nothing is read."""
    recording = opened(parameters.input, parameters)
    if parameters.output is not None:
        check_not_input(parameters.output, (recording.path, *recording.files))
        check_output_path(parameters.output.expanduser(), parameters.overwrite)
    times = chosen(parameters.time, recording.shape[0], "time", recording)
    channels = chosen(parameters.channel, recording.shape[1], "channel", recording)
    places = tuple((t, c) for t in times for c in channels)
    return MeasurePlan(parameters, recording, recording.require_voxel_um(), places)


def run_measuring(plan: MeasurePlan, on_event: OnEvent = ignore) -> list[dict[str, Any]]:
    """Measured quality of every channel and time point taken, one dictionary each."""
    from pellucid.core.quality import measure

    recording, rows = plan.recording, []
    record = RunRecord("measure", plan.parameters.plain())
    for number, (t, c) in enumerate(plan.places):
        begin = time.perf_counter()
        quality = measure(recording.read(t, c), plan.spacing_um, fill=plan.parameters.fill)
        row = {"file": str(recording.path), "t": t, "channel": recording.channels[c]}
        rows.append({**row, **quality.as_dict()})
        seconds = time.perf_counter() - begin
        record.timings_s["measure"] = record.timings_s.get("measure", 0.0) + seconds
        name = f"{recording.path.name} t={t} c={c}"
        on_event(VolumeDone(number, len(plan.places), seconds, name))
    if plan.parameters.output is not None:
        output = plan.parameters.output.expanduser()
        with plain_errors(output):
            text = json.dumps(plain_json(rows), indent=1, allow_nan=False) + "\n"
            write_atomically(output, text)
        record.inputs = [fingerprint(path) for path in recording.files]
        on_event(FileDone(output, write_record(record, output)))
    return rows


def opened(path: str | Path, parameters: InputParameters) -> Recording:
    """The recording at `path`, read as `parameters` say."""
    return open_recording(
        path, voxel_um=parameters.voxel_um, axes=parameters.axes, image=parameters.image
    )


def _history(path: Path) -> dict[str, Any] | None:
    """Command, method and date of the run that made a file, if Pellucid made it."""
    try:
        record = read_record(path)
    except (InputError, ValueError):
        return None
    method = record.get("parameters", {}).get("method")
    return {"command": record.get("command"), "method": method, "started": record.get("started")}
