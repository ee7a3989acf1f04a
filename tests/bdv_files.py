"""Datasets of BigDataViewer as BigStitcher writes them: an XML, and HDF5 or N5 beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorstore


@dataclass(frozen=True)
class Setup:
    """A view setup: a (z, y, x) volume for each time point, and what it is of.

    Parameters
    ----------
    places : the transforms of its registration, (3, 4) matrices for x, y, z, the last applied first
    """

    volumes: Sequence[np.ndarray]
    angle: int = 0
    channel: int = 0
    tile: int = 0
    illumination: int = 0
    places: Sequence[np.ndarray] = ()
    size: tuple[int, int, int] | None = None


def write_bdv(
    path: Path, setups: Mapping[int, Setup], voxel_um, *, form: str = "hdf5", times: Sequence[int] = (0,)
) -> Path:
    """Write `setups` by their ids as `path` (.xml) with its pixels."""
    import h5py

    stored = path.with_suffix(".h5" if form == "hdf5" else ".n5")
    described, registered = "", ""
    for number, setup in setups.items():
        for t, volume in zip(times, setup.volumes, strict=True):
            if form == "n5":
                write_n5(stored / f"setup{number}/timepoint{t}/s0", volume)
                continue
            with h5py.File(stored, "a") as file:
                pixels = volume.view("int16") if volume.dtype == np.uint16 else volume
                file.create_dataset(f"t{t:05d}/s{number:02d}/0/cells", data=pixels, chunks=True)
        z, y, x = setup.size or setup.volumes[0].shape
        dz, dy, dx = voxel_um
        described += (
            f"<ViewSetup><id>{number}</id><size>{x} {y} {z}</size><voxelSize><unit>µm</unit>"
            f"<size>{dx} {dy} {dz}</size></voxelSize><attributes>"
            f"<illumination>{setup.illumination}</illumination><channel>{setup.channel}</channel>"
            f"<tile>{setup.tile}</tile><angle>{setup.angle}</angle></attributes></ViewSetup>"
        )
        for t in times:
            listed = "".join(
                f'<ViewTransform type="affine"><Name>step {i}</Name><affine>'
                f"{' '.join(map(repr, np.asarray(place, float).ravel().tolist()))}</affine></ViewTransform>"
                for i, place in enumerate(setup.places)
            )
            registered += (
                f'<ViewRegistration timepoint="{t}" setup="{number}">{listed}</ViewRegistration>'
            )
    if form == "n5":
        (stored / "attributes.json").write_text('{"n5": "2.5.0"}')
    path.write_text(
        '<?xml version="1.0" encoding="UTF-8"?><SpimData version="0.2">'
        '<BasePath type="relative">.</BasePath>'
        f'<SequenceDescription><ImageLoader format="bdv.{form}">'
        f'<{form} type="relative">{stored.name}</{form}>'
        f"</ImageLoader><ViewSetups>{described}</ViewSetups><Timepoints type=\"pattern\"><integerpattern>"
        f"{', '.join(map(str, times))}</integerpattern></Timepoints></SequenceDescription>"
        f"<ViewRegistrations>{registered}</ViewRegistrations></SpimData>",
        encoding="utf-8",
    )
    return path


def write_n5(path: Path, volume: np.ndarray) -> None:
    """Write one array; N5 counts x, y, z."""
    metadata = {
        "dimensions": volume.shape[::-1], "blockSize": [8, 8, 4], "dataType": volume.dtype.name,
        "compression": {"type": "gzip"},
    }  # fmt: skip
    store = {"driver": "n5", "kvstore": {"driver": "file", "path": str(path)}, "metadata": metadata}
    tensorstore.open(store, create=True).result()[...] = volume.transpose(2, 1, 0)
