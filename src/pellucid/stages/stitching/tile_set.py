"""The tiles of one specimen, opened, checked to fit together, and read piece by piece."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pellucid.core.geometry import Triple, as_triple
from pellucid.data.recording import Recording, open_recording
from pellucid.data.tile_layout import (
    TileFile,
    find_tiles,
    has_indices,
    tiles_by_index,
    tiles_by_position,
    tiles_in_order,
)
from pellucid.errors import InputError, ParameterError
from pellucid.stages.stitching.parameters import StitchParameters

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RecordedTile:
    """One time point and channel of a recording as an array that is read where it is sliced.

    With a `flat` field its shading is divided out of what lies above the `background`.
    """

    recording: Recording
    t: int
    c: int
    flat: npt.NDArray[np.float32] | None = None
    background: float = 0.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x)."""
        z, y, x = self.recording.shape[2:]
        return z, y, x

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        z, y, x = (*key, *3 * (slice(None),))[:3] if isinstance(key, tuple) else (key, *2 * (slice(None),))
        plane = not isinstance(z, slice)
        counts = self.recording.read(self.t, self.c, slice(z, z + 1) if plane else z, y, x)
        if self.flat is not None:
            counts = (counts - self.background) / self.flat[y, x] + self.background
        whole: npt.NDArray[Any] = counts[0] if plane else counts
        return whole


@dataclass(frozen=True)
class TileSet:
    """Tiles that fit together, and where the microscope says that they are.

    Parameters
    ----------
    recordings : one for each tile, with the same channels, time points and voxels
    nominal_px : (tiles, 3) of each tile's first voxel, z, y, x; the lowest along each axis is 0
    voxel_um : (z, y, x) micrometres; None where nobody stated it and nothing needs it
    """

    recordings: tuple[Recording, ...]
    nominal_px: Matrix
    voxel_um: Triple | None

    @property
    def names(self) -> tuple[str, ...]:
        """File names."""
        return tuple(recording.path.name for recording in self.recordings)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that the tiles come from, each once."""
        files = [path for recording in self.recordings for path in recording.files]
        return tuple(dict.fromkeys(files))

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(z, y, x) of each tile."""
        return [RecordedTile(r, 0, 0).shape for r in self.recordings]

    def tiles(
        self, t: int, c: int, flat: npt.NDArray[np.float32] | None = None, background: float = 0.0
    ) -> list[RecordedTile]:
        """All tiles at one time point and channel, none read yet."""
        return [RecordedTile(recording, t, c, flat, background) for recording in self.recordings]


def open_tiles(parameters: StitchParameters) -> TileSet:
    """The tiles that `parameters` name, opened and compared; no pixel is read.

    Raises
    ------
    InputError : a tile that cannot be read, or does not fit the first; positions that are missing
    ParameterError : no way to tell where tiles are
    """
    files = _files(parameters)
    if len(files) < 2:
        raise ParameterError(f"inputs: stitching takes two tiles or more, got {len(files)}.")
    recordings = [
        open_recording(
            file.path, voxel_um=parameters.voxel_um, axes=parameters.axes, image=parameters.image
        )
        for file in files
    ]
    alike = parameters.positions is None or parameters.flat_field != "none"
    for recording in recordings[1:]:
        _check_alike(recording, recordings[0], same_shape=alike)
    voxel = recordings[0].voxel_um
    places = np.array([file.place for file in files])
    if files[0].unit == "voxel":
        nominal = places
    elif files[0].unit == "micrometre":
        nominal = places / recordings[0].require_voxel_um()
    else:
        kept = 1.0 - np.array(parameters.overlap_zyx)
        nominal = places * np.array(recordings[0].shape[2:]) * kept
    if recordings[0].shape[2] == 1 and parameters.positions is not None:
        nominal[:, 0] = 0.0  # planes have no place in z
    return TileSet(tuple(recordings), nominal - nominal.min(axis=0), voxel)


def margin_px(parameters: StitchParameters, tiles: TileSet) -> Triple:
    """How far off two tiles may be, voxels."""
    if parameters.margin_um is not None:
        voxel = tiles.recordings[0].require_voxel_um()
        return as_triple(np.array(parameters.margin_um) / voxel, "margin")
    return default_margin_px(tiles.shapes[0])


def default_margin_px(shape: Sequence[int]) -> Triple:
    """How far off tiles of this (z, y, x) shape may be where nobody says it, voxels."""
    margin = np.maximum(0.05 * np.array(shape, np.float64), 10.0)
    margin[0] = min(margin[0], 0.25 * shape[0])
    return as_triple(margin, "margin")


def _files(parameters: StitchParameters) -> list[TileFile]:
    specs = parameters.inputs
    if any(has_indices(spec) for spec in specs):
        if len(specs) > 1 or parameters.positions is not None or parameters.grid is not None:
            raise ParameterError(
                "inputs: a pattern with {z}, {y} or {x} says all places: give it alone, without "
                "--positions and --grid."
            )
        return tiles_by_index(specs[0])
    files = find_tiles(specs)
    if parameters.positions is not None:
        return tiles_by_position(files, parameters.positions)
    if parameters.grid is not None:
        return tiles_in_order(files, *parameters.rows_columns, parameters.order, parameters.missing)
    raise ParameterError(
        "inputs: where are the tiles? Give a pattern with indices (tile_{y}_{x}.tif), --grid 3x4 "
        "with --overlap, or --positions FILE."
    )


def _check_alike(tile: Recording, first: Recording, *, same_shape: bool) -> None:
    what: Sequence[tuple[str, Any, Any]] = (
        ("time points", tile.shape[0], first.shape[0]),
        ("channels", tile.shape[1], first.shape[1]),
        ("pixels of type", tile.dtype.name, first.dtype.name),
        ("the voxel size (z, y, x) in um", tile.voxel_um, first.voxel_um),
        ("the shape (z, y, x)", tile.shape[2:], first.shape[2:]),
    )
    for name, mine, other in what if same_shape else what[:-1]:
        close = mine == other or (
            isinstance(mine, tuple)
            and isinstance(other, tuple)
            and "um" in name
            and np.allclose(mine, other, rtol=1e-3)
        )
        if not close:
            raise InputError(
                f"{tile.path.name}: has {name} {mine}, and {first.path.name} {other}. Tiles have to "
                "be recorded alike: export it again, or leave it out."
            )
    if len(tile.shape[2:]) == 3 and (tile.shape[2] == 1) != (first.shape[2] == 1):
        raise InputError(f"{tile.path.name}: planes and stacks cannot be mixed. Leave it out.")
