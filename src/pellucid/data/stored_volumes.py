"""Arrays in HDF5 and N5, one for each time point and channel, as a volume set reads them."""

from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from pellucid.data.source import Array
from pellucid.errors import InputError


class Hdf5Volumes:
    """Datasets of one file, by a pattern of their names.

    The file is opened anew for each block: threads share nothing, and nothing stays open.
    """

    def __init__(self, path: Path, names: dict[tuple[int, int], str]) -> None:
        import_h5py(path)  # where it is missing, that is what to say
        self._path, self._names = path, names

    def describe(self, t: int, c: int) -> tuple[tuple[int, ...], np.dtype]:
        with import_h5py(self._path).File(self._path, "r") as file:
            dataset = file[self._names[t, c]]
            return tuple(dataset.shape), dataset.dtype.newbyteorder("=")

    def read(self, t: int, c: int, box: tuple[slice, ...]) -> Array:
        with import_h5py(self._path).File(self._path, "r") as file:
            dataset = file[self._names[t, c]]
            pixels: Array = dataset[box].astype(dataset.dtype.newbyteorder("="), copy=False)
            return pixels


class N5Volumes:
    """Arrays of N5, opened when they are first needed."""

    def __init__(self, paths: dict[tuple[int, int], Path]) -> None:
        self._paths = paths
        self._open: dict[tuple[int, int], Any] = {}

    def describe(self, t: int, c: int) -> tuple[tuple[int, ...], np.dtype]:
        array = self._array(t, c)
        return tuple(array.shape)[::-1], np.dtype(array.dtype.numpy_dtype)

    def read(self, t: int, c: int, box: tuple[slice, ...]) -> Array:
        pixels: Array = np.asarray(self._array(t, c)[box[::-1]].read().result())
        return np.ascontiguousarray(pixels.transpose(2, 1, 0))

    def _array(self, t: int, c: int) -> Any:
        if (t, c) not in self._open:
            store = {"driver": "file", "path": str(self._paths[t, c].resolve())}
            self._open[t, c] = tensorstore.open({"driver": "n5", "kvstore": store}, read=True).result()
        return self._open[t, c]


def import_h5py(path: Path) -> Any:
    """The module h5py; InputError that says how to get it."""
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            f"{path.name}: HDF5 is read with h5py, which is not installed. "
            "Install it: pip install 'pellucid[hdf5]'."
        ) from error
    return h5py
