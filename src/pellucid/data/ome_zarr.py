"""OME-Zarr 0.4 and 0.5 (and plain Zarr arrays): blocks of the finest level, chunk by chunk."""

from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from pellucid.data.source import (
    Array,
    Calibration,
    check_axes,
    check_pixels,
    plain_axes,
    to_micrometres,
    to_seconds,
)
from pellucid.data.zarr_json import is_array, zarr_attributes
from pellucid.errors import InputError


class OmeZarrSource:
    """The finest level of a multiscale image, read through tensorstore.

    Raises InputError for an unfinished Pellucid output, a folder without an image, several
    images in one folder, and metadata that contradict the array.
    """

    def __init__(self, path: Path, axes: str | None = None) -> None:
        self._name = path.name
        self.files = (path,)
        try:
            self._describe(path, axes)
        except InputError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path.name}: its metadata are not those of an OME-Zarr image ({error!r:.100}). "
                "Export it again as OME-Zarr 0.4 or 0.5."
            ) from error

    def _describe(self, path: Path, axes: str | None) -> None:
        attributes = zarr_attributes(path)
        _check_finished(attributes, path.name)
        ome = attributes.get("ome", attributes)
        if "multiscales" in ome:
            image = _first_multiscale(ome, path.name)
            level = image["datasets"][0]
            self._array = _open_array(path / level["path"], path.name)
        elif is_array(path):
            image, level = None, None
            self._array = _open_array(path, path.name)
        else:
            raise InputError(f"{path.name}: no image in this Zarr group. {_inside(path)}")
        self.shape: tuple[int, ...] = tuple(self._array.shape)
        self.dtype = check_pixels(np.dtype(self._array.dtype.numpy_dtype), self.shape, path.name)
        if image is None or level is None:
            self.axes = plain_axes(self.shape, path.name, axes)
            self.calibration = Calibration()
            return
        described = _axis_objects(image, len(self.shape))
        letters = "".join(str(axis["name"]) for axis in described)
        self.axes = check_axes(letters if axes is None else axes, self.shape, path.name)
        self.calibration = _calibration(image, level, described, ome)

    def read(self, selection: tuple[slice, ...]) -> Array:
        """One block; only the chunks that it touches are fetched and decoded."""
        try:
            block: Array = np.asarray(self._array[selection].read().result(), dtype=self.dtype)
        except ValueError as error:  # tensorstore's error for a chunk that cannot be decoded
            raise InputError(
                f"{self._name}: a chunk cannot be read ({str(error)[:200]}). "
                "The store is damaged there: copy or export it again."
            ) from error
        return block


def _check_finished(attributes: dict[str, Any], name: str) -> None:
    ours = attributes.get("pellucid")
    if isinstance(ours, dict) and ours.get("complete") is False:
        raise InputError(
            f"{name}: an output of Pellucid whose run did not finish. "
            "Run it again, or wait until it is done."
        )


def _first_multiscale(ome: dict[str, Any], name: str) -> dict[str, Any]:
    images = ome["multiscales"]
    if not images or not images[0].get("datasets"):
        raise InputError(f"{name}: its multiscales list is empty. Export it again.")
    if len(images) > 1:
        raise InputError(f"{name}: holds {len(images)} multiscale images; one is expected.")
    first: dict[str, Any] = images[0]
    return first


def _open_array(path: Path, name: str) -> Any:
    driver = "zarr3" if (path / "zarr.json").is_file() else "zarr"
    store = {"driver": "file", "path": str(path.resolve())}
    try:
        return tensorstore.open({"driver": driver, "kvstore": store}, read=True).result()
    except ValueError as error:
        raise InputError(
            f"{name}: the array {path.name!r} cannot be opened ({str(error)[:200]}). "
            "The store is incomplete or uses a codec that is not supported: export it again."
        ) from error


def _axis_objects(image: dict[str, Any], dimensions: int) -> list[dict[str, Any]]:
    """Axes as objects: 0.4 and later have them, 0.3 has names, before that it was always tczyx."""
    axes = image.get("axes", list("tczyx")[-dimensions:])
    return [axis if isinstance(axis, dict) else {"name": axis} for axis in axes]


def _calibration(
    image: dict[str, Any], level: dict[str, Any], axes: list[dict[str, Any]], ome: dict[str, Any]
) -> Calibration:
    """Spacing is the dataset's scale times the multiscale's (0.4: both may be given)."""
    scale = np.ones(len(axes))
    stated = False
    for owner in (level, image):
        for transform in owner.get("coordinateTransformations", ()):
            if transform.get("type") == "scale" and "scale" in transform:
                # reshape, since one number for all axes would pass as well
                scale = scale * np.asarray(transform["scale"], dtype=float).reshape(len(axes))
                stated = True
    spacing: dict[str, float | None] = {"z": None, "y": None, "x": None}
    time_step_s = None
    for axis, step in zip(axes, scale, strict=True):
        if stated and axis["name"] in spacing:
            spacing[axis["name"]] = to_micrometres(step, axis.get("unit"))
        elif stated and axis["name"] == "t":
            time_step_s = to_seconds(step, axis.get("unit"))
    labels = [channel.get("label") for channel in (ome.get("omero") or {}).get("channels", ())]
    return Calibration(
        (spacing["z"], spacing["y"], spacing["x"]),
        tuple(str(label) for label in labels) if all(labels) else (),
        time_step_s,
    )


def _inside(path: Path) -> str:
    """What to open instead, when the image lies deeper (bioformats2raw, plates, our own)."""
    images = [
        entry.name
        for entry in sorted(path.iterdir())
        if entry.is_dir() and "multiscales" in zarr_attributes(entry).get(
            "ome", zarr_attributes(entry)
        )
    ]  # fmt: skip
    if images:
        return f"Open one of the images inside it: {', '.join(images[:8])}."
    return "It has no multiscales metadata and is not an array: export it as OME-Zarr."
