"""The JSON of an OME-Zarr image, versions 0.4 and 0.5."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from pellucid.data.pyramid import Level
from pellucid.data.writer import ImageDescription

# One channel is grey; several are told apart also by readers who do not see red from green.
COLOURS = ("00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0080FF", "FFFFFF")

Window = tuple[float, float]


def image_attributes(
    image: ImageDescription,
    levels: Sequence[Level],
    version: str,
    *,
    name: str,
    windows: Sequence[Window],
    limits: Sequence[Window],
) -> dict[str, Any]:
    """`multiscales` and `omero` of an image with axes t, c, z, y, x.

    Parameters
    ----------
    windows : contrast limits of each channel
    limits : smallest and largest value of each channel
    """
    multiscale = {
        "name": name,
        "axes": _axes(image),
        "datasets": [
            {"path": str(i), "coordinateTransformations": _transforms(image, level)}
            for i, level in enumerate(levels)
        ],
        "type": "mean",
        "metadata": {"description": "means of 2 voxels along each axis that is halved"},
    }
    colours = ("FFFFFF",) if image.shape[1] == 1 else COLOURS
    omero = {
        "channels": [
            {
                "label": label,
                "color": colours[i % len(colours)],
                "active": True,
                "window": {
                    "start": windows[i][0], "end": windows[i][1],
                    "min": limits[i][0], "max": limits[i][1],
                },
            }
            for i, label in enumerate(image.names)
        ],
        "rdefs": {"model": "color" if image.shape[1] > 1 else "greyscale",
                  "defaultZ": image.shape[2] // 2},
    }  # fmt: skip
    if version == "0.4":
        multiscale["version"] = "0.4"
        return {"multiscales": [multiscale], "omero": omero}
    return {"version": version, "multiscales": [multiscale], "omero": omero}


def root_documents(
    version: str, ome: Mapping[str, Any], pellucid: Mapping[str, Any]
) -> dict[str, Any]:
    """File name -> JSON of the root group."""
    ours = {"version": metadata.version("pellucid"), **pellucid}
    if version == "0.4":
        return {".zgroup": {"zarr_format": 2}, ".zattrs": {**ome, "pellucid": ours}}
    group = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"ome": dict(ome), "pellucid": ours},
    }
    return {"zarr.json": group}


def _axes(image: ImageDescription) -> list[dict[str, str]]:
    time = {"name": "t", "type": "time"}
    if image.time_step_s is not None:
        time["unit"] = "second"
    space = [{"name": axis, "type": "space"} for axis in "zyx"]
    if image.voxel_um is not None:
        space = [{**axis, "unit": "micrometer"} for axis in space]
    return [time, {"name": "c", "type": "channel"}, *space]


def _transforms(image: ImageDescription, level: Level) -> list[dict[str, Any]]:
    """Scale, and the shift of a mean's centre: half of what it spans, less half a voxel."""
    voxel = image.voxel_um or (1.0, 1.0, 1.0)
    scale = [float(um * f) for um, f in zip(voxel, level.factor, strict=True)]
    shift = [float(um * (f - 1) / 2) for um, f in zip(voxel, level.factor, strict=True)]
    return [
        {"type": "scale", "scale": [float(image.time_step_s or 1.0), 1.0, *scale]},
        {"type": "translation", "translation": [0.0, 0.0, *shift]},
    ]
