"""Hollow images: an OME-Zarr that says what it holds and holds no pixel, to plan with."""

import json
from pathlib import Path

import tensorstore

from pellucid.data.ome_zarr_metadata import image_attributes, root_documents
from pellucid.data.plain_json import plain_json
from pellucid.data.pyramid import plan_levels
from pellucid.data.writer import ImageDescription


def write_hollow(path: Path, image: ImageDescription) -> None:
    """Write a few kilobytes at `path` that open as an image of this description, all zeros.

    The suffix of `path` does not matter: whatever the image is going to be, it is opened as this.
    """
    path.mkdir(parents=True)
    levels = plan_levels(image.shape[2:], image.voxel_um or (1.0, 1.0, 1.0))[:1]
    limits = [(0.0, 1.0)] * image.shape[1]
    ome = image_attributes(image, levels, "0.5", name=path.name, windows=limits, limits=limits)
    for name, document in root_documents("0.5", ome, {"complete": True}).items():
        (path / name).write_text(json.dumps(plain_json(document)))
    tensorstore.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str((path / "0").resolve())},
            "metadata": {
                "shape": list(image.shape),
                "data_type": image.dtype,
                "fill_value": 0,
                "chunk_grid": {
                    "name": "regular",
                    "configuration": {"chunk_shape": [1, 1, *(min(n, 64) for n in image.shape[2:])]},
                },
            },
        },
        create=True,
    ).result()
