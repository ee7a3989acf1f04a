"""OME-TIFF and ImageJ TIFF, uncompressed and plane by plane, with the scale that Fiji reads."""

import errno
import json
import os
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile

from pellucid.data.pixels import IntegerScale
from pellucid.data.plain_json import plain_json
from pellucid.data.source import Array
from pellucid.data.writer import ImageDescription, ImageWriter
from pellucid.errors import OutputError, PlanError

Kind = Literal["ome", "imagej"]

IMAGEJ_TYPES = ("uint8", "uint16", "float32")
# Offsets of classic TIFF have 32 bits; the rest is room for tags and, in OME-TIFF, page tables.
CLASSIC_LIMIT_BYTES = 2**32 - 2**25


class TiffWriter(ImageWriter):
    """A TIFF in the making: its pixels lie in one run, so blocks may come in any order.

    Uncompressed, since Fiji opens only that as a virtual stack. OME-TIFF becomes BigTIFF above
    4 GB; ImageJ TIFF cannot and is refused there.

    Parameters
    ----------
    attributes : JSON kept in the image description (OME) or the Info text (ImageJ)
    """

    def __init__(
        self,
        path: str | Path,
        image: ImageDescription,
        kind: Kind,
        *,
        attributes: Mapping[str, Any] | None = None,
        scale: IntegerScale = IntegerScale(),
        overwrite: bool = False,
    ) -> None:
        path = Path(path)
        self.kind = kind
        if kind == "imagej":
            _check_imagej(path, image)
        super().__init__(path, image, scale, overwrite)
        self._attributes = dict(attributes or {})
        self._file: FileIO | None = None
        self._offset = 0
        self._stored = self._dtype

    def _begin(self) -> None:
        t, c, z, y, x = self.image.shape
        shape = (t, c, z, y, x) if self.kind == "ome" else (t, z, c, y, x)
        voxel = self.image.voxel_um
        tifffile.imwrite(
            self.partial_path,
            shape=shape,
            dtype=self._dtype,
            ome=self.kind == "ome",
            imagej=self.kind == "imagej",
            bigtiff=self.image.size_bytes > CLASSIC_LIMIT_BYTES,
            photometric="minisblack",
            # ImageJ: pixels per unit of the text "unit"; OME readers look at the XML.
            resolution=None if voxel is None else (1 / voxel[2], 1 / voxel[1]),
            resolutionunit="NONE",
            metadata=self._ome_metadata() if self.kind == "ome" else self._imagej_metadata(),
        )
        with tifffile.TiffFile(self.partial_path) as written:
            offset = written.series[0].dataoffset
            self._stored = self._dtype.newbyteorder(written.byteorder)
        if offset is None:
            raise OutputError(f"{self.path.name}: the TIFF could not be laid out in one run.")
        self._offset = offset
        self._file = self.partial_path.open("r+b", buffering=0)
        _reserve(self._file, offset + self.image.size_bytes)

    def _put(self, t: int, c: int, pixels: Array, origin: tuple[int, int, int]) -> None:
        depth, height, width = pixels.shape
        z0, y0, x0 = origin
        rows = np.ascontiguousarray(pixels, dtype=self._stored)
        for z in range(depth):
            start = self._plane_offset(t, c, z0 + z)
            if width == self.image.shape[4]:
                self._write_at(start + self._bytes_to(y0, 0), rows[z])
                continue
            for y in range(height):
                self._write_at(start + self._bytes_to(y0 + y, x0), rows[z, y])

    def _finish(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()

    def _discard(self) -> None:
        if self._file is not None:
            self._file.close()
        super()._discard()

    def _plane_offset(self, t: int, c: int, z: int) -> int:
        _, channels, depth, height, width = self.image.shape
        plane = (
            (t * channels + c) * depth + z
            if self.kind == "ome"
            else (t * depth + z) * channels + c
        )  # fmt: skip
        return self._offset + plane * height * width * self._dtype.itemsize

    def _bytes_to(self, y: int, x: int) -> int:
        return (y * self.image.shape[4] + x) * self._dtype.itemsize

    def _write_at(self, start: int, pixels: Array) -> None:
        assert self._file is not None
        left = memoryview(pixels.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        with self._lock:
            self._file.seek(start)
            # Without a buffer a nearly full disk takes a part first, and raises on the rest.
            while left:
                left = left[self._file.write(left) :]

    def _ome_metadata(self) -> dict[str, Any]:
        said: dict[str, Any] = {"axes": "TCZYX", "Channel": {"Name": list(self.image.names)}}
        if self.image.voxel_um is not None:
            # One plane has no z spacing.
            axes = "ZYX" if self.image.shape[2] > 1 else "YX"
            for axis, um in zip(axes, self.image.voxel_um[-len(axes) :], strict=True):
                said[f"PhysicalSize{axis}"] = um
                said[f"PhysicalSize{axis}Unit"] = "µm"
        if self.image.time_step_s is not None:
            said["TimeIncrement"] = self.image.time_step_s
            said["TimeIncrementUnit"] = "s"
        said["Description"] = self._notes()
        return said

    def _imagej_metadata(self) -> dict[str, Any]:
        t, c, z = self.image.shape[:3]
        # ImageJ keeps names as labels of the slices, channels varying fastest.
        said: dict[str, Any] = {
            "axes": "TZCYX", "Info": self._notes(), "Labels": list(self.image.names) * (t * z),
        }  # fmt: skip
        if c > 1:
            said["mode"] = "composite"
        if self.image.voxel_um is not None:
            said["unit"] = "micron"
            if z > 1:
                said["spacing"] = self.image.voxel_um[0]
        if self.image.time_step_s is not None:
            said["finterval"] = self.image.time_step_s
        return said

    def _notes(self) -> str:
        scale = self.scale.factor if self._dtype.kind in "ui" else None
        return json.dumps(plain_json({"pellucid": {**self._attributes, "integer_scale": scale}}))


def write_tiff(
    path: str | Path,
    volumes: Array | Iterable[Array],
    image: ImageDescription,
    kind: Kind = "ome",
    *,
    scale: IntegerScale = IntegerScale(),
    overwrite: bool = False,
) -> int:
    """Write a whole TIFF; returns how many voxels its integer type had to clip.

    Parameters
    ----------
    volumes : a (t, c, z, y, x) array, or (z, y, x) volumes in the order of t, then c
    """
    if isinstance(volumes, np.ndarray):
        volumes = volumes.reshape(-1, *volumes.shape[-3:])
    with TiffWriter(path, image, kind, scale=scale, overwrite=overwrite) as out:
        for number, volume in enumerate(volumes):
            out.write(*divmod(number, image.shape[1]), volume)
    return out.clipped


def _check_imagej(path: Path, image: ImageDescription) -> None:
    if image.dtype not in IMAGEJ_TYPES:
        raise OutputError(
            f"{path.name}: ImageJ TIFF holds {', '.join(IMAGEJ_TYPES)}, not {image.dtype}. "
            f"Choose one of them, or write OME-TIFF: {path.stem}.ome.tif"
        )
    if image.size_bytes > CLASSIC_LIMIT_BYTES:
        raise PlanError(
            f"{path.name}: {image.size_bytes / 2**30:.3g} GiB of pixels, and an ImageJ TIFF ends "
            f"at 4 GiB. Write {path.stem}.ome.zarr or {path.stem}.ome.tif, which Fiji opens too."
        )


def _reserve(file: FileIO, size: int) -> None:
    """Claim the disk space now, so that a full disk is known before the work and not after it."""
    reserve = getattr(os, "posix_fallocate", None)
    if reserve is None:
        return
    try:
        reserve(file.fileno(), 0, size)
    except OSError as error:
        # A file system that cannot reserve is no reason to stop; a full one is.
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
