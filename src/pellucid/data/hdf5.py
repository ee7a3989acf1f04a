"""HDF5 files of BigDataViewer and of Imaris, through h5py (the extra `hdf5`)."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from pellucid.data.bdv import open_bdv
from pellucid.data.source import Calibration, Source, check_only_image, to_micrometres
from pellucid.data.stored_volumes import Hdf5Volumes, import_h5py
from pellucid.data.volume_set import VolumeSet
from pellucid.errors import InputError


def open_hdf5(path: Path, image: int | None = None) -> Source:
    """The recording in an .h5 of BigDataViewer or an .ims; InputError for other HDF5."""
    h5py = import_h5py(path)
    try:
        with h5py.File(path, "r") as file:
            if "DataSetInfo" in file and "DataSet" in file:
                check_only_image(image, path.name)
                return _imaris(path, file)
            setups = sorted({s for t in file if re.fullmatch(r"t\d+", t) for s in file[t]})
    except OSError as error:
        raise InputError(
            f"{path.name}: not a complete HDF5 file ({error}). Copy or export it again."
        ) from error
    described = path.with_suffix(".xml")
    if setups and described.is_file():
        return open_bdv(described, image)
    if setups:
        raise InputError(
            f"{path.name}: the .xml of BigDataViewer that describes it is not beside it. Put "
            f"{described.name} there; it holds the voxel size and what the views are."
        )
    raise InputError(
        f"{path.name}: HDF5 of neither BigDataViewer nor Imaris. Export it as OME-Zarr or OME-TIFF."
    )


def _imaris(path: Path, file: Any) -> VolumeSet:
    """ResolutionLevel 0 of an Imaris file; its arrays are padded to whole chunks, so the size is stated."""
    about = file["DataSetInfo/Image"].attrs
    try:
        sizes = [int(_text(about[axis])) for axis in "ZYX"]
        extents = [
            float(_text(about[f"ExtMax{i}"])) - float(_text(about[f"ExtMin{i}"])) for i in (2, 1, 0)
        ]
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path.name}: its size or extent is not stated as Imaris does ({error}). Export it again."
        ) from error
    unit = _text(about["Unit"]) if "Unit" in about else "um"
    level = file["DataSet/ResolutionLevel 0"]
    times = len([name for name in level if re.fullmatch(r"TimePoint \d+", name)])
    channels = len([name for name in level.get("TimePoint 0", ()) if re.fullmatch(r"Channel \d+", name)])
    if not times or not channels:
        raise InputError(f"{path.name}: an Imaris file without time points or channels.")
    names = {
        (t, c): f"DataSet/ResolutionLevel 0/TimePoint {t}/Channel {c}/Data"
        for t in range(times)
        for c in range(channels)
    }
    labels = []
    for c in range(channels):
        group = file.get(f"DataSetInfo/Channel {c}")
        labels.append(_text(group.attrs["Name"]) if group is not None and "Name" in group.attrs else "")
    z, y, x = (
        to_micrometres(extent / size, unit) for extent, size in zip(extents, sizes, strict=True)
    )
    calibration = Calibration((z, y, x), tuple(labels) if all(labels) else ())
    return VolumeSet(
        path, Hdf5Volumes(path, names), (times, channels), calibration, files=(path,),
        size=(sizes[0], sizes[1], sizes[2]),
    )  # fmt: skip


def _text(value: Any) -> str:
    """Imaris writes text as an array of single characters."""
    if isinstance(value, bytes | str):
        return value.decode() if isinstance(value, bytes) else value
    return b"".join(np.asarray(value).astype("S1").ravel().tolist()).decode()
