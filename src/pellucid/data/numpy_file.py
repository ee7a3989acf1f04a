"""NumPy files: .npy mapped lazily, .npz read once."""

from pathlib import Path

import numpy as np

from pellucid.data.source import Array, Calibration, check_pixels, plain_axes
from pellucid.errors import InputError


class NumpySource:
    """The array of a `.npy` file (mapped, read on demand) or of a `.npz` (held in memory).

    Raises InputError for a truncated file, pickled objects, and a `.npz` of several arrays.
    """

    def __init__(self, path: Path, axes: str | None = None) -> None:
        self._array = _open_array(path)
        self.shape: tuple[int, ...] = self._array.shape
        self.axes = plain_axes(self.shape, path.name, axes)
        self.dtype = check_pixels(self._array.dtype, self.shape, path.name)
        self.calibration = Calibration()
        self.files = (path,)

    def read(self, selection: tuple[slice, ...]) -> Array:
        """A copy of one block in native byte order."""
        return np.array(self._array[selection], dtype=self.dtype)


def _open_array(path: Path) -> Array:
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                mapped: Array = np.load(path, mmap_mode="r", allow_pickle=False)
                return mapped
            file.seek(0)
            loaded = np.load(file, allow_pickle=False)
            if len(loaded.files) != 1:
                raise InputError(
                    f"{path.name}: expected one array, got {', '.join(loaded.files) or 'none'}. "
                    "Save the image alone with numpy.save."
                )
            array: Array = loaded[loaded.files[0]]
            return array
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib, numpy.lib.format: each has its own tree
        raise InputError(
            f"{path.name}: not a complete NumPy file of numbers ({error}). "
            "Save it again with numpy.save, without pickled objects."
        ) from error
