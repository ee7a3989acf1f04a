"""Files that keep one array for every time point and channel, behind one face."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pellucid.data.source import Array, Calibration, check_pixels
from pellucid.errors import InputError


class Volumes(Protocol):
    """One (z, y, x) array for each time point and channel."""

    def describe(self, t: int, c: int) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and type of one volume as stored; KeyError where it is not there."""
        ...

    def read(self, t: int, c: int, box: tuple[slice, ...]) -> Array:
        """A block of one volume as stored."""
        ...


class VolumeSet:
    """A `Source` of such arrays, all of one shape and type.

    BigDataViewer stores unsigned 16-bit counts as signed ones: `is_unsigned` reads them as they were.

    Raises InputError for volumes that are missing or differ from the first.
    """

    axes = "tczyx"

    def __init__(
        self,
        path: Path,
        volumes: Volumes,
        counts: tuple[int, int],
        calibration: Calibration,
        *,
        files: tuple[Path, ...],
        is_unsigned: bool = False,
        size: tuple[int, int, int] | None = None,
    ) -> None:
        self._name, self._volumes = path.name, volumes
        self.calibration, self.files = calibration, files
        found: dict[tuple[int, int], tuple[tuple[int, ...], np.dtype]] = {}
        for t, c in np.ndindex(*counts):
            try:
                found[t, c] = volumes.describe(t, c)
            except (KeyError, ValueError, OSError) as error:
                raise InputError(
                    f"{path.name}: the volume of time point {t}, channel {c} is not there "
                    f"({str(error)[:120]}). Export the dataset again, or open a complete part of it."
                ) from error
        stored, dtype = found[0, 0]
        other = next((key for key, value in found.items() if value != (stored, dtype)), None)
        if other is not None:
            raise InputError(
                f"{path.name}: the volume of time point {other[0]}, channel {other[1]} is "
                f"{found[other][0]} {found[other][1]}, the first is {stored} {dtype}. Open views of one "
                "size at a time."
            )
        z, y, x = size or stored
        self.shape: tuple[int, ...] = (*counts, z, y, x)
        self._stored = np.dtype("uint16") if is_unsigned and dtype == np.int16 else dtype
        self.dtype = check_pixels(self._stored, self.shape, path.name)

    def read(self, selection: tuple[slice, ...]) -> Array:
        """One block; only the chunks that it touches are decoded."""
        times, channels, *box = selection
        block = np.empty([part.stop - part.start for part in selection], self.dtype)
        for i, t in enumerate(range(times.start, times.stop)):
            for j, c in enumerate(range(channels.start, channels.stop)):
                try:
                    pixels = self._volumes.read(t, c, tuple(box))
                except (KeyError, ValueError, OSError) as error:
                    raise InputError(
                        f"{self._name}: a block of time point {t}, channel {c} cannot be read "
                        f"({str(error)[:120]}). The file is damaged there: copy or export it again."
                    ) from error
                block[i, j] = pixels.view(self._stored) if pixels.itemsize == 2 else pixels
        return block


def chosen_image(name: str, images: Mapping[str, Any], image: int | None) -> str:
    """The key of `images` that is asked for, or the only one; InputError that lists them."""
    if image is None and len(images) == 1:
        return next(iter(images))
    listed = "; ".join(f"{i}: {key}" for i, key in enumerate(list(images)[:12]))
    if image is None:
        raise InputError(
            f"{name}: holds {len(images)} views ({listed}). Say which: {name}#0, or image=0."
        )
    if not 0 <= image < len(images):
        raise InputError(f"{name}: there is no view {image}; it holds {listed}.")
    return list(images)[image]
