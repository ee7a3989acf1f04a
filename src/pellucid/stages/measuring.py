"""What a file holds, and what its images say about themselves."""

from pathlib import Path
from typing import Any

from pellucid.data.record import read_record
from pellucid.data.recording import Recording, open_recording
from pellucid.errors import InputError
from pellucid.stages.parameters import InputParameters
from pellucid.stages.planning import chosen


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


def measure_file(path: str | Path, parameters: InputParameters) -> list[dict[str, Any]]:
    """Measured quality of every channel and time point taken, one dictionary each."""
    from pellucid.core.quality import measure

    recording = opened(path, parameters)
    spacing = recording.require_voxel_um()
    rows = []
    for t in chosen(parameters.time, recording.shape[0], "time", recording):
        for c in chosen(parameters.channel, recording.shape[1], "channel", recording):
            quality = measure(recording.read(t, c), spacing)
            row = {"file": str(recording.path), "t": t, "channel": recording.channels[c]}
            rows.append({**row, **quality.as_dict()})
    return rows


def opened(path: str | Path, parameters: InputParameters) -> Recording:
    """The recording at `path`, read as `parameters` say."""
    return open_recording(path, voxel_um=parameters.voxel_um, axes=parameters.axes)


def _history(path: Path) -> dict[str, Any] | None:
    """Command, method and date of the run that made a file, if Pellucid made it."""
    try:
        record = read_record(path)
    except (InputError, ValueError):
        return None
    method = record.get("parameters", {}).get("method")
    return {"command": record.get("command"), "method": method, "started": record.get("started")}
