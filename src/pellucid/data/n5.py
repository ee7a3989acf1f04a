"""N5 folders: single arrays, and those of BigDataViewer; axes are x, y, z there."""

from pathlib import Path

from pellucid.data.bdv import open_bdv
from pellucid.data.source import Calibration, Source, check_only_image, to_micrometres
from pellucid.data.stored_volumes import N5Volumes
from pellucid.data.volume_set import VolumeSet
from pellucid.data.zarr_json import read_json
from pellucid.errors import InputError


def open_n5(path: Path, image: int | None = None) -> Source:
    """The recording in an N5 array, or in a container that BigDataViewer's .xml beside it describes."""
    about = read_json(path / "attributes.json")
    described = path.with_suffix(".xml")
    if "dimensions" not in about and described.is_file():
        return open_bdv(described, image)
    if "dimensions" not in about:
        raise InputError(
            f"{path.name}: an N5 container, and not an array, without the .xml of BigDataViewer beside it. "
            "Give that, or one of the arrays inside."
        )
    check_only_image(image, path.name)
    if len(about["dimensions"]) != 3:
        raise InputError(
            f"{path.name}: an N5 array of {len(about['dimensions'])} dimensions; x, y, z are read."
        )
    stated = about.get("pixelResolution", about.get("resolution"))
    unit = str((about.get("units") or ["um"])[0])
    if isinstance(stated, dict):
        unit, stated = str(stated.get("unit", unit)), stated.get("dimensions")
    z, y, x = (to_micrometres(v, unit) for v in (stated or [None] * 3)[::-1])
    return VolumeSet(
        path, N5Volumes({(0, 0): path}), (1, 1), Calibration((z, y, x)), files=(path,)
    )
