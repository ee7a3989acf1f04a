"""A coarser level of a recording, where its file holds a pyramid."""

import math
from pathlib import Path

import numpy as np

from pellucid.data.recording import Recording, open_recording
from pellucid.data.zarr_json import zarr_attributes
from pellucid.errors import InputError

Triple = tuple[int, int, int]


def coarser_level(recording: Recording, most_voxels: int) -> tuple[Recording, Triple]:
    """The finest level with at most that many voxels, else the coarsest; and its voxels' size in ours.

    A level whose voxels are no whole multiples of the finest is passed over; a file without a pyramid
    has one level, itself.
    """
    best, factors = recording, (1, 1, 1)
    spacing = recording.voxel_um
    if spacing is None or not recording.path.is_dir():
        return best, factors
    for path, factor in _levels(recording.path, recording.shape):
        if math.prod(best.shape[2:]) <= most_voxels:
            break
        z, y, x = (s * f for s, f in zip(spacing, factor, strict=True))
        try:
            level = open_recording(path, voxel_um=(z, y, x), axes=_axes(recording.path))
        except InputError:
            continue  # the finest level holds the same
        sizes = tuple(-(-n // f) for n, f in zip(recording.shape[2:], factor, strict=True))
        if level.shape == (*recording.shape[:2], *sizes):
            best, factors = level, factor
    return best, factors


def _levels(path: Path, shape: tuple[int, ...]) -> list[tuple[Path, Triple]]:
    """The arrays of a multiscale image below the finest, and how many finest voxels one of theirs spans."""
    ome = zarr_attributes(path)
    ome = ome.get("ome", ome)
    found: list[tuple[Path, Triple]] = []
    try:
        image = ome["multiscales"][0]
        scales = [
            next(t["scale"] for t in level["coordinateTransformations"] if t["type"] == "scale")
            for level in image["datasets"]
        ]
        letters = _axes(path)
        places = [letters.index(axis) for axis in "zyx" if axis in letters]
        for level, scale in zip(image["datasets"][1:], scales[1:], strict=True):
            ratio = np.array([scale[p] / scales[0][p] for p in places])
            whole = np.rint(ratio).astype(int)
            if np.abs(ratio - whole).max() < 0.01 and whole.min() >= 1:
                sizes = [1] * (3 - len(whole)) + whole.tolist()
                found.append((path / level["path"], (sizes[0], sizes[1], sizes[2])))
    except (KeyError, IndexError, TypeError, ValueError, StopIteration, ZeroDivisionError):
        return []
    return found


def _axes(path: Path) -> str:
    ome = zarr_attributes(path)
    axes = ome.get("ome", ome)["multiscales"][0]["axes"]
    return "".join(str(axis["name"] if isinstance(axis, dict) else axis) for axis in axes)
