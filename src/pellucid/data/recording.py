"""Recordings: one face, (t, c, z, y, x) and micrometres, for every file format that is read."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pellucid.data.inputs import check_input_path, find_inputs, numbered_image
from pellucid.data.source import RECORDING_AXES, Array, Source, Spacing, check_only_image
from pellucid.data.zarr_json import is_n5
from pellucid.errors import InputError, ParameterError, VoxelSizeWarning

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
HDF5_MAGIC = b"\x89HDF"
NUMPY_MAGIC = (b"\x93NUM", b"PK\x03\x04")

SAME_VOXEL = 0.01
"""Difference up to which a stated voxel size is the file's, rounded."""

# Suffixes of instrument formats, to tell "cannot read this yet" from "this is not an image".
MICROSCOPE_SUFFIXES = frozenset(
    {".czi", ".nd2", ".lif", ".oib", ".oif", ".oir", ".vsi", ".dv", ".stk", ".klb", ".mrc"}
)  # fmt: skip


@dataclass(frozen=True)
class Recording:
    """An image file: what it holds, and `read` for any block of one time point and channel.

    Parameters
    ----------
    path : the file or OME-Zarr folder
    shape : (t, c, z, y, x), with 1 for an axis that the file does not have
    dtype : as acquired, in this machine's byte order
    stated_um : (z, y, x) micrometres, None for each that nobody stated
    channels : one name for each channel; "channel 0", ... where the file names none
    time_step_s : seconds between time points, None when the file does not say
    files : the files that the pixels come from; `path`, and its companions in a series
    """

    path: Path
    shape: tuple[int, int, int, int, int]
    dtype: np.dtype
    stated_um: Spacing
    channels: tuple[str, ...]
    time_step_s: float | None
    files: tuple[Path, ...]
    _source: Source = field(repr=False, compare=False)
    _opened_as: tuple[str | None, int | None] = field(default=(None, None), repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        # Open files do not travel: another process opens the path, wherever it stands.
        return _opened_again, (self.path.absolute(), self.stated_um, *self._opened_as)

    @property
    def image(self) -> int | None:
        """The number of the image in a file that holds several; None where the file was opened whole."""
        return self._opened_as[1]

    @property
    def time_numbers(self) -> tuple[int, ...]:
        """The time points as the file counts them; 0, 1, ... where it does not."""
        return self._source.calibration.time_numbers or tuple(range(self.shape[0]))

    @property
    def voxel_um(self) -> tuple[float, float, float] | None:
        """(z, y, x) micrometres, or None unless all that matter are stated; never guessed.

        The spacing of a single plane has no meaning: its z is then 1.0.
        """
        z, y, x = self.stated_um
        if z is None and self.shape[2] == 1:
            z = 1.0
        if z is None or y is None or x is None:
            return None
        return (z, y, x)

    def require_voxel_um(self) -> tuple[float, float, float]:
        """(z, y, x) micrometres; raises InputError that says which are not stated."""
        if self.voxel_um is not None:
            return self.voxel_um
        known = [f"{a} = {s:g} um" for a, s in zip("zyx", self.stated_um, strict=True) if s]
        raise InputError(
            f"{self.path.name}: the voxel size is not in the file"
            + (f" (only {', '.join(known)})" if known else "")
            + ". State it as z,y,x in micrometres: voxel_um=(0.3, 0.1, 0.1) or --voxel-um."
        )

    def read(
        self,
        t: int = 0,
        c: int = 0,
        z: slice = slice(None),
        y: slice = slice(None),
        x: slice = slice(None),
    ) -> Array:
        """(z, y, x) pixels of time point `t` and channel `c`, as acquired.

        Only the chunks, pages or strips that the block touches are read, where the format allows.

        Raises
        ------
        InputError : an index outside the recording, or a file damaged where it is read
        """
        for axis, index, size in (("t", t, self.shape[0]), ("c", c, self.shape[1])):
            if not 0 <= index < size:
                raise InputError(
                    f"{self.path.name}: {axis} = {index} is outside 0..{size - 1} of this file."
                )
        wanted = {"t": slice(t, t + 1), "c": slice(c, c + 1)}
        steps = []
        for axis, part, size in zip("zyx", (z, y, x), self.shape[2:], strict=True):
            start, stop, step = part.indices(size)
            if step < 1:
                raise InputError(f"{self.path.name}: {axis} is read forwards, got step {step}.")
            wanted[axis] = slice(start, max(start, stop))
            steps.append(slice(None, None, step))
        axes = self._source.axes
        block = self._source.read(tuple(wanted[axis] for axis in axes))
        present = [axis for axis in RECORDING_AXES if axis in axes]
        block = block.transpose([axes.index(axis) for axis in present])
        volume: Array = block.reshape([_length(wanted[axis]) for axis in "zyx"])
        return volume[tuple(steps)]


def open_recording(
    path: str | Path,
    *,
    voxel_um: tuple[float, float, float] | None = None,
    axes: str | None = None,
    image: int | None = None,
) -> Recording:
    """The recording in a TIFF, OME-Zarr or NumPy file, described but not yet read.

    Parameters
    ----------
    path : OME-TIFF, ImageJ TIFF, TIFF, OME-Zarr 0.4 or 0.5 (a folder), BigDataViewer (.xml with
        HDF5 or N5), Imaris (.ims), an N5 array, .npy or .npz; `dataset.xml#1` is its image 1
    voxel_um : (z, y, x) micrometres; overrides what the file says, with a `VoxelSizeWarning` where
        that is something else
    axes : the dimensions of the stored array, such as "tzyx", where the file does not say
    image : which image of a TIFF that holds several (positions, scenes), which view of a dataset of
        BigDataViewer

    Raises
    ------
    InputError : a missing, empty, truncated, unfinished or unreadable file, and what to do

    Examples
    --------
    >>> recording = open_recording("embryo.ome.zarr")             # doctest: +SKIP
    >>> block = recording.read(t=0, c=1, z=slice(10, 20))         # doctest: +SKIP
    """
    path, number = numbered_image(check_input_path(path))
    if image is not None and number not in (None, image):
        raise ParameterError(f"image: {path.name}#{number} and image={image} are given. Choose one.")
    image = number if image is None else image
    if voxel_um is not None:
        voxel_um = check_voxel_um(voxel_um)
    source = _open_source(path, axes, image)
    sizes = dict(zip(source.axes, source.shape, strict=True))
    t, c, z, y, x = (sizes.get(axis, 1) for axis in RECORDING_AXES)
    stated = source.calibration
    names = stated.channels
    if voxel_um is not None:
        _warn_of_another(voxel_um, stated.spacing_um, planes=z)
    return Recording(
        path=path,
        shape=(t, c, z, y, x),
        dtype=source.dtype,
        stated_um=stated.spacing_um if voxel_um is None else voxel_um,
        channels=names if len(names) == c else tuple(f"channel {i}" for i in range(c)),
        time_step_s=stated.time_step_s,
        files=source.files,
        _source=source,
        _opened_as=(axes, image),
    )


def _opened_again(path: Path, stated_um: Spacing, axes: str | None, image: int | None) -> Recording:
    return replace(open_recording(path, axes=axes, image=image), stated_um=stated_um)


def _warn_of_another(voxel_um: tuple[float, float, float], stated_um: Spacing, planes: int) -> None:
    """Warn where a file states another voxel size than the one that is used; once, not for each file."""
    pairs = list(zip(voxel_um, stated_um, strict=True))[1 if planes == 1 else 0 :]
    if any(said and abs(used / said - 1) > SAME_VOXEL for used, said in pairs):
        used, said = (", ".join(f"{s:.4g}" if s else "?" for s in um) for um in (voxel_um, stated_um))
        warnings.warn(
            f"voxel size: the file states {said} um (z, y, x), and {used} um is used, as asked.",
            VoxelSizeWarning, stacklevel=3,
        )  # fmt: skip


def open_recordings(
    spec: str | Path,
    *,
    voxel_um: tuple[float, float, float] | None = None,
    axes: str | None = None,
    image: int | None = None,
) -> list[Recording]:
    """The recordings that a file, folder or pattern names, a multi-file series being one of them.

    Parameters and errors are those of `find_inputs` and `open_recording`.
    """
    recordings: list[Recording] = []
    seen: set[Path] = set()
    for path in find_inputs(spec):
        if path.resolve() in seen:
            continue
        recordings.append(open_recording(path, voxel_um=voxel_um, axes=axes, image=image))
        seen.update(file.resolve() for file in recordings[-1].files)
    return recordings


def check_voxel_um(voxel_um: Sequence[float]) -> tuple[float, float, float]:
    """`voxel_um` as three floats; raises InputError unless they are positive and finite."""
    if len(voxel_um) != 3 or not all(np.isfinite(s) and s > 0 for s in voxel_um):
        raise InputError(
            f"voxel_um: expected three positive micrometres (z, y, x), got {tuple(voxel_um)}."
        )
    z, y, x = voxel_um
    return (float(z), float(y), float(x))


def _open_source(path: Path, axes: str | None, image: int | None) -> Source:
    # Each format is imported when a file of it comes: tensorstore alone costs half a second.
    if is_n5(path):
        from pellucid.data.n5 import open_n5

        return open_n5(path, image)
    if path.is_dir():
        from pellucid.data.ome_zarr import OmeZarrSource

        check_only_image(image, path.name)
        return OmeZarrSource(path, axes)
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == HDF5_MAGIC:
        from pellucid.data.hdf5 import open_hdf5

        return open_hdf5(path, image)
    if path.suffix.lower() == ".xml":
        from pellucid.data.bdv import open_bdv

        return open_bdv(path, image)
    if magic in TIFF_MAGIC:
        from pellucid.data.tiff import TiffSource

        return TiffSource(path, axes, image)
    if magic in NUMPY_MAGIC:
        from pellucid.data.numpy_file import NumpySource

        check_only_image(image, path.name)
        return NumpySource(path, axes)
    if path.suffix.lower() in MICROSCOPE_SUFFIXES:
        raise InputError(
            f"{path.name}: {path.suffix} files are not read yet. "
            "Export the stack as OME-TIFF or OME-Zarr from the microscope's software or Fiji."
        )
    raise InputError(
        f"{path.name}: not an image that Pellucid knows (its first bytes are {magic!r}). "
        "Give a TIFF, an OME-Zarr folder, a BigDataViewer .xml, an .ims or a .npy file."
    )


def _length(part: slice) -> int:
    return int(part.stop - part.start)
